"""Random words, of which nothing can be learned: what decoding costs at true scale, with models that are not trained.

Sentences have one of a few lengths, equally many of each, shortest first. If all of them are timed and the batch sizes,
those of decoding for quality included, divide that number, no batch needs padding, which other engines insist on. With
`output_length: source` in a system's settings outputs are as long as the sources.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from bench.steps import write_json
from bench.tasks.base import SPLITS, Example, Task
from bench.text import SPACE_MARK, WordTokenizer, join_words
from models.interface import NUM_SPECIAL, Options

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORD_LETTERS = 4
DEV_SENTENCES = 4


class RandomTextConfig(Options):
    """What to generate."""

    vocab_size: int = Field(32_000, gt=NUM_SPECIAL, le=len(LETTERS) ** WORD_LETTERS)
    """Number of ids, special ids included."""
    lengths: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field((16, 32, 64), min_length=1)
    """Words of a sentence, of source and target alike."""
    sentences: int = Field(128, ge=1)
    """Test sentences of each length."""
    train_sentences: int = Field(32, ge=1)
    """Training pairs of each length: what some families must see even before no training."""
    seed: int = Field(1, ge=0)
    """Chooses the words."""

    @field_validator("lengths")
    @classmethod
    def _distinct(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(lengths)) < len(lengths):
            raise ValueError(f"lengths must differ, got {', '.join(map(str, lengths))}")
        return tuple(sorted(lengths))


class RandomText(Task):
    """Unrelated sources and targets of random words."""

    name = "random_text"
    title = "Random words (for speed alone)"
    Config = RandomTextConfig
    metrics: ClassVar = ("length_ratio",)
    selection_metric = "exact_match"
    likelihood = False

    config: RandomTextConfig

    def fingerprint(self) -> dict[str, Any]:
        """Return nothing: the configuration says it all."""
        return {}

    def examples(self) -> Iterator[tuple[str, Example]]:
        """Yield (split, example) in order, shorter ones first in each split."""
        rng = random.Random(self.config.seed)
        words = self.words()
        counts = (self.config.train_sentences, DEV_SENTENCES, self.config.sentences)
        for split, count in zip(SPLITS, counts, strict=True):
            for length in self.config.lengths:
                for number in range(count):
                    source, target = (join_words(rng.choices(words, k=length)) for _ in range(2))
                    yield split, Example(f"{split}-{length}-{number}", source, target, (target,))

    def words(self) -> list[str]:
        """Return the vocabulary: words of as many letters each."""
        return [SPACE_MARK + _spelled(i) for i in range(self.config.vocab_size - NUM_SPECIAL)]

    def prepare(self, folder: Path) -> None:
        """Write the three splits, the word tokeniser and `data.json`."""
        WordTokenizer(self.words()).save(folder)
        files = {split: (folder / f"{split}.jsonl").open("w", encoding="utf-8") for split in SPLITS}
        for split, example in self.examples():
            files[split].write(json.dumps(example.to_json(), ensure_ascii=False) + "\n")
        for file in files.values():
            file.close()
        longest = max(self.config.lengths)
        write_json(
            folder / "data.json",
            {
                "max_source_length": longest,
                "max_target_length": longest,
                "sentences": self.config.sentences * len(self.config.lengths),
                "vocabulary_size": self.config.vocab_size,
            },
        )


def _spelled(number: int) -> str:
    """Return `number` in letters, the last one counting ones."""
    letters = []
    for _ in range(WORD_LETTERS):
        number, rest = divmod(number, len(LETTERS))
        letters.append(LETTERS[rest])
    return "".join(reversed(letters))


TASK = RandomText
