"""Records grouped for presentation: one cell per task, system, training data and settings, over its training seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from bench.records import Record
from bench.subsets import Subset


@dataclass(frozen=True)
class Metric:
    """How a metric is called and read."""

    title: str
    unit: str = ""
    lower_is_better: bool | None = False
    """None: neither (a ratio whose ideal is 1)."""
    decimals: int = 1


# The same titles and directions as `bench.quality`, which is too slow to import for presenting.
QUALITY = {
    "exact_match": Metric("Exact match", "%"),
    "bleu": Metric("BLEU"),
    "chrf": Metric("chrF2"),
    "ter": Metric("TER", "%", lower_is_better=True),
    "wer": Metric("WER", "%", lower_is_better=True),
    "cer": Metric("CER", "%", lower_is_better=True),
    "ser": Metric("SER", "%", lower_is_better=True),
    "cer_substitutions": Metric("CER substitutions", "%", lower_is_better=True),
    "cer_deletions": Metric("CER deletions", "%", lower_is_better=True),
    "cer_insertions": Metric("CER insertions", "%", lower_is_better=True),
    "wer_substitutions": Metric("WER substitutions", "%", lower_is_better=True),
    "wer_deletions": Metric("WER deletions", "%", lower_is_better=True),
    "wer_insertions": Metric("WER insertions", "%", lower_is_better=True),
    "mixed_mode_rate": Metric("Mixed-mode rate", "%", lower_is_better=True),
    "repetition_rate": Metric("Repetition rate", "%", lower_is_better=True),
    "empty_rate": Metric("Empty outputs", "%", lower_is_better=True),
    "length_ratio": Metric("Length ratio", lower_is_better=None, decimals=3),
    "perplexity": Metric("Perplexity", lower_is_better=True, decimals=2),
    "token_accuracy": Metric("Token accuracy", "%"),
    "teacher_forced_accuracy": Metric("Teacher-forced token accuracy", "%"),
}
DIAGNOSTIC = (
    *("cer_substitutions", "cer_deletions", "cer_insertions"),
    *("wer_substitutions", "wer_deletions", "wer_insertions"),
    *("repetition_rate", "empty_rate", "length_ratio", "perplexity"),
    *("token_accuracy", "teacher_forced_accuracy"),
)
"""Quality metrics that describe outputs rather than rank systems: never a headline."""
MODEL = (
    "parameters",
    "train_tokens",
    "train_minutes",
    "train_tokens_per_second",
    "infeasible_pairs",
    "unknown_targets",
)
"""Values of a trained model, whatever its decoding settings."""
SPEED = (
    *("tokens_per_second", "sentences_per_second", "speedup", "seconds_per_sentence", "real_time_factor"),
    *("latency_p50", "latency_p90", "latency_p95", "latency_p99", "peak_memory", "foreign_cpu"),
    *("tied_outputs",),
    *("encoder_passes", "decoder_passes", "companion_passes"),
    *("tokens_per_pass", "aup", "iterations"),
    *("flops_per_token", "bytes_per_token", "roofline_fraction", "time_share"),
)


def quality_metric(name: str) -> Metric:
    """Return how to present the quality metric `name`; an unknown one goes by its own name."""
    return QUALITY.get(name, Metric(name))


@dataclass(frozen=True)
class Key:
    """Which value of a cell: everything that tells two records of one cell and seed apart."""

    metric: str
    batch_size: int | None = None
    part: str = ""
    reference: str = ""
    subset: str = ""


@dataclass(frozen=True)
class Estimate:
    """A value over the seeds of a cell. The interval of one seed and the spread over several are never mixed."""

    value: float | None = None
    """The value of the only seed, or the mean over seeds."""
    low: float | None = None
    high: float | None = None
    """95 % bootstrap interval; None over several seeds."""
    spread: tuple[float, float] | None = None
    """Smallest and largest value over the seeds, if there are several."""
    status: str = "ok"
    reason: str = ""
    """Why there is no value."""
    n: int | None = None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The spread over seeds, else the interval, else None: what an error bar shows."""
        if self.spread is not None:
            return self.spread
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Problem:
    """Why a cell lacks values."""

    status: str
    reason: str
    where: str
    """`at batch 32`, `seed 2`, or empty if it concerns the whole cell."""


class Cell:
    """All values of one system, trained on one kind of data and decoded with one set of settings."""

    def __init__(self, records: list[Record]) -> None:
        first = records[0]
        self.task, self.system, self.family = first.task, first.system, first.family
        self.data, self.settings = first.data, first.settings
        self.records = records

    @property
    def name(self) -> str:
        """`ctc (distilled) [beam=5]`; raw training data go without saying."""
        name = self.system if self.data != "distilled" else f"{self.system} (distilled)"
        return f"{name} [{self.settings}]" if self.settings else name

    @property
    def seeds(self) -> list[int]:
        """Training seeds, rising."""
        return sorted({r.seed for r in self.records if r.seed is not None})

    @cached_property
    def _index(self) -> dict[Key, list[Record]]:
        index: dict[Key, list[Record]] = {}
        for record in self.records:
            key = Key(record.metric, record.batch_size, record.part, record.reference, record.subset)
            same = index.setdefault(key, [])
            if any(other.seed == record.seed and other.split == record.split for other in same):
                raise ValueError(f"two records of {record.metric} for {self.name} on {self.task}, seed {record.seed}")
            same.append(record)
        return index

    @property
    def keys(self) -> list[Key]:
        """Which values there are, in the order of the records."""
        return list(self._index)

    def get(
        self, metric: str, batch_size: int | None = None, part: str = "", reference: str = "", subset: str = ""
    ) -> Estimate:
        """Return a value over the seeds; one without a value if it was not measured."""
        return self.estimate(Key(metric, batch_size, part, reference, subset))

    def smallest_batch(self, metric: str, part: str = "") -> Estimate:
        """Return `metric` at the smallest batch size that has it (or at none)."""
        sizes = [k.batch_size for k in self._index if k.metric == metric and k.part == part and not k.subset]
        return self.get(metric, min(sizes, key=lambda size: size or 0), part) if sizes else Estimate()

    def estimate(self, key: Key) -> Estimate:
        """Return the value at `key` over the seeds."""
        records = self._index.get(key, [])
        good = [(r, r.value) for r in records if r.value is not None]
        if not good:
            bad = next((r for r in records if r.status != "ok"), records[0] if records else None)
            return Estimate(status=bad.status, reason=bad.reason) if bad else Estimate()
        if len(good) == 1:
            record, value = good[0]
            return Estimate(value, record.ci_low, record.ci_high, n=record.n)
        values = [value for _, value in good]
        low, high = min(values), max(values)
        # A mean of equal floats may differ from them in its last bit, and bars of negative length cannot be drawn.
        return Estimate(min(max(fmean(values), low), high), spread=(low, high), n=good[0][0].n)

    @property
    def problems(self) -> list[Problem]:
        """What failed, each reason once."""
        bad: dict[tuple[str, str], list[Record]] = {}
        for record in self.records:
            if record.status != "ok":
                bad.setdefault((record.status, record.reason), []).append(record)
        return [Problem(*what, _scope(rows, len(self.seeds))) for what, rows in bad.items()]

    @property
    def why(self) -> str:
        """Why values are missing, in a line."""
        reasons = [f"{p.status} {p.where}".strip() + (f" ({p.reason})" if p.reason else "") for p in self.problems]
        return "; ".join(reasons) or "not measured"


def _scope(rows: list[Record], num_seeds: int) -> str:
    """Say what the failed `rows` of a cell have in common and other rows of it have not."""
    sizes = sorted({r.batch_size for r in rows if r.batch_size is not None})
    seeds = sorted({r.seed for r in rows if r.seed is not None})
    words = []
    if sizes and all(r.batch_size is not None for r in rows):
        words.append("at batch " + ", ".join(map(str, sizes)))
    if len(seeds) < num_seeds:
        words.append("seed " + ", ".join(map(str, seeds)))
    return " ".join(words)


class TaskResults:
    """All cells of one task, in the order of the records."""

    def __init__(self, records: list[Record]) -> None:
        self.name = records[0].task
        self.records = records
        groups: dict[tuple[str, str, str], list[Record]] = {}
        trained: dict[tuple[str, str], list[Record]] = {}
        for record in records:
            if record.metric in MODEL:
                trained.setdefault((record.system, record.data), []).append(record)
            else:
                groups.setdefault((record.system, record.data, record.settings), []).append(record)
        self.models = [Cell(rows) for rows in trained.values()]
        decoded = {key[:2] for key in groups}
        # A model that failed before anything was decoded still has a row of its own.
        lost = [rows for key, rows in trained.items() if key not in decoded]
        self.cells = [Cell(rows) for rows in (*groups.values(), *lost)]

    def model_of(self, cell: Cell) -> Cell | None:
        """Return the values of the trained model behind `cell`."""
        return next((m for m in self.models if (m.system, m.data) == (cell.system, cell.data)), None)

    @cached_property
    def is_speech(self) -> bool:
        """Whether sources are recordings: then times have been set against their duration, or should have been."""
        return any(r.metric == "real_time_factor" for r in self.records)

    @cached_property
    def real_time_batch_sizes(self) -> list[int]:
        """The smallest and the largest batch size that have a real-time factor."""
        sizes = sorted({r.batch_size for r in self.records if r.metric == "real_time_factor" and r.batch_size})
        return sizes if len(sizes) < 2 else [sizes[0], sizes[-1]]

    @cached_property
    def subsets(self) -> dict[tuple[str, str], list[str]]:
        """Names of the subsets that have values, in rising order, by metric and tag."""
        found: dict[tuple[str, str], dict[str, Subset]] = {}
        for record in self.records:
            if record.subset:
                subset = Subset.parse(record.subset)
                found.setdefault((record.metric, subset.tag), {})[record.subset] = subset
        return {key: sorted(names, key=names.__getitem__) for key, names in found.items()}

    @cached_property
    def batch_sizes(self) -> list[int]:
        """Batch sizes of the throughput measurement, rising."""
        return sorted({r.batch_size for r in self.records if r.metric == "tokens_per_second" and r.batch_size})

    @cached_property
    def references(self) -> list[str]:
        """The AR references of the speed-ups, in the order of the records."""
        return list(dict.fromkeys(r.reference for r in self.records if r.metric == "speedup" and r.reference))

    def speedup_batch_sizes(self) -> list[int]:
        """The smallest and the largest batch size that have speed-ups."""
        sizes = sorted({r.batch_size for r in self.records if r.metric == "speedup" and r.batch_size})
        return sizes if len(sizes) < 2 else [sizes[0], sizes[-1]]

    def referred(self, reference: str) -> Cell | None:
        """Return the cell that `reference` names; the one trained on raw data if it does not say."""
        named = [c for c in self.cells if reference in (c.name, c.system + (f" [{c.settings}]" if c.settings else ""))]
        return next((c for c in named if c.name == reference), named[0] if named else None)

    def speedup(self, cell: Cell, reference: str, batch_size: int) -> Estimate:
        """Return the speed-up of `cell`; a reference is once as fast as itself whether that was written or not."""
        found = cell.get("speedup", batch_size, reference=reference)
        if found.value is None and found.status == "ok" and cell is self.referred(reference):
            return Estimate(1.0)
        return found

    @cached_property
    def quality(self) -> list[str]:
        """Quality metrics, those that rank systems first, in the order of the records."""
        there = dict.fromkeys(
            record.metric
            for record in self.records
            if record.metric not in SPEED + MODEL and record.value is not None and not record.subset
        )
        return sorted(there, key=lambda name: name in DIAGNOSTIC)

    @property
    def ranking(self) -> list[str]:
        """The quality metrics that rank systems."""
        return [name for name in self.quality if name not in DIAGNOSTIC]

    @property
    def headline(self) -> str | None:
        """The metric that figures show."""
        return next(iter(self.ranking), None)

    @property
    def best_settings(self) -> list[Cell]:
        """For each system and kind of training data the cell with the best headline value, or else the first one."""
        groups: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault((cell.system, cell.data), []).append(cell)
        return [min(cells, key=self._rank) for cells in groups.values()]

    def _rank(self, cell: Cell) -> float:
        """Return a number of which less is better."""
        value = None if self.headline is None else cell.get(self.headline).value
        if value is None or self.headline is None:
            return math.inf
        return value if quality_metric(self.headline).lower_is_better else -value


def by_task(records: Iterable[Record]) -> list[TaskResults]:
    """Group `records` by task, in their order."""
    tasks: dict[str, list[Record]] = {}
    for record in records:
        tasks.setdefault(record.task, []).append(record)
    return [TaskResults(rows) for rows in tasks.values()]
