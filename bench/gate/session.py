"""One pair of processes for as long as it lives: warms points up, and times them in pairs."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine
from bench.gate.config import GateConfig
from bench.gate.pairs import Judgement, Pair, compare_in_turn
from bench.gate.turns import Checkout, Failures, Turns

BASELINE, CANDIDATE = 0, 1
"""The sides."""


@dataclass(frozen=True)
class TimedPoint:
    """A cell at a batch size."""

    cell: str
    batch_size: int


@dataclass
class Timed:
    """What one pair of processes gave."""

    judged: dict[TimedPoint, tuple[Judgement, list[Pair]]]
    failures: tuple[Failures, Failures]
    """By side."""
    foreign: float | None
    """Share of a CPU core, in %, that other processes used; None where the system does not tell."""


class Session:
    """Times points on both sides."""

    def __init__(self, config: GateConfig, rng: random.Random) -> None:
        """Time as `config` says, in orders that `rng` gives."""
        self.config, self.rng = config, rng
        self.count: dict[TimedPoint, int] = {}
        """Batches of one time."""
        self.order: dict[TimedPoint, list[int]] = {}
        """Of the batches."""

    def run(
        self,
        checkouts: Sequence[Checkout],
        description: Mapping[str, Any],
        points: Sequence[TimedPoint],
        log: Path,
        first: int = BASELINE,
    ) -> Timed:
        """Start a process for each checkout, baseline and candidate, and judge `points`.

        description: what both load (see `bench.gate.turn_worker`); log: what they print; first: the side that starts
        first.

        Raises:
            Died: a side cannot be started.
        """
        wanted = {point.cell for point in points}
        cells = [cell["id"] for cell in description["cells"]]
        turns = Turns(checkouts, description, log, [cell for cell in cells if cell not in wanted], first)
        try:
            before = machine.sample_cpu()
            live = [point for point in points if self._warm_up(turns, point)]
            judged = compare_in_turn(live, lambda *which: self._time_pair(turns, *which), self.config, self.rng)
            after = machine.sample_cpu()
        finally:
            turns.close()
        foreign = after.foreign_since(before)
        share = None if foreign is None else max(0.0, 100 * foreign / (after.wall - before.wall))
        return Timed(judged, turns.failures, share)

    def _warm_up(self, turns: Turns, point: TimedPoint) -> bool:
        """Decode some batches on both sides, and choose how many make a time; return whether both can."""
        replies = self._ask(turns, point, warm_up=True)
        if replies is None:
            return False
        shortest = min(reply["nanoseconds"] for reply in replies.values())
        batches = turns.batches[point.batch_size]
        self.count[point] = min(batches, math.ceil(self.config.milliseconds * 1e6 / shortest))
        self.order[point] = self.rng.sample(range(batches), batches)
        return True

    def _time_pair(self, turns: Turns, point: TimedPoint, number: int) -> Pair | None:
        """Decode the same batches on both sides; pair `number` goes on where the one before has ended."""
        order, count = self.order[point], self.count[point]
        which = [order[(number * count + i) % len(order)] for i in range(count)]
        replies = self._ask(turns, point, which=which)
        if replies is None:
            return None
        old, new = replies[BASELINE], replies[CANDIDATE]
        same = old["digest"] == new["digest"]
        tokens = (old["tokens"], new["tokens"])
        return Pair(old["nanoseconds"] / 1e9, new["nanoseconds"] / 1e9, new["sentences"], same, tokens)

    def _ask(self, turns: Turns, point: TimedPoint, **request: Any) -> dict[int, dict[str, Any]] | None:
        """Ask both sides, in random order; return their replies, or None if one of them cannot.

        If one cannot the other is asked all the same: whether it can says what the failure means.
        """
        replies = {}
        for side in self.rng.sample((BASELINE, CANDIDATE), 2):
            reply = turns.ask(side, point.cell, point.batch_size, **request)
            if reply is not None:
                replies[side] = reply
        return replies if len(replies) == 2 else None
