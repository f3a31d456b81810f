"""The evaluate step: the scored hypotheses of one cell, and their quality."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.accuracy_by_position import accuracy_by_position
from bench.batching import collate
from bench.checkpoint import inference, load_companions, load_model
from bench.configs import QualityConfig
from bench.decoding import decode_corpus
from bench.errors_by_position import errors_by_position
from bench.language_model import give_language_model
from bench.names import FIXED_LENGTH
from bench.preparation import EncodedPair, PreparedData, build_task
from bench.quality import Score, perplexity, score
from bench.steps import Progress, write_json
from bench.store import write_atomically
from bench.subsets import Subset
from bench.tasks.base import Example, Task
from models.interface import Model
from models.registry import load_family


def run(spec: dict[str, Any], folder: Path, parents: dict[str, Path], progress: Progress) -> None:
    """Decode the split to be scored; write `hypotheses.jsonl` and `scores.json`."""
    config = QualityConfig(**spec["quality"])
    data = PreparedData(parents["data"])
    task = build_task(spec["task"], spec["task_config"])
    settings = load_family(spec["family"]).settings(**spec["settings"])
    model = load_model(spec["family"], spec["config"], data.data_spec, parents["model"], spec["device"])
    model.companions = load_companions(spec["companions"], data.data_spec, parents, spec["device"])
    give_language_model(model, settings, data)
    examples = data.examples(config.split)[: config.max_sentences]
    pairs = data.encode(examples)
    outputs = decode_corpus(
        model,
        [p.source for p in pairs],
        settings,
        data.data_spec,
        config.batch_size,
        spec["dtype"],
        after_batch=lambda done: progress(done=0.8 * done / len(pairs)),
    )
    hypotheses = [data.tokenizer.decode(o.tokens) for o in outputs]
    lines = [
        json.dumps({"id": e.id, "hypothesis": h, "tokens": o.tokens, "score": _score(o.score)}, ensure_ascii=False)
        for e, h, o in zip(examples, hypotheses, outputs, strict=True)
    ]
    write_atomically(folder / "hypotheses.jsonl", "\n".join(lines) + "\n")
    scores = scores_of(task, hypotheses, examples, config.bootstrap_samples)
    if getattr(settings, "output_length", "model") == "source":
        scores = [replace(s, signature=s.signature + FIXED_LENGTH) if s.metric == "length_ratio" else s for s in scores]
    if task.likelihood:
        references = [[data.tokenizer.encode(reference) for reference in example.references] for example in examples]

        def predict(chosen: list[Sequence[int]]) -> list[Sequence[int]] | None:
            targets = [EncodedPair(p.source, list(ids)) for p, ids in zip(pairs, chosen, strict=True)]
            return next_tokens(model, targets, config.batch_size, spec["dtype"])

        scores += accuracy_by_position([o.tokens for o in outputs], references, predict)
    likelihoods = log_likelihoods(model, pairs, config.batch_size, spec["dtype"]) if task.likelihood else None
    if likelihoods is not None:
        lengths = np.array([len(p.target) for p in pairs])
        possible = np.isfinite(likelihoods)
        if possible.any():
            value = perplexity(likelihoods[possible], lengths[possible], bootstrap_samples=config.bootstrap_samples)
            # What the model cannot produce at all is left out of the mean, and said.
            left_out = f"|impossible:{len(possible) - possible.sum()}" if not possible.all() else ""
            bound = "|upper-bound:estimated" if model.likelihood_is_bound else ""
            scores.append(replace(value, signature=value.signature + left_out + bound))
    write_json(folder / "scores.json", [asdict(s) for s in scores])


def scores_of(task: Task, hypotheses: Sequence[str], examples: Sequence[Example], samples: int) -> list[Score]:
    """Return the task's metrics over all examples, then over each subset, and for CER where its errors are.

    samples: resamplings behind the intervals. Subsets come in the order of their tags and rising numbers.

    Raises:
        ValueError: the task puts an example into what is no subset.
    """
    scores = score(task.metrics, hypotheses, examples, bootstrap_samples=samples)
    parts: dict[Subset, list[int]] = {}
    for i, example in enumerate(examples if task.subset_metrics else ()):
        if name := task.subset(example):
            parts.setdefault(Subset.parse(name), []).append(i)
    for part, members in sorted(parts.items()):
        texts, own = [hypotheses[i] for i in members], [examples[i] for i in members]
        scores += score(task.subset_metrics, texts, own, bootstrap_samples=samples, subset=str(part))
    if "cer" in task.metrics:
        scores += errors_by_position(hypotheses, examples)
    return scores


def log_likelihoods(model: Model, pairs: list[EncodedPair], batch_size: int, precision: str) -> np.ndarray | None:
    """Return log p(target | source) of each pair in nats; None if the family has no tractable likelihood.

    Minus infinity marks a target that the model cannot produce at all (too few CTC frames).
    """
    device = next(model.parameters()).device
    values: list[torch.Tensor] = []
    for start in range(0, len(pairs), batch_size):
        batch = collate(pairs[start : start + batch_size]).to(device)
        with inference(device.type, precision):
            likelihood = model.log_likelihood(batch)
        if likelihood is None:
            return None
        values.append(likelihood.float().cpu())
    return torch.cat(values).numpy()


def next_tokens(model: Model, pairs: list[EncodedPair], batch_size: int, precision: str) -> list[Sequence[int]] | None:
    """Return the most probable token at each place of each target after those before it; None: the family has none."""
    device = next(model.parameters()).device
    found: list[Sequence[int]] = []
    for start in range(0, len(pairs), batch_size):
        some = pairs[start : start + batch_size]
        with inference(device.type, precision):
            tokens = model.next_tokens(collate(some).to(device))
        if tokens is None:
            return None
        found += [row[: len(pair.target)] for row, pair in zip(tokens.tolist(), some, strict=True)]
    return found


def _score(score: float) -> float | None:
    """Return a score as JSON can hold it: another engine may give none."""
    return score if math.isfinite(score) else None
