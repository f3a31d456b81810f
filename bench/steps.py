"""A step: one unit of work that a suite needs, done in a process of its own and kept as one artifact.

The kinds of steps, the module whose `run` does each, and the parents each is given:

    prepare   bench.preparation   -
    train     bench.training      data (prepare), targets (distill) if the system trains on distilled targets, labels
                                  (label) if its family asks for them, companions that training needs, and choice
                                  (choose) if hyper-parameters are searched
    choose    bench.search        trial0, trial1, ... (train): short trainings of which one is the best
    distill   bench.distillation  data (prepare), model (train)
    label     bench.labels        data (prepare), targets (distill) if there are, the companion `ctc` if it aligns
    evaluate  bench.evaluation    data (prepare), model (train), companions that decoding needs
    measure   bench.speed         data (prepare), and for cell i `model{i}` (train), `hypotheses{i}` (evaluate) and its
                                  companions

The parent that is the companion of role R (train) is called `companion_R`, that of cell i `companion{i}_R`; its family
and config stand in the spec under `companions`.

Each `run` has the signature `run(spec, folder, parents, progress)`: `spec` is the JSON description of the step,
`folder` the one to build the artifact in (with what a killed run left there), `parents` maps roles to finished
artifacts, `progress` takes what to show.

A step that times many cells must not lose all for one: it names in `folder/current.json`, as `{"cell", "batch_size"}`,
what it is about to do (no batch size: anything with that cell). If its process dies there twice, or hangs, the runner
starts it again with that pair listed in `folder/excluded.json` (`[{"cell", "batch_size", "status", "reason"}, ...]`),
to be left out and reported.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

MODULES = {
    "prepare": "bench.preparation",
    "train": "bench.training",
    "choose": "bench.search",
    "distill": "bench.distillation",
    "label": "bench.labels",
    "evaluate": "bench.evaluation",
    "measure": "bench.speed",
}


@dataclass(frozen=True)
class Step:
    """One node of a suite's graph."""

    kind: str
    key: str
    """Key of the artifact in the store; equal steps of different cells have equal keys and run once."""
    spec: dict[str, Any]
    """JSON-serialisable description of the work; hashed into the key."""
    parents: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Role -> (kind, key) of the artifacts it reads."""
    label: str = ""
    """How progress and errors call it: `train ctc (distilled, seed 1) on dates`."""
    alone: bool = False
    """Timed: no other step may run beside it."""
    threads: int = 1
    """CPU threads it uses."""
    time_limit: float | None = None
    """Seconds after which it is killed and recorded as timeout."""
    seconds: float = 0.0
    """Rough estimate of its time: longer chains start first, and `plan` shows it."""

    @property
    def id(self) -> tuple[str, str]:
        """Kind and key."""
        return (self.kind, self.key)


def role_key(role: str, cell: int | str = "") -> str:
    """Return what a step calls the parent that fills `role`, of cell number `cell` if the step has many."""
    return f"companion{cell}_{role}"


CURRENT = "current.json"
EXCLUDED = "excluded.json"


class StepFailure(Exception):
    """A step cannot give its artifact for a reason that belongs in the records (NaN loss, for instance)."""


class Progress(Protocol):
    """Takes what a running step has to show."""

    def __call__(self, *, done: float | None = None, **values: float | str) -> None:
        """Report `done` (share of the work, 0-1) and values to show, such as loss or tokens_per_second."""


class JsonProgress:
    """Writes reports as JSON lines to `stream`, for the parent process to show.

    Reports that come sooner than `interval` seconds after the last one are dropped: a step may report as often as it
    likes, and neither it nor its parent spends time on that.
    """

    def __init__(self, stream: TextIO, interval: float) -> None:
        self.stream = stream
        self.interval = interval
        self._next = 0.0

    def __call__(self, *, done: float | None = None, **values: float | str) -> None:
        """Write one line, unless the last one is too fresh."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self.interval
            self.write({"done": done, **values})

    def write(self, message: dict[str, Any]) -> None:
        """Write one line in any case."""
        self.stream.write(json.dumps(message) + "\n")
        self.stream.flush()


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path`, atomically and readably."""
    from bench.store import write_atomically

    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n")
