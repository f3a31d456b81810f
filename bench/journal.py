"""The journal of a measurement: every timing as it is taken, so that a killed measurement goes on where it was.

A JSONL file with four kinds of lines: a header (the machine), timings, `{"complete": round}` at the end of a round,
and failures of points. Only whole rounds count; what a kill left after the last whole one is measured again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.store import write_atomically
from bench.timing import Point, Timing


@dataclass(frozen=True)
class Failure:
    """Why a point has no value."""

    status: str
    """failed | oom | timeout | skipped."""
    reason: str


class Journal:
    """Timings and failures, in memory and on disk."""

    def __init__(self, path: Path, machine: str) -> None:
        """Open the journal at `path`, keeping what was measured on the same `machine` (its fingerprint)."""
        self.path = path
        self.timings: list[Timing] = []
        self.failures: dict[Point, Failure] = {}
        lines = _whole_lines(path)
        if lines and lines[0] == {"machine": machine}:
            self._replay(lines[1:])
        kept = [{"machine": machine}, *(_failure_line(p, f) for p, f in self.failures.items())]
        for index in sorted({t.round for t in self.timings}):
            kept += [_timing_line(t) for t in self.timings if t.round == index]
            kept.append({"complete": index})
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))

    @property
    def next_round(self) -> int:
        """Index of the first round that is not in the journal."""
        return 1 + max((t.round for t in self.timings), default=-1)

    def add(self, timing: Timing) -> None:
        """Note a timing of the running round."""
        self.timings.append(timing)
        self._write(_timing_line(timing))

    def complete(self, round_index: int) -> None:
        """Note that every point of the round has been timed (or has failed)."""
        self._write({"complete": round_index})

    def fail(self, point: Point, failure: Failure) -> None:
        """Note that `point` has no value; the first reason stands."""
        if point not in self.failures:
            self.failures[point] = failure
            self._write(_failure_line(point, failure))

    def _write(self, line: dict[str, Any]) -> None:
        # Closing hands the line to the system: it survives the death of this process.
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _replay(self, lines: list[dict[str, Any]]) -> None:
        running: list[Timing] = []
        for line in lines:
            if "complete" in line:
                self.timings += running
                running = []
            elif "status" in line:
                self.failures[Point(**line["point"])] = Failure(line["status"], line["reason"])
            else:
                running.append(_timing_from(line))


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines up to the first that is torn; writing stopped there."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_bytes().split(b"\n")[:-1]:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _timing_line(timing: Timing) -> dict[str, Any]:
    return asdict(timing)


def _failure_line(point: Point, failure: Failure) -> dict[str, Any]:
    return {"point": asdict(point), **asdict(failure)}


def _timing_from(line: dict[str, Any]) -> Timing:
    return Timing(
        **{
            **line,
            "point": Point(**line["point"]),
            "durations": tuple(line["durations"]),
            "tokens": tuple(line["tokens"]),
        }
    )
