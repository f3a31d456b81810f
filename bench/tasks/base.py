"""The contract of a task: where its examples come from, how they become ids, and how outputs are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from models.interface import Options

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Example:
    """One sentence pair. `references` are all answers known to be right; `target` is the one to train on."""

    id: str
    source: str
    target: str
    references: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable form."""
        return asdict(self)


class Task(ABC):
    """A kind of task, configured. Stateless: everything derived goes into the prepared folder.

    `prepare` writes into an empty folder: `train.jsonl`, `dev.jsonl`, `test.jsonl` (one `Example` a line), the
    tokeniser (see `bench.text`), and `data.json` (counts of what was read, dropped and why).
    """

    name: ClassVar[str]
    """The name used in suites; also the module's name in `bench.tasks`."""
    title: ClassVar[str]
    Config: ClassVar[type[Options]]
    metrics: ClassVar[tuple[str, ...]]
    """Quality metrics of the task, the headline first (see `bench.quality`)."""
    selection_metric: ClassVar[str]
    """The metric that selects checkpoints on the development split."""

    def __init__(self, config: Any) -> None:
        self.config = config

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
