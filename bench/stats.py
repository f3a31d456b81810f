"""Intervals by the percentile bootstrap (Efron & Tibshirani 1993, ch. 13), and which percentiles a sample carries.

Corpus metrics are functions of sums over sentences (edit counts, n-gram matches, lengths). Resampling sentences is
therefore resampling rows of sufficient statistics, and one matrix product gives all resampled sums at once. Two calls
with the same seed and the same number of rows draw the same resamples, so that metrics and systems that were measured
on the same sentences are resampled alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]
Statistic: TypeAlias = Callable[[FloatArray], FloatArray]
"""Maps sums [r, k] of per-item statistics to values [r]; NaN where the value is undefined."""

MIN_SAMPLES = {50: 7, 90: 64, 95: 130, 99: 662}
"""Percentile -> least sample size that carries it, at 99 % confidence (see `percentile_supported`)."""

_CHUNK_ELEMENTS = 1 << 20  # indices drawn at once: bounds memory to tens of MiB however large the sample is


@dataclass(frozen=True)
class Interval:
    """Bounds of a confidence interval, both included."""

    low: float
    high: float


def ratio(sums: FloatArray) -> FloatArray:
    """Return the ratio of the first to the second column of [r, 2]; NaN where the second is zero."""
    values = np.full(len(sums), np.nan)
    np.divide(sums[:, 0], sums[:, 1], out=values, where=sums[:, 1] != 0)
    return values


def bootstrap_interval(
    items: npt.ArrayLike,
    statistic: Statistic,
    *,
    rng: np.random.Generator | int,
    samples: int = 1000,
    confidence: float = 0.95,
) -> Interval | None:
    """Return the percentile bootstrap interval of a statistic of summed items.

    Args:
        items: [n, k] sufficient statistics, one row per sentence, utterance or round.
        statistic: function of the summed rows, for many sums at once.
        rng: generator, or seed of one.
        samples: resamplings; 0 gives no interval.
        confidence: share of the resampled values that the interval covers.

    Returns:
        The interval, or None without resamplings, with fewer than two items (resampling one item would claim
        certainty), and where every resample leaves the statistic undefined. Undefined resamples are left out.

    Raises:
        ValueError: `items` is not a matrix of finite numbers, or an argument is out of range.
    """
    rows = np.asarray(items, dtype=np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError(f"items must be a matrix of finite numbers, not of shape {rows.shape} or with NaN or inf")
    generator = np.random.default_rng(rng)
    values = [
        # One bincount for the whole chunk: sample i counts its draws in the bins i * n .. i * n + n - 1.
        statistic(
            np.bincount(
                (draws + np.arange(len(draws))[:, None] * len(rows)).ravel(), minlength=len(draws) * len(rows)
            ).reshape(len(draws), len(rows))
            @ rows
        )
        for draws in _draws(len(rows), samples, generator)
    ]
    return _percentile_interval(values, confidence)


def bootstrap_quantile(
    values: npt.ArrayLike,
    q: float,
    *,
    rng: np.random.Generator | int,
    samples: int = 1000,
    confidence: float = 0.95,
) -> Interval | None:
    """Return the percentile bootstrap interval of the q-quantile (0 <= q <= 1) of a sample [n].

    Returns:
        The interval, or None without resamplings and with fewer than two values.

    Raises:
        ValueError: `values` is not a vector of finite numbers, or an argument is out of range.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not np.isfinite(sample).all():
        raise ValueError(f"values must be a vector of finite numbers, not of shape {sample.shape} or with NaN or inf")
    generator = np.random.default_rng(rng)
    quantiles = [np.quantile(sample[draws], q, axis=1) for draws in _draws(len(sample), samples, generator)]
    return _percentile_interval(quantiles, confidence)


def bootstrap_median(
    values: npt.ArrayLike, *, rng: np.random.Generator | int, samples: int = 1000, confidence: float = 0.95
) -> Interval | None:
    """Return the percentile bootstrap interval of the median of a sample [n]; see `bootstrap_quantile`."""
    return bootstrap_quantile(values, 0.5, rng=rng, samples=samples, confidence=confidence)


def percentile_supported(percentile: int, n: int) -> bool:
    """Return whether `n` measurements carry a latency percentile (50, 90, 95 or 99).

    A tail percentile is carried when, with 99 % confidence, at least two of the measurements lie above the true
    quantile: the reported value is then no mere extrapolation of the slowest run. The median asks for one above it.
    The number above is binomial(n, 1 - percentile / 100).

    Raises:
        ValueError: another percentile, or a negative `n`.
    """
    if percentile not in MIN_SAMPLES:
        raise ValueError(f"percentile {percentile} is not one of {', '.join(map(str, MIN_SAMPLES))}")
    if n < 0:
        raise ValueError(f"a sample cannot have {n} measurements")
    return n >= MIN_SAMPLES[percentile]


def _draws(n: int, samples: int, generator: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Yield `samples` resamples of `n` items in all, as chunks [c, n] of item numbers; none where n < 2."""
    if samples < 0:
        raise ValueError(f"the number of bootstrap samples must not be negative, but is {samples}")
    if n < 2:
        return
    chunk = max(1, _CHUNK_ELEMENTS // n)
    for start in range(0, samples, chunk):
        yield generator.integers(n, size=(min(chunk, samples - start), n))


def _percentile_interval(chunks: list[FloatArray], confidence: float) -> Interval | None:
    """Return the central interval that holds `confidence` of the defined values in `chunks`."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, but is {confidence}")
    values = np.concatenate(chunks) if chunks else np.empty(0)
    values = values[~np.isnan(values)]
    if not values.size:
        return None
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def paired_randomisation(
    baseline: npt.ArrayLike, candidate: npt.ArrayLike, statistic: Statistic, *, seed: int = 1, samples: int = 10_000
) -> float:
    """Return the two-sided p-value of approximate randomisation (Noreen 1989, Riezler & Maxwell 2005).

    If two systems are equally good, their outputs for a sentence can be exchanged: p is the share of random exchanges,
    sentence by sentence, that lead to a difference of at least the observed size; the observed one counts among them.

    Args:
        baseline: [n, k] sufficient statistics, a row per sentence.
        candidate: the other system's for the same sentences.
        statistic: function of the summed rows.
        seed: of the exchanges.
        samples: exchanges.

    Raises:
        ValueError: rows that do not pair, no rows, no samples, or a statistic that is undefined for one of the systems.
    """
    rows, others = (np.asarray(items, dtype=np.float64) for items in (baseline, candidate))
    if rows.ndim != 2 or rows.shape != others.shape or not len(rows):
        raise ValueError(f"rows of shape {rows.shape} and {others.shape} do not pair")
    if samples < 1:
        raise ValueError(f"the number of exchanges must be positive, but is {samples}")
    sums, difference = rows.sum(0), others - rows

    def gaps(shifts: FloatArray) -> FloatArray:
        """Return the absolute difference when `shifts` [r, k] have moved from the candidate to the baseline."""
        return np.abs(statistic(sums + difference.sum(0) - shifts) - statistic(sums + shifts))

    observed = gaps(np.zeros((1, rows.shape[1])))[0]
    if np.isnan(observed):
        raise ValueError("the statistic is undefined for one of the two")
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_ELEMENTS // len(rows))
    reached = 0
    for start in range(0, samples, chunk):
        exchanged = generator.random((min(chunk, samples - start), len(rows))) < 0.5
        # What is undefined is no evidence of a difference; rounding must not hide an equal one.
        reached += int((np.nan_to_num(gaps(exchanged @ difference), nan=np.inf) >= observed - 1e-9).sum())
    return (reached + 1) / (samples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for so many tests (Holm 1979): whoever rejects below a level errs at most so often."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
