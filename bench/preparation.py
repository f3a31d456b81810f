"""The prepare step: a task's data, tokenised once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.steps import Progress
from bench.tasks.base import SPLITS, Example, Task
from bench.tasks.registry import load_task
from bench.text import Tokenizer, load_tokenizer
from models.interface import DataSpec


def run(spec: dict[str, Any], folder: Path, parents: dict[str, Path], progress: Progress) -> None:
    """Write the prepared data of `spec["task"]` configured by `spec["config"]`."""
    progress(done=0.0)
    build_task(spec["task"], spec["config"]).prepare(folder)


def build_task(name: str, config: dict[str, Any]) -> Task:
    """Return the task called `name` with `config` validated."""
    task = load_task(name)
    return task(task.Config(**config))


@dataclass(frozen=True)
class EncodedPair:
    """A sentence pair as ids; targets hold neither bos nor eos."""

    source: list[int]
    target: list[int]
    labels: list[int] | None = None
    """What the family asks for beside the target (see `models.interface.Family.labels`)."""


class PreparedData:
    """A prepared task as read from its artifact."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer: Tokenizer = load_tokenizer(folder)
        self.counts: dict[str, Any] = json.loads((folder / "data.json").read_text(encoding="utf-8"))

    def examples(self, split: str) -> list[Example]:
        """Return the examples of `split`, in order."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; there are: {', '.join(SPLITS)}")
        examples = []
        with (self.folder / f"{split}.jsonl").open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                examples.append(Example(row["id"], row["source"], row["target"], tuple(row["references"])))
        return examples

    def encode(self, examples: list[Example]) -> list[EncodedPair]:
        """Return the ids of `examples`."""
        encode = self.tokenizer.encode
        return [EncodedPair(encode(e.source), encode(e.target)) for e in examples]

    @property
    def data_spec(self) -> DataSpec:
        """What a model must know: sizes, and the length limits that preparation measured."""
        return DataSpec(
            vocab_size=self.tokenizer.size,
            max_source_length=self.counts["max_source_length"],
            max_target_length=self.counts["max_target_length"],
        )
