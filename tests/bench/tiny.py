"""A prepared copy task, small enough to train on in a second, for tests of training, distillation and evaluation."""

import json
import random

from bench.steps import write_json
from bench.tasks.base import SPLITS, Example
from bench.text import WordTokenizer, split_words
from models.registry import load_family

CONFIG = {"encoder_layers": 1, "decoder_layers": 1, "model_dim": 32, "num_heads": 2, "ffn_dim": 64, "dropout": 0.1}
WORDS = ("ab", "cd", "ef", "gh", "ij", "kl")


def prepare(folder, train=120, held_out=20):
    """Write a prepared task in which the target is the source reversed."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    texts = []
    for split in SPLITS:
        lines = []
        for i in range(train if split == "train" else held_out):
            words = rng.choices(WORDS, k=rng.randint(1, 5))
            target = " ".join(reversed(words))
            example = Example(f"{split}-{i}", " ".join(words), target, (target,))
            texts += [example.source, example.target]
            lines.append(json.dumps(example.to_json()))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    WordTokenizer.train(texts).save(folder)
    longest = max(len(split_words(t)) for t in texts)
    write_json(folder / "data.json", {"max_source_length": longest, "max_target_length": longest})
    return folder


def spec(family="transformer", **train):
    """The description of a train step on the copy task."""
    recipe = {
        "budget": {"target_tokens": 2000}, "batch_tokens": 64, "evaluations": 4, "dev_sentences": 8,
        "average_count": 2, "learning_rate": 5e-3,
    } | train  # fmt: skip
    config = dict(CONFIG)
    return {
        "family": family, "config": config, "train": recipe, "seed": 1, "device": "cpu", "dtype": "float32",
        "task": "dates", "task_config": {}, "companions": {}, "init": None,
    }  # fmt: skip


def silent(**_):
    """A progress that shows nothing."""


def model_for(data, family):
    """An untrained model for prepared data."""
    kind = load_family(family)
    return kind.model(kind.config(**{k: v for k, v in CONFIG.items() if k in kind.config.model_fields}), data.data_spec)
