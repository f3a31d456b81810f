"""The contract of a task: where its examples come from, how they become ids, and how outputs are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from models.interface import Options

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Example:
    """One pair of source and target. `references` are all answers known to be right; `target` is to train on."""

    id: str
    source: str
    """Text to translate; for speech, what people call the recording (a path, for instance)."""
    target: str
    references: tuple[str, ...]
    tags: dict[str, str | float] = field(default_factory=dict)
    """What results can be broken down by. For speech `seconds`, always; and `speaker`, `snr_db`, `wpm` where known."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable form."""
        return asdict(self)


class Task(ABC):
    """A kind of task, configured. Stateless: everything derived goes into the prepared folder.

    `prepare` writes into an empty folder: `train.jsonl`, `dev.jsonl`, `test.jsonl` (one `Example` a line), the
    tokeniser (see `bench.text`), and `data.json` (counts of what was read, dropped and why); for speech also features
    and audio (see `bench.tasks.speech`).
    """

    name: ClassVar[str]
    """The name used in suites; also the module's name in `bench.tasks`."""
    title: ClassVar[str]
    Config: ClassVar[type[Options]]
    metrics: ClassVar[tuple[str, ...]]
    """Quality metrics of the task, the headline first (see `bench.quality`)."""
    selection_metric: ClassVar[str]
    """The metric that selects checkpoints on the development split."""
    modality: ClassVar[Literal["text", "speech"]] = "text"
    """What the source is."""
    likelihood: ClassVar[bool] = True
    """Whether the probability that a model gives the references is worth reporting."""
    subset_metrics: ClassVar[tuple[str, ...]] = ()
    """Quality metrics that are also given for each subset of the examples (see `subset`)."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def subset(self, example: Example) -> str:
        """Return the part of its split that `example` is counted in, `snr_db=0..5` (see `bench.subsets`), or empty."""
        return ""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Return what the prepared data depends on beside the config (hashes of input files, library versions).

        Raises:
            DataError: input files are missing or unreadable, naming file, URL and variable where they apply.
        """

    @abstractmethod
    def prepare(self, folder: Path) -> None:
        """Write the prepared data into `folder`.

        Raises:
            DataError: the input is not usable.
        """
