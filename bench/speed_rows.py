"""Turns raw timings into measurements: medians over rounds, percentiles over sentences, paired speed-ups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.journal import Failure
from bench.passes import ROLES, Observation
from bench.stats import (
    MIN_SAMPLES,
    FloatArray,
    Interval,
    bootstrap_interval,
    bootstrap_median,
    percentile_supported,
    ratio,
)
from bench.timing import Point, Timing

if TYPE_CHECKING:  # it loads torch
    from bench.roofline import Bound

Row = dict[str, Any]

BOOTSTRAP_SEED = 1
BOOTSTRAP_SAMPLES = 1000
LEAST_FOREIGN_SECONDS = 1.0
"""What must have been timed for the load by other processes to be told to 2 % of a core."""


@dataclass(frozen=True)
class Sample:
    """What a round decodes at a batch size."""

    sentences: int
    audio_seconds: float | None = None
    """Duration of its audio; None for text."""


@dataclass(frozen=True)
class Measured:
    """All that was measured."""

    cells: Sequence[dict[str, Any]]
    """Descriptions of the cells (id, label, seed)."""
    references: Sequence[str]
    """Ids of the cells that speed-ups are taken over."""
    points: Sequence[Point]
    samples: Mapping[int, Sample]
    """By batch size."""
    timings: Sequence[Timing]
    failures: dict[Point, Failure]
    observations: dict[str, Observation]
    """By cell."""
    bounds: dict[Point, Bound] = field(default_factory=dict)
    """What decoding must cost at the least, where it was counted."""
    shares: dict[Point, dict[str, float]] = field(default_factory=dict)
    """The parts of its time in %, where they were timed."""

    def of(self, point: Point) -> list[Timing]:
        """Return the timings of `point`, by round; none count of a point that has failed."""
        if point in self.failures:
            return []
        return sorted((t for t in self.timings if t.point == point), key=lambda t: t.round)


def measurements(measured: Measured) -> list[Row]:
    """Return the rows of every cell, in order; what failed has rows too, without values."""
    rows = []
    for cell in measured.cells:
        points = [p for p in measured.points if p.cell == cell["id"]]
        for point in points:
            rows += _point_rows(measured, point)
            rows += _speedup_rows(measured, cell, point)
        rows += _observed_rows(measured, cell["id"], measured.failures.get(points[0]))
    return rows


def _point_rows(measured: Measured, point: Point) -> list[Row]:
    make = _maker(point, measured.failures.get(point))
    timings = measured.of(point)
    sample = measured.samples[point.batch_size]
    seconds = np.array([t.nanoseconds / 1e9 for t in timings])
    tokens = np.array([sum(t.tokens) for t in timings])
    rows = [
        _median(make, "tokens_per_second", tokens / seconds, "tokens/s"),
        _median(make, "sentences_per_second", sample.sentences / seconds, "sentences/s"),
    ]
    if point.batch_size == 1:
        rows += _latency_rows(make, timings, sample.sentences)
        rows += _part_rows(make, sample, timings)
    rows += _real_time_rows(make, sample, timings, point)
    rows += _bound_rows(make, timings, measured.bounds.get(point))
    shares = measured.shares.get(point, {}) if timings else {}
    rows += [make("time_share", share, "%", part=part) for part, share in shares.items()]
    if timings:
        rows += [
            make("tied_outputs", max(t.tied for t in timings), "sentences", n=sample.sentences),
            _foreign_row(make, _around(measured, point)),
        ]
        peaks = [t.peak_memory for t in timings if t.peak_memory is not None]
        if peaks:
            rows.append(make("peak_memory", max(peaks) / 2**20, "MiB", n=len(peaks)))
    return rows


def _latency_rows(make: Callable[..., Row], timings: Sequence[Timing], num_sentences: int) -> list[Row]:
    """Percentiles over the pooled times of all sentences and rounds.

    Only distinct sentences count towards what carries a percentile, and the interval resamples sentences with all
    their rounds: a sentence timed again is not another sentence.
    """
    rows = []
    milliseconds = np.array([t.durations for t in timings]) / 1e6  # [rounds, sentences]
    for percentile, least in MIN_SAMPLES.items():
        name = f"latency_p{percentile}"
        if not timings:
            rows.append(make(name, None, "ms"))
        elif not percentile_supported(percentile, num_sentences):
            reason = f"needs {least} sentences, has {num_sentences}"
            rows.append(make(name, None, "ms", n=num_sentences, reason=reason))
        else:
            value = float(np.percentile(milliseconds, percentile))
            rows.append(make(name, value, "ms", _percentile_interval(milliseconds, percentile), n=num_sentences))
    return rows


def _percentile_interval(milliseconds: FloatArray, percentile: int) -> Interval:
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    num_sentences = milliseconds.shape[1]
    values = [
        np.percentile(milliseconds[:, generator.integers(num_sentences, size=num_sentences)], percentile)
        for _ in range(BOOTSTRAP_SAMPLES)
    ]
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def _part_rows(make: Callable[..., Row], sample: Sample, timings: Sequence[Timing]) -> list[Row]:
    """Mean time per sentence of decoding and of what surrounds it, and their sum."""
    return [
        _median(make, "seconds_per_sentence", nanoseconds / 1e6 / sample.sentences, "ms", part=part)
        for part, nanoseconds in _parts(sample, timings).items()
    ]


def _parts(sample: Sample, timings: Sequence[Timing]) -> dict[str, FloatArray]:
    """Return the nanoseconds of each part in each round, in the order in which a user waits for them, and their sum."""
    before = "tokenise" if sample.audio_seconds is None else "features"
    rounds = [{before: t.parts[before], "decode": t.nanoseconds, "detokenise": t.parts["detokenise"]} for t in timings]
    parts = {name: np.array([float(r[name]) for r in rounds]) for name in (before, "decode", "detokenise")}
    parts["end_to_end"] = np.array([float(sum(r.values())) for r in rounds])
    return parts


def _real_time_rows(make: Callable[..., Row], sample: Sample, timings: Sequence[Timing], point: Point) -> list[Row]:
    """Processing time over the duration of the audio: of decoding, and sentence by sentence of all parts together."""
    if sample.audio_seconds is None:
        return []
    scopes = {"decode": np.array([float(t.nanoseconds) for t in timings])}
    if point.batch_size == 1:
        scopes["end_to_end"] = _parts(sample, timings)["end_to_end"]
    return [
        _median(make, "real_time_factor", nanoseconds / 1e9 / sample.audio_seconds, "", part=part)
        for part, nanoseconds in scopes.items()
    ]


def _bound_rows(make: Callable[..., Row], timings: Sequence[Timing], bound: Bound | None) -> list[Row]:
    """Arithmetic and traffic of a token, and the share of the time that they would need, over the batches counted."""
    if bound is None or not timings:
        return []
    tokens = sum(timings[0].tokens[i] for i in bound.batches)
    seconds = np.array([sum(t.durations[i] for i in bound.batches) / 1e9 for t in timings])
    n = len(bound.batches)
    rows = [_median(make, "roofline_fraction", 100 * bound.seconds / seconds, "%")]
    if tokens:
        rows.append(make("flops_per_token", bound.flops / tokens, "", n=n))
        rows.append(make("bytes_per_token", bound.bytes / tokens, "B", n=n))
    return rows


def _around(measured: Measured, point: Point) -> list[Timing]:
    """Return timings long enough for the ticks of 10 ms in which systems count: the point's, or others' among them.

    Rounds interleave, so that what disturbed a short point disturbed all points of its batch size alike.
    """
    timings = [t for t in measured.timings if t.point not in measured.failures]
    for around in (
        [t for t in timings if t.point == point],
        [t for t in timings if t.point.batch_size == point.batch_size],
    ):
        if sum(t.wall for t in around) >= LEAST_FOREIGN_SECONDS:
            return around
    return timings


def _foreign_row(make: Callable[..., Row], timings: Sequence[Timing]) -> Row:
    used = [t.foreign for t in timings if t.foreign is not None]
    wall = sum(t.wall for t in timings)
    if len(used) < len(timings) or not wall:
        return make("foreign_cpu", None, "%", n=len(timings), reason="the system does not tell")
    return make("foreign_cpu", max(0.0, 100 * sum(used) / wall), "%", n=len(timings))


def _speedup_rows(measured: Measured, cell: dict[str, Any], point: Point) -> list[Row]:
    """Speed-up over each reference of the same training seed: how often its time fits, paired by round."""
    rows = []
    for reference in measured.cells:
        if reference["id"] not in measured.references or reference["seed"] != cell["seed"]:
            continue
        other = Point(reference["id"], point.batch_size)
        failure = measured.failures.get(point)
        lost = measured.failures.get(other)
        if failure is None and lost is not None:
            failure = Failure("skipped", f"{reference['label']}, the reference, has no value: {lost.status}")
        theirs = {t.round: t.nanoseconds for t in measured.of(other)}
        ratios = [theirs[t.round] / t.nanoseconds for t in measured.of(point) if t.round in theirs]
        make = _maker(point, failure)
        rows.append(_median(make, "speedup", np.array(ratios), "x", reference=reference["label"]))
    return rows


def _observed_rows(measured: Measured, cell: str, failure: Failure | None) -> list[Row]:
    observation = measured.observations.get(cell)
    make = _maker(Point(cell, 1), failure if observation is None else None)
    if observation is None:
        names = {
            "encoder_passes": "passes",
            "decoder_passes": "passes",
            "tokens_per_pass": "tokens",
            "iterations": "",
        }
        return [make(name, None, unit) for name, unit in names.items()]
    ones = np.ones(len(observation.tokens))
    rows = []
    for role in ROLES:
        counts = observation.passes.get(role)
        if counts is None and role == "companion":
            continue  # most systems have none
        if counts is None:
            rows.append(make(f"{role}_passes", None, "passes", reason=f"no {role} of the family can be seen"))
        else:
            rows.append(_ratio(make, f"{role}_passes", counts, ones, "passes"))
    decoder_passes = observation.passes.get("decoder")
    if not decoder_passes or not sum(decoder_passes):
        rows.append(make("tokens_per_pass", None, "tokens", reason="no decoder pass was seen"))
    else:
        rows.append(_ratio(make, "tokens_per_pass", observation.tokens, decoder_passes, "tokens"))
    return [*rows, _ratio(make, "iterations", observation.iterations, ones, "")]


def _ratio(
    make: Callable[..., Row], metric: str, above: Sequence[int], below: Sequence[int] | FloatArray, unit: str
) -> Row:
    """A ratio of sums over sentences; with ones below, a mean."""
    items = np.stack([np.asarray(above, dtype=float), np.asarray(below, dtype=float)], axis=1)
    interval = bootstrap_interval(items, ratio, rng=BOOTSTRAP_SEED, samples=BOOTSTRAP_SAMPLES)
    return make(metric, float(items[:, 0].sum() / items[:, 1].sum()), unit, interval, n=len(items))


def _median(make: Callable[..., Row], metric: str, values: FloatArray, unit: str, **more: str) -> Row:
    """The median over rounds with its interval."""
    if not len(values):
        return make(metric, None, unit, **more)
    interval = bootstrap_median(values, rng=BOOTSTRAP_SEED, samples=BOOTSTRAP_SAMPLES)
    return make(metric, float(np.median(values)), unit, interval, n=len(values), **more)


def _maker(point: Point, failure: Failure | None) -> Callable[..., Row]:
    """Return a function that makes rows of `point`; if it has failed they say so and have no value."""

    def make(
        metric: str,
        value: float | None,
        unit: str,
        interval: Interval | None = None,
        *,
        n: int | None = None,
        part: str = "",
        reference: str = "",
        reason: str = "",
    ) -> Row:
        good = failure is None
        return {
            "cell": point.cell,
            "metric": metric,
            "value": value if good else None,
            "unit": unit,
            "ci_low": interval.low if interval and good else None,
            "ci_high": interval.high if interval and good else None,
            "n": n if good else None,
            "batch_size": point.batch_size,
            "part": part,
            "reference": reference,
            "status": "ok" if failure is None else failure.status,
            "reason": reason if failure is None else failure.reason,
        }

    return make
