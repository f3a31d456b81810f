"""Accuracy under parallelism (AUP; d3LLM, 2025): how much quality a system keeps as it decodes in fewer passes.

It needs no clock, so it is the same on every machine. Its first term is the slowest setting's tokens per pass times its
quality, without a weight: systems compare only where their sweeps start at about as many tokens per pass, and another
setting at the slow end lowers a system's AUP. Passes are the system's own: those of a teacher or draft do not count.

AUP needs a quality that rises. Where the headline metric is an error rate, it is what the rate leaves: 100 - WER, for
instance, but never less than 0.

Deviation: the curve ends at the first setting that loses too much; d3LLM's code leaves such settings out and goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.results import Cell, TaskResults, quality_metric

TOLERATED_LOSS = 5.0
"""Points of quality below the slowest setting at which a faster one no longer counts."""
STEEPNESS = 3.0
ACCURACIES = {"wer": "word accuracy", "cer": "character accuracy", "ser": "sentence accuracy"}
"""What error rates leave of 100 %."""


@dataclass(frozen=True)
class SweepPoint:
    """One setting of a trained model."""

    cell: Cell
    passes: float
    """Decoder passes per sentence."""
    tokens_per_pass: float
    quality: float
    """The task's headline metric, or what an error rate leaves, 0-100 (see `rising`)."""


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


def rising(metric: str, value: float) -> float:
    """Return a quality that rises as systems get better: `value` itself, or what an error rate in % leaves of 100."""
    return max(0.0, 100.0 - value) if quality_metric(metric).lower_is_better else value


def rising_title(metric: str) -> str:
    """Return what that which `rising` gives for `metric` is called."""
    info = quality_metric(metric)
    return ACCURACIES.get(metric, f"100 − {info.title}") if info.lower_is_better else info.title


def sweeps(task: TaskResults) -> list[Sweep]:
    """Return the sweep of every trained model that has quality and passes, in the order of the records."""
    if task.headline is None:
        return []
    grouped: dict[tuple[str, str], list[SweepPoint]] = {}
    for cell in task.cells:
        quality = cell.get(task.headline).value
        rate = cell.smallest_batch("tokens_per_pass").value
        passes = cell.smallest_batch("decoder_passes").value
        if quality is not None and rate is not None and passes is not None:
            point = SweepPoint(cell, passes, rate, rising(task.headline, quality))
            grouped.setdefault((cell.system, cell.data), []).append(point)
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
