"""The tables of a task as text: which rows and columns each has, and how values are written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from bench.parallelism import rising_title, sweeps
from bench.results import DIAGNOSTIC, Cell, Estimate, TaskResults, quality_metric
from bench.subsets import POSITION, Subset, tag_title

MISSING = "–"
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
PARTS = {
    "tokenise": "Tokenise",
    "features": "Features",
    "decode": "Decode",
    "detokenise": "Detokenise",
    "end_to_end": "End to end",
}

AUDIO_TO_TEXT = "From the end of the audio to text"
"""What the parts of speech add up to: nothing is computed before an utterance has ended."""
SCOPES = {"decode": "decoding", "end_to_end": "end to end"}
"""What real-time factors count, by part."""

Format = Callable[[float], str]


class Notes:
    """Footnotes of a table, numbered in the order of their first use."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        """Return the superscript number of the note `text`."""
        if text not in self.texts:
            self.texts.append(text)
        return str(self.texts.index(text) + 1).translate(_SUPERSCRIPT)

    @property
    def lines(self) -> list[str]:
        """The notes, each after its number."""
        return [f"{str(i).translate(_SUPERSCRIPT)} {text}" for i, text in enumerate(self.texts, 1)]


@dataclass(frozen=True)
class Sheet:
    """A table as text: the first `num_names` columns are names, the others numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]
    num_names: int

    def without_empty_columns(self) -> Sheet:
        """Drop the columns of numbers in which no row has a value."""
        kept = [i for i in range(len(self.header)) if i < self.num_names or any(r[i] != MISSING for r in self.rows)]
        return Sheet(
            self.title, [self.header[i] for i in kept], [[row[i] for i in kept] for row in self.rows], self.num_names
        )


def significant(value: float) -> str:
    """Format with three significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def fixed(decimals: int) -> Format:
    """Return a format with this many decimals."""
    return lambda value: f"{value:.{decimals}f}"


def count(value: float) -> str:
    """Format a large number: 1.23 M."""
    for factor, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor:
            return significant(value / factor) + suffix
    return f"{value:.0f}"


def show(estimate: Estimate, form: Format = significant, notes: Notes | None = None) -> str:
    """Format a value: `97.2 [95.8, 98.6]` with its interval, `97.2 (96.8–97.9)` with its spread over seeds.

    A missing one is its status or a dash, with its reason as a footnote.
    """
    if estimate.value is None:
        text = MISSING if estimate.status == "ok" else estimate.status
        return text + (notes.mark(estimate.reason) if notes and estimate.reason else "")
    if estimate.spread is not None:
        return f"{form(estimate.value)} ({form(estimate.spread[0])}–{form(estimate.spread[1])})"
    if estimate.bounds is not None:
        return f"{form(estimate.value)} [{form(estimate.bounds[0])}, {form(estimate.bounds[1])}]"
    return form(estimate.value)


def heading(metric: str) -> str:
    """Return the heading of a quality metric: title, unit and an arrow to where better is."""
    info = quality_metric(metric)
    arrow = {True: " ↓", False: " ↑", None: ""}[info.lower_is_better]
    return f"{info.title}{f' ({info.unit})' if info.unit else ''}{arrow}"


def _names(cell: Cell) -> list[str]:
    return [cell.system, cell.family, cell.data, cell.settings or "default"]


def status(cell: Cell, notes: Notes | None = None) -> str:
    """Return `ok`, or what failed (`oom at batch 32`), with the reasons as footnotes."""
    marks = [
        f"{p.status} {p.where}".strip() + (notes.mark(p.reason) if notes and p.reason else "") for p in cell.problems
    ]
    return "; ".join(dict.fromkeys(marks)) or "ok"


def task_sheets(task: TaskResults, notes: Notes) -> list[Sheet]:
    """Return the tables of one task: an overview, then what does not fit there, and the models' training."""
    names = ["System", "Family", "Trained on", "Settings"]
    sheets = (
        _overview(task, names, notes),
        *_by_subset(task, names, notes),
        _speedups(task, names, notes),
        _latency(task, names, notes),
        _cost(task, names, notes),
        _parallelism(task),
        _diagnostics(task, names, notes),
        _by_seed(task),
        _training(task, notes),
    )
    full = (sheet.without_empty_columns() for sheet in sheets)
    return [sheet for sheet in full if sheet.rows and sheet.header[sheet.num_names :]]


def _overview(task: TaskResults, names: list[str], notes: Notes) -> Sheet:
    seeds = any(len(cell.seeds) > 1 for cell in task.cells)
    failed = any(cell.problems for cell in task.cells)
    header = names + ["Seeds"] * seeds + ["Status"] * failed
    first = [(reference, size) for reference in task.references[:1] for size in task.speedup_batch_sizes()]
    real_time = [(size, part) for part in SCOPES for size in task.real_time_batch_sizes]
    rows = []
    for cell in task.cells:
        row = _names(cell) + [", ".join(map(str, cell.seeds))] * seeds + [status(cell, notes)] * failed
        row += [quality(cell, metric, notes) for metric in task.ranking]
        row += [show(cell.get("real_time_factor", size, part), significant, notes) for size, part in real_time]
        row += [show(cell.get("tokens_per_second", size), significant, notes) for size in task.batch_sizes]
        row += [show(task.speedup(cell, *point), fixed(2), notes) for point in first]
        rows.append(row)
    numbers = [heading(metric) for metric in task.ranking]
    numbers += [f"Real-time factor ↓, {SCOPES[part]}, batch {size}" for size, part in real_time]
    numbers += [f"Tokens/s, batch {size}" for size in task.batch_sizes]
    numbers += [f"Speed-up over {reference}, batch {size}" for reference, size in first]
    return Sheet("Quality and speed", header + numbers, rows, len(header))


def _by_subset(task: TaskResults, names: list[str], notes: Notes) -> list[Sheet]:
    """A table for each metric and tag; where in references errors are is a matter for a figure."""
    sheets = []
    for (metric, tag), subsets in task.subsets.items():
        if tag != POSITION:
            form = fixed(quality_metric(metric).decimals)
            rows = [_names(c) + [show(c.get(metric, subset=name), form, notes) for name in subsets] for c in task.cells]
            header = names + [Subset.parse(name).range for name in subsets]
            sheets.append(Sheet(f"{heading(metric)} by {tag_title(tag)}", header, rows, len(names)))
    return sheets


def _diagnostics(task: TaskResults, names: list[str], notes: Notes) -> Sheet:
    metrics = [metric for metric in task.quality if metric in DIAGNOSTIC]
    rows = [_names(cell) + [quality(cell, metric, notes) for metric in metrics] for cell in task.cells]
    return Sheet("What the outputs look like", names + [heading(metric) for metric in metrics], rows, len(names))


def quality(cell: Cell, metric: str, notes: Notes | None = None) -> str:
    """Format a quality metric of `cell`."""
    return show(cell.get(metric), fixed(quality_metric(metric).decimals), notes)


def _speedups(task: TaskResults, names: list[str], notes: Notes) -> Sheet:
    others = task.references if len(task.references) > 1 else []  # the overview has the first
    points = [(reference, size) for reference in others for size in task.speedup_batch_sizes()]
    header = [f"Over {reference}, batch {size}" for reference, size in points]
    rows = [
        _names(cell) + [show(task.speedup(cell, *point), fixed(2), notes) for point in points] for cell in task.cells
    ]
    return Sheet("Speed-up over each AR reference", names + header, rows, len(names))


def _latency(task: TaskResults, names: list[str], notes: Notes) -> Sheet:
    percentiles = ("p50", "p90", "p95", "p99")
    parts, latency = (PARTS | {"end_to_end": AUDIO_TO_TEXT}, "Decoding") if task.is_speech else (PARTS, "Latency")
    header = [f"{latency} {p} (ms)" for p in percentiles] + [f"{title} (ms)" for title in parts.values()]
    header += ["Encoder passes", "Decoder passes", "Companion passes", "Tokens/decoder pass", "Iterations"]
    rows = []
    for cell in task.cells:
        row = [show(cell.smallest_batch(f"latency_{p}"), significant, notes) for p in percentiles]
        row += [show(cell.smallest_batch("seconds_per_sentence", part), significant, notes) for part in PARTS]
        for metric in ("encoder_passes", "decoder_passes", "companion_passes", "tokens_per_pass", "iterations"):
            row.append(show(cell.smallest_batch(metric), significant, notes))
        rows.append(_names(cell) + row)
    return Sheet("Latency, time of each part and passes, at the smallest batch size", names + header, rows, len(names))


def _cost(task: TaskResults, names: list[str], notes: Notes) -> Sheet:
    """What a token costs in arithmetic and memory traffic, and how near its time is to what they must take."""
    metrics = {
        "flops_per_token": ("FLOPs/token", count),
        "bytes_per_token": ("Bytes moved/token", count),
        "roofline_fraction": ("Share of the roofline (%)", significant),
    }
    points = [(metric, size) for metric in metrics for size in task.batch_sizes]
    header = [f"{metrics[metric][0]}, batch {size}" for metric, size in points]
    rows = [
        _names(cell) + [show(cell.get(metric, size), metrics[metric][1], notes) for metric, size in points]
        for cell in task.cells
    ]
    return Sheet("Cost and roofline", names + header, rows, len(names))


def _parallelism(task: TaskResults) -> Sheet:
    """One number for each trained model with several settings, or one that differs from a token a pass."""
    rows = [
        [s.system, s.family, s.data, str(len(s.points)), fixed(1)(s.points[0].tokens_per_pass),
         fixed(1)(s.points[-1].tokens_per_pass), fixed(0)(s.aup)]
        for s in sweeps(task)
    ]  # fmt: skip
    aup = "AUP ↑"
    if task.headline is not None and quality_metric(task.headline).lower_is_better:
        aup = f"AUP of {rising_title(task.headline)} ↑"
    header = ["System", "Family", "Trained on", "Settings", "Tokens/pass, least", "Tokens/pass, most", aup]
    return Sheet("Accuracy under parallelism (AUP)", header, rows, 3)


def _by_seed(task: TaskResults) -> Sheet:
    """Each seed's own values with bootstrap intervals, where a cell has several seeds."""
    rows = []
    for cell in task.cells:
        for seed in cell.seeds if len(cell.seeds) > 1 else []:
            own = Cell([r for r in cell.records if r.seed == seed])
            rows.append([*_names(cell), str(seed), *(quality(own, m) for m in task.ranking)])
    header = ["System", "Family", "Trained on", "Settings", "Seed"]
    return Sheet("Quality by training seed", header + [heading(m) for m in task.ranking], rows, len(header))


def _training(task: TaskResults, notes: Notes) -> Sheet:
    columns: dict[str, tuple[str, Format]] = {
        "parameters": ("Parameters", count),
        "train_tokens": ("Target tokens trained on", count),
        "train_minutes": ("Training (min)", significant),
        "train_tokens_per_second": ("Training tokens/s", significant),
        "infeasible_pairs": ("Infeasible pairs (%)", significant),
        "unknown_targets": ("Targets with unknown words, left out (%)", significant),
    }
    header = ["System", "Family", "Trained on", *(title for title, _ in columns.values())]
    rows = [
        [m.system, m.family, m.data, *(show(m.get(name), form, notes) for name, (_, form) in columns.items())]
        for m in task.models
    ]
    return Sheet("Models and their training", header, rows, 3)
