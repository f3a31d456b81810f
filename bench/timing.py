"""The clock of the speed measurement: what a timing is, when to stop, in which order to time. No torch.

Systems are interleaved: a round times every point (a cell at a batch size) once, on the same inputs, in an order of
its own, so that a drift of the machine hits all points alike and times of one round can be compared in pairs.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from bench.configs import SpeedConfig

Clock = Callable[[], int]
"""Monotonic nanoseconds."""

Input = TypeVar("Input")
Output = TypeVar("Output")

WARM_UP_CAP = 10
WARM_UP_TOLERANCE = 0.10


@dataclass(frozen=True, order=True)
class Point:
    """What is timed: a cell at a batch size."""

    cell: str
    batch_size: int


@dataclass(frozen=True)
class Timing:
    """One point timed once over the whole sample of sentences."""

    round: int
    point: Point
    durations: tuple[int, ...]
    """Nanoseconds of each batch, in the order of the sample."""
    tokens: tuple[int, ...]
    """Emitted target tokens of each batch."""
    tied: int = 0
    """Sentences whose output differs from the scored one at an equal score."""
    wall: float = 0.0
    """Seconds from before the first batch to after the last."""
    foreign: float | None = None
    """CPU seconds that other processes used in that time; None where the system does not tell."""
    peak_memory: int | None = None
    """Largest number of device bytes held, the model's own weights included; None on CPU."""
    parts: dict[str, int] = field(default_factory=dict)
    """Nanoseconds over the sample for what surrounds decoding (tokenise or features, detokenise), where timed."""

    @property
    def nanoseconds(self) -> int:
        """Time of the whole sample."""
        return sum(self.durations)


def time_each(
    work: Callable[[Input], Output], inputs: Iterable[Input], clock: Clock, synchronise: Callable[[], None]
) -> tuple[list[int], list[Output]]:
    """Return the nanoseconds that `work` takes on each input, and its outputs.

    The device is synchronised before and after each, so that nothing queued earlier is charged to it and nothing that
    it queued escapes; the garbage collector is off, so that no collection falls on one system by chance.
    """
    durations, outputs = [], []
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for item in inputs:
            synchronise()
            start = clock()
            output = work(item)
            synchronise()
            durations.append(clock() - start)
            outputs.append(output)
    finally:
        if was_enabled:
            gc.enable()
    return durations, outputs


def warm_up(once: Callable[[], int], cap: int = WARM_UP_CAP, tolerance: float = WARM_UP_TOLERANCE) -> list[int]:
    """Call `once` (which returns its nanoseconds) until two consecutive times differ by less than `tolerance`.

    At least two calls, at most `cap`. Returns the times.
    """
    times = [once()]
    while len(times) < cap:
        times.append(once())
        if abs(times[-1] - times[-2]) < tolerance * times[-2]:
            break
    return times


def round_order(points: Sequence[Point], round_index: int, seed: int = 1) -> list[Point]:
    """Return `points` in the random order of one round; the same for the same round, whether or not it is resumed."""
    order = sorted(points)
    random.Random(f"{seed}/{round_index}").shuffle(order)
    return order


def due(points: Sequence[Point], timings: Iterable[Timing], config: SpeedConfig) -> list[Point]:
    """Return the points that the next round times; none means that the measurement is complete.

    A batch size stays in the rounds, with all its cells so that pairs are complete, until each of its cells has
    `min_runs` rounds and `min_seconds`. Past `max_seconds` in all, `min_runs` rounds are enough.
    """
    rounds = dict.fromkeys(points, 0)
    spent = dict.fromkeys(points, 0)
    total = 0
    for timing in timings:
        total += timing.nanoseconds
        if timing.point in rounds:
            rounds[timing.point] += 1
            spent[timing.point] += timing.nanoseconds
    least = 0.0 if total >= config.max_seconds * 1e9 else config.min_seconds * 1e9
    open_sizes = {p.batch_size for p in points if rounds[p] < config.min_runs or spent[p] < least}
    return [p for p in points if p.batch_size in open_sizes]


def share_done(points: Sequence[Point], timings: Iterable[Timing], config: SpeedConfig) -> float:
    """Return how much of the least measurement is done, 0-1."""
    if not points:
        return 1.0
    rounds = dict.fromkeys(points, 0)
    spent = dict.fromkeys(points, 0.0)
    for timing in timings:
        if timing.point in rounds:
            rounds[timing.point] += 1
            spent[timing.point] += timing.nanoseconds / 1e9
    shares = [
        min(1.0, rounds[p] / config.min_runs, spent[p] / config.min_seconds if config.min_seconds else 1.0)
        for p in points
    ]
    return sum(shares) / len(shares)
