"""A results folder as what presents and compares results reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.names import SENTENCES, cell_id, read_json_lines, slug, unescape
from bench.records import Record, read_results
from bench.results import Cell, TaskResults, by_task

CellKey = tuple[str, str, str, str, int | None]
"""Task, system, data, settings, seed."""


def name_of(key: CellKey) -> str:
    """Return how a cell is called within its task: `ctc (distilled) [beam=5], seed 1`."""
    _, system, data, settings, seed = key
    name = f"{system} (distilled)" if data == "distilled" else system
    return f"{name}{f' [{settings}]' if settings else ''}, seed {seed}"


@dataclass(frozen=True)
class Sentence:
    """A sentence of the test set; what quality metrics need of an example."""

    id: str
    source: str
    references: tuple[str, ...]


@dataclass
class Side:
    """A results folder: what was measured, and the outputs behind it."""

    folder: Path
    records: list[Record]
    environment: Mapping[str, Any] = field(default_factory=dict)
    _sentences: dict[str, list[Sentence]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Side:
        """Read `folder`.

        Raises:
            UserError: it holds no records, or a file of it is damaged.
        """
        records = read_results(folder)
        file = folder / "environment.json"
        try:
            environment = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except ValueError as error:
            raise UserError(f"{file}: not JSON ({error})") from error
        if not isinstance(environment, dict):
            raise UserError(f"{file}: not an object")
        return cls(folder, records, environment)

    def described(self, *path: str) -> dict[str, Any]:
        """Return the object at `path` of environment.json; an empty one if there is none."""
        found: Any = self.environment
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    @cached_property
    def tasks(self) -> dict[str, TaskResults]:
        """The results by task."""
        return {task.name: task for task in by_task(self.records)}

    @property
    def arithmetic(self) -> str | None:
        """What the rounding of the machine that this is from is told by; None if that was not kept."""
        found = self.described("machine").get("arithmetic")
        return found if isinstance(found, str) else None

    @cached_property
    def cells(self) -> dict[CellKey, Cell]:
        """The cells of each seed, in the order of the records."""
        found: dict[CellKey, list[Record]] = {}
        for task in self.tasks.values():
            for cell in task.cells:
                for record in cell.records:
                    key = (task.name, cell.system, cell.data, cell.settings, record.seed)
                    found.setdefault(key, []).append(record)
        return {key: Cell(records) for key, records in found.items()}

    def sentences(self, task: str) -> list[Sentence]:
        """Return the sentences that the outputs of `task` are for, in their order; none if they were not kept.

        Raises:
            UserError: the file is damaged.
        """
        if task not in self._sentences:
            path = self.folder / "hypotheses" / slug(task) / SENTENCES
            self._sentences[task] = _read_sentences(path) if path.is_file() else []
        return self._sentences[task]

    def outputs(self, key: CellKey) -> dict[str, str] | None:
        """Return the outputs of a cell by sentence; None if they, or the sentences, were not kept.

        Raises:
            UserError: there is not one output for each sentence.
        """
        task, system, data, settings, seed = key
        path = self.folder / "hypotheses" / slug(task) / f"{cell_id(system, data, seed, settings)}.txt"
        sentences = self.sentences(task)
        if not sentences or not path.is_file():
            return None
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error})") from error
        if lines[-1] or len(lines) - 1 != len(sentences):
            raise UserError(f"{path}: {len(lines) - 1} whole lines for {len(sentences)} sentences")
        return {sentence.id: unescape(line) for sentence, line in zip(sentences, lines, strict=False)}

    def fingerprint(self, task: str) -> str | None:
        """Return what the machine that timed `task` is told by; None if that was not kept."""
        found = self.described("measurements", task).get("fingerprint")
        return None if found is None else json.dumps(found, sort_keys=True)


def _read_sentences(path: Path) -> list[Sentence]:
    try:
        rows = read_json_lines(path.read_text(encoding="utf-8"))
        found = [Sentence(row["id"], row["source"], tuple(row["references"])) for row in rows]
        if any(not isinstance(text, str) for each in found for text in (each.id, each.source, *each.references)):
            raise ValueError("an id, a source or a reference is no text")
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a list of sentences ({error})") from error
