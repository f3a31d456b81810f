"""What a running suite shows: one live line per running step on a terminal, plain lines elsewhere.

Nothing here runs by itself. Displays change only when the runner tells them something, so that watching costs no CPU
while steps are timed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from bench.steps import Step

PLAIN_SECONDS = 30.0
"""A running step has a plain line at most this often."""
REDRAW_SECONDS = 0.5
REDRAW_SECONDS_TIMED = 4.0
STYLES = {"ok": "green", "skipped": "yellow", "failed": "red", "oom": "red", "timeout": "red"}


class Display(Protocol):
    """Is told what happens to the steps of a run."""

    def __enter__(self) -> Display:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""

    def begin(self, step: Step) -> None:
        """`step` is about to start."""

    def update(self, step: Step, report: Mapping[str, Any]) -> None:
        """`step` has reported `done` (share of its work, 0-1) and values."""

    def end(self, step: Step, status: str, reason: str, seconds: float) -> None:
        """`step` has ended, or will not be started."""

    def note(self, text: str) -> None:
        """Something else is worth a line."""


def make_display(console: Console) -> Display:
    """Return a live display on a terminal, plain lines in CI and where output goes to a file."""
    return LiveDisplay(console) if console.is_terminal and not os.environ.get("CI") else PlainDisplay(console)


@dataclass
class Line:
    """What is known of a running step."""

    began: float = field(default_factory=time.monotonic)
    first: tuple[float, float] | None = None
    """Time and share done of the first report: a resumed step does not begin at nothing."""
    done: float | None = None
    values: dict[str, Any] = field(default_factory=dict)

    def take(self, report: Mapping[str, Any], now: float) -> None:
        """Take in a report; values that it does not name stay."""
        values = {name: value for name, value in report.items() if name != "done"}
        self.values |= values
        if report.get("done") is not None:
            self.done = float(report["done"])
            if self.first is None:
                self.first = (now, self.done)

    def seconds_left(self, now: float) -> float | None:
        """Return the time left at the pace so far; None while that is unknown."""
        if self.first is None or self.done is None or self.done <= self.first[1]:
            return None
        return (now - self.first[0]) * (1 - self.done) / (self.done - self.first[1])

    def parts(self, now: float) -> list[str]:
        """Return share, values and time left as short texts."""
        texts = ["" if self.done is None else f"{100 * self.done:.0f} %"]
        texts.append("  ".join(_value(name, value) for name, value in self.values.items()))
        left = self.seconds_left(now)
        texts.append("" if left is None else f"{duration(left)} left")
        return texts


class PlainDisplay:
    """Lines with the time of day: at the start of a step, now and then, and at its end."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._lines: dict[tuple[str, str], Line] = {}
        self._shown: dict[tuple[str, str], float] = {}

    def __enter__(self) -> PlainDisplay:
        """Begin to show."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""

    def begin(self, step: Step) -> None:
        """Print that `step` starts."""
        self._lines[step.id] = Line()
        self._shown[step.id] = time.monotonic()
        self.note(f"{step.label}: started")

    def update(self, step: Step, report: Mapping[str, Any]) -> None:
        """Print how far `step` is, if its last line is old enough."""
        now = time.monotonic()
        line = self._lines[step.id]
        line.take(report, now)
        if now - self._shown[step.id] >= PLAIN_SECONDS:
            self._shown[step.id] = now
            self.note(f"{step.label}: " + "  ".join(filter(None, line.parts(now))))

    def end(self, step: Step, status: str, reason: str, seconds: float) -> None:
        """Print what became of `step`."""
        self._lines.pop(step.id, None)
        self.note(ending(step, status, reason, seconds))

    def note(self, text: str) -> None:
        """Print a line."""
        self.console.print(f"{datetime.now():%H:%M:%S} {text}", markup=False, highlight=False, soft_wrap=True)


class LiveDisplay:
    """One line per running step, redrawn in place; ended steps scroll away above them."""

    def __init__(self, console: Console) -> None:
        self.console = console
        # No refresh thread: it would wake up while steps are timed.
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._steps: dict[tuple[str, str], tuple[Step, Line]] = {}
        self._drawn = 0.0

    def __enter__(self) -> LiveDisplay:
        """Begin to show."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        self._live.stop()

    def begin(self, step: Step) -> None:
        """Add a line for `step`."""
        self._steps[step.id] = (step, Line())
        self._draw()

    def update(self, step: Step, report: Mapping[str, Any]) -> None:
        """Redraw, if the last time is long enough ago."""
        now = time.monotonic()
        self._steps[step.id][1].take(report, now)
        if now - self._drawn >= (REDRAW_SECONDS_TIMED if step.alone else REDRAW_SECONDS):
            self._draw()

    def end(self, step: Step, status: str, reason: str, seconds: float) -> None:
        """Print what became of `step` and take its line away."""
        self._steps.pop(step.id, None)
        text = ending(step, status, reason, seconds)
        self._live.update(self._table())  # shown by the printing
        self.console.print(f"[{STYLES[status]}]{escape(text)}[/]", highlight=False)

    def note(self, text: str) -> None:
        """Print a line above the live ones."""
        self.console.print(escape(text), highlight=False)

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        now = time.monotonic()
        table = Table.grid(padding=(0, 2))
        for step, line in self._steps.values():
            table.add_row(escape(step.label), *map(escape, line.parts(now)), f"[dim]{duration(now - line.began)}[/]")
        return table


def ending(step: Step, status: str, reason: str, seconds: float) -> str:
    """Return the line that says what became of a step."""
    if status == "ok":
        return f"{step.label}: done in {duration(seconds)}"
    return f"{step.label}: {status}: {reason}"


def duration(seconds: float) -> str:
    """Return a time span as `1:02:03`, `2:03`, or `0:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _value(name: str, value: Any) -> str:
    if name == "tokens_per_second":
        return f"{value:,.0f} tokens/s"
    if isinstance(value, str):
        return value
    return f"{name.replace('_', ' ')} {value:.3f}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
