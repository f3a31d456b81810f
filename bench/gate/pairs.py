"""When times that two checkouts took for the same work, in turn, say that one has become slower.

Each pair gives the logarithm of a ratio; what stands is their median with a 99 % bootstrap interval. A drift of the
machine hits both of a pair alike, and a single disturbed time moves no median.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from bench.gate.config import GateConfig
from bench.gate.verdicts import Verdict
from bench.stats import bootstrap_median

CONFIDENCE = 0.99
SAMPLES = 2000
OTHER_LENGTH = 0.02
"""Outputs whose tokens differ in number by a larger share are other work, and their times do not compare."""

Point = TypeVar("Point", bound=Hashable)


@dataclass(frozen=True)
class Pair:
    """What the same sentences took on both sides."""

    baseline: float
    """Seconds."""
    candidate: float
    """Seconds."""
    sentences: int
    same: bool = True
    """Whether the outputs were the same."""
    tokens: tuple[int, int] = (1, 1)
    """Target tokens that the baseline and the candidate emitted."""


@dataclass(frozen=True)
class Judgement:
    """What pairs say of a candidate's throughput."""

    verdict: Verdict
    ratio: float
    """The candidate's throughput over the baseline's: the median of the pairs."""
    low: float
    high: float
    pairs: int
    note: str = ""


def judge(pairs: Sequence[Pair], slowdown: float) -> Judgement:
    """Judge a fall of throughput by more than `slowdown` %; at least two pairs.

    It is a regression if the whole interval lies beyond that, and none if the whole interval does not. Outputs of
    another length are not compared.
    """
    logs = [math.log(pair.baseline / pair.candidate) for pair in pairs]
    interval = bootstrap_median(logs, rng=1, samples=SAMPLES, confidence=CONFIDENCE)
    if interval is None:
        raise ValueError(f"{len(pairs)} pairs give no interval")
    ratio, low, high = (math.exp(value) for value in (median(logs), interval.low, interval.high))
    least = 1 - slowdown / 100
    if high < least:
        verdict = Verdict.REGRESSED
    elif low < least:
        verdict = Verdict.INCONCLUSIVE
    else:
        verdict = Verdict.IMPROVED if low > 1 / least else Verdict.OK
    old, new = (sum(numbers) for numbers in zip(*(pair.tokens for pair in pairs), strict=True))
    if abs(new - old) > OTHER_LENGTH * old:
        note = f"outputs have {new} tokens, not {old}: other work, whose times do not compare"
        return Judgement(Verdict.DISJOINT, ratio, low, high, len(pairs), note)
    return Judgement(verdict, ratio, low, high, len(pairs))


def compare_in_turn(
    points: Sequence[Point],
    time_pair: Callable[[Point, int], Pair | None],
    config: GateConfig,
    rng: random.Random,
) -> dict[Point, tuple[Judgement, list[Pair]]]:
    """Time pairs of all points in rounds, in an order that is random each time, until each can be judged.

    Args:
        points: what to time.
        time_pair: times a point on both sides, given the number of the round; None if it cannot be timed (any more),
            and then the point is not among the results.
        config: how many pairs to take before judging, and what a regression is.
        rng: gives the orders.
    """
    pairs: dict[Point, list[Pair]] = {point: [] for point in points}
    judged: dict[Point, Judgement] = {}
    done = 0
    for target in config.pairs:
        for number in range(done, target):
            for point in rng.sample(list(pairs), len(pairs)):
                if point in judged and judged[point].verdict is not Verdict.INCONCLUSIVE:
                    continue
                pair = time_pair(point, number)
                if pair is None:
                    del pairs[point]
                else:
                    pairs[point].append(pair)
        done = target
        judged = {point: judge(those, config.slowdown) for point, those in pairs.items()}
        if not any(judgement.verdict is Verdict.INCONCLUSIVE for judgement in judged.values()):
            break
    return {point: (judged[point], pairs[point]) for point in points if point in pairs}
