"""Accuracy under parallelism (AUP; d3LLM, 2025): how much quality a system keeps as it decodes in fewer passes.

It needs no clock, so it is the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.results import Cell, TaskResults, quality_metric

TOLERATED_LOSS = 5.0
"""Points of quality below the slowest setting at which a faster one no longer counts."""
STEEPNESS = 3.0


@dataclass(frozen=True)
class SweepPoint:
    """One setting of a trained model."""

    cell: Cell
    passes: float
    """Decoder passes per sentence."""
    tokens_per_pass: float
    quality: float
    """The task's headline metric, 0-100."""


@dataclass(frozen=True)
class Sweep:
    """All settings of one system trained on one kind of data, by rising tokens per pass."""

    system: str
    family: str
    data: str
    points: tuple[SweepPoint, ...]
    aup: float

    @property
    def name(self) -> str:
        """`ctc (distilled)`; raw training data go without saying."""
        return self.system if self.data != "distilled" else f"{self.system} (distilled)"


def accuracy_under_parallelism(points: Iterable[tuple[float, float]], best: float) -> float:
    """Return the AUP of points (tokens per pass, quality 0-100), where `best` is the task's best quality.

    Of several points with equal tokens per pass the best counts. The curve ends before the first point whose quality
    is more than 5 below that of the slowest one.
    """
    by_rate: dict[float, float] = {}
    for rate, quality in points:
        by_rate[rate] = max(quality, by_rate.get(rate, -math.inf))
    ordered = sorted(by_rate.items())
    if not ordered or best <= 0:
        return 0.0

    def weighted(quality: float) -> float:
        return quality * min(math.exp(-STEEPNESS * (1 - quality / best)), 1.0)

    (rate, quality), *rest = ordered
    area, slowest = rate * quality, quality
    for next_rate, next_quality in rest:
        if next_quality < slowest - TOLERATED_LOSS:
            break
        area += 0.5 * (next_rate - rate) * (weighted(next_quality) + weighted(quality))
        rate, quality = next_rate, next_quality
    return area


def sweeps(task: TaskResults) -> list[Sweep]:
    """Return the sweep of every trained model that has quality and passes, in the order of the records.

    None for a task whose headline metric falls as systems get better: AUP is defined for quality.
    """
    if task.headline is None or quality_metric(task.headline).lower_is_better:
        return []
    grouped: dict[tuple[str, str], list[SweepPoint]] = {}
    for cell in task.cells:
        quality = cell.get(task.headline).value
        rate = cell.smallest_batch("tokens_per_pass").value
        passes = cell.smallest_batch("decoder_passes").value
        if quality is not None and rate is not None and passes is not None:
            grouped.setdefault((cell.system, cell.data), []).append(SweepPoint(cell, passes, rate, quality))
    best = max((point.quality for points in grouped.values() for point in points), default=0.0)
    return [
        Sweep(
            system,
            points[0].cell.family,
            data,
            tuple(sorted(points, key=lambda point: (point.tokens_per_pass, point.quality))),
            accuracy_under_parallelism([(p.tokens_per_pass, p.quality) for p in points], best),
        )
        for (system, data), points in grouped.items()
    ]


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return for each x the point with the highest y, by rising x: the line through a sweep."""
    best: dict[float, float] = {}
    for x, y in points:
        best[x] = max(y, best.get(x, -math.inf))
    return sorted(best.items())
