"""Tables from records: Markdown and CSV files in the results folder, and a short one for the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.protocol import protocol, signatures
from bench.records import Record, read_records
from bench.results import DIAGNOSTIC, Cell, Estimate, Key, TaskResults, by_task, quality_metric
from bench.store import write_atomically

MISSING = "–"
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
PARTS = {"tokenise": "Tokenise", "decode": "Decode", "detokenise": "Detokenise", "end_to_end": "End to end"}

Format = Callable[[float], str]


def write_tables(results_dir: Path) -> list[Path]:
    """Write `table.md` and `table.csv` next to the `records.csv` that they are made from.

    Raises:
        ValueError: `records.csv` is no complete table of records.
    """
    records = read_records(results_dir / "records.csv")
    markdown, csv = results_dir / "table.md", results_dir / "table.csv"
    write_atomically(markdown, render_markdown(records))
    write_atomically(csv, build_tables(records).to_csv(index=False, lineterminator="\n"))
    return [markdown, csv]


def build_tables(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row per cell with every value that was measured.

    A value has the column `metric`, `metric@batch`, `metric:part@batch` or `metric@batch vs reference`, and beside it
    `... low` and `... high` for the interval of a single seed, `... min` and `... max` for the spread over several.
    Columns without any value are left out.
    """
    rows = []
    for task in by_task(records):
        for cell in task.cells:
            status = "; ".join(dict.fromkeys(f"{p.status} {p.where}".strip() for p in cell.problems)) or "ok"
            row: dict[str, object] = {
                "suite": cell.records[0].suite, "task": task.name, "system": cell.system, "family": cell.family,
                "data": cell.data, "settings": cell.settings, "seeds": " ".join(map(str, cell.seeds)),
                "status": status, "reason": "; ".join(p.reason for p in cell.problems),
            }  # fmt: skip
            for owner in dict.fromkeys((task.model_of(cell), cell)):
                for key in owner.keys if owner else ():
                    row.update(_columns(key, owner.estimate(key)))
            rows.append(row)
    return pd.DataFrame(rows)


def _columns(key: Key, estimate: Estimate) -> dict[str, float]:
    name = f"{key.metric}:{key.part}" if key.part else key.metric
    name += f"@{key.batch_size}" if key.batch_size is not None else ""
    name += f" vs {key.reference}" if key.reference else ""
    low, high = estimate.spread or (None, None)
    values = {"": estimate.value, " low": estimate.low, " high": estimate.high, " min": low, " max": high}
    return {name + suffix: value for suffix, value in values.items() if value is not None}


class Notes:
    """Footnotes of a table, numbered in the order of their first use."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        """Return the superscript number of the note `text`."""
        if text not in self.texts:
            self.texts.append(text)
        return str(self.texts.index(text) + 1).translate(_SUPERSCRIPT)


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


def _status(cell: Cell, notes: Notes) -> str:
    marks = [
        f"{p.status}{f' {p.where}' if p.where else ''}{notes.mark(p.reason) if p.reason else ''}" for p in cell.problems
    ]
    return "; ".join(marks) or "ok"


def task_sheets(task: TaskResults, notes: Notes) -> list[Sheet]:
    """Return the tables of one task: an overview, then what does not fit there, and the models' training."""
    names = ["System", "Family", "Trained on", "Settings"]
    return [
        sheet.without_empty_columns()
        for sheet in (
            _overview(task, names, notes),
            _speedups(task, names, notes),
            _latency(task, names, notes),
            _diagnostics(task, names, notes),
            _by_seed(task),
            _training(task, notes),
        )
        if sheet.rows and sheet.header[sheet.num_names :]
    ]


def _overview(task: TaskResults, names: list[str], notes: Notes) -> Sheet:
    seeds = any(len(cell.seeds) > 1 for cell in task.cells)
    failed = any(cell.problems for cell in task.cells)
    header = names + ["Seeds"] * seeds + ["Status"] * failed
    first = [(reference, size) for reference in task.references[:1] for size in task.speedup_batch_sizes()]
    rows = []
    for cell in task.cells:
        row = _names(cell) + [", ".join(map(str, cell.seeds))] * seeds + [_status(cell, notes)] * failed
        row += [_quality(cell, metric, notes) for metric in task.ranking]
        row += [show(cell.get("tokens_per_second", size), significant, notes) for size in task.batch_sizes]
        row += [show(task.speedup(cell, *point), fixed(2), notes) for point in first]
        rows.append(row)
    numbers = [heading(metric) for metric in task.ranking]
    numbers += [f"Tokens/s, batch {size}" for size in task.batch_sizes]
    numbers += [f"Speed-up over {reference}, batch {size}" for reference, size in first]
    return Sheet("Quality and speed", header + numbers, rows, len(header))


def _diagnostics(task: TaskResults, names: list[str], notes: Notes) -> Sheet:
    metrics = [metric for metric in task.quality if metric in DIAGNOSTIC]
    rows = [_names(cell) + [_quality(cell, metric, notes) for metric in metrics] for cell in task.cells]
    return Sheet("What the outputs look like", names + [heading(metric) for metric in metrics], rows, len(names))


def _quality(cell: Cell, metric: str, notes: Notes | None = None) -> str:
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
    header = [f"Latency {p} (ms)" for p in percentiles] + [f"{title} (ms)" for title in PARTS.values()]
    header += ["Encoder passes", "Decoder passes", "Tokens/decoder pass", "Iterations"]
    rows = []
    for cell in task.cells:
        row = [show(cell.smallest_batch(f"latency_{p}"), significant, notes) for p in percentiles]
        row += [show(cell.smallest_batch("seconds_per_sentence", part), significant, notes) for part in PARTS]
        for metric in ("encoder_passes", "decoder_passes", "tokens_per_pass", "iterations"):
            row.append(show(cell.smallest_batch(metric), fixed(1), notes))
        rows.append(_names(cell) + row)
    return Sheet("Latency, time of each part and passes, at the smallest batch size", names + header, rows, len(names))


def _by_seed(task: TaskResults) -> Sheet:
    """Each seed's own values with bootstrap intervals, where a cell has several seeds."""
    rows = []
    for cell in task.cells:
        for seed in cell.seeds if len(cell.seeds) > 1 else []:
            own = Cell([r for r in cell.records if r.seed == seed])
            rows.append([*_names(cell), str(seed), *(_quality(own, m) for m in task.ranking)])
    header = ["System", "Family", "Trained on", "Settings", "Seed"]
    return Sheet("Quality by training seed", header + [heading(m) for m in task.ranking], rows, len(header))


def _training(task: TaskResults, notes: Notes) -> Sheet:
    columns: dict[str, tuple[str, Format]] = {
        "parameters": ("Parameters", count),
        "train_tokens": ("Target tokens trained on", count),
        "train_minutes": ("Training (min)", significant),
        "train_tokens_per_second": ("Training tokens/s", significant),
        "infeasible_pairs": ("Infeasible pairs (%)", significant),
    }
    header = ["System", "Family", "Trained on", *(title for title, _ in columns.values())]
    rows = [
        [m.system, m.family, m.data, *(show(m.get(name), form, notes) for name, (_, form) in columns.items())]
        for m in task.models
    ]
    return Sheet("Models and their training", header, rows, 3)


def render_markdown(records: Sequence[Record]) -> str:
    """Return the tables of all tasks as one Markdown page, headed by how the values were measured."""
    suite = ", ".join(dict.fromkeys(escape(r.suite) for r in records))
    parts = [f"# Results of {suite}" if suite else "# Results", ""]
    if not records:
        return "\n".join([*parts, "There are no records.", ""])
    for task in by_task(records):
        notes = Notes()
        parts += [f"## {escape(task.name)}", "", *(f"- {escape(line)}" for line in protocol(task))]
        parts += [f"- {quality_metric(metric).title}: {_code(text)}" for metric, text in signatures(task)]
        parts += [""]
        for sheet in task_sheets(task, notes):
            parts += [f"### {sheet.title}", "", *_markdown_table(sheet), ""]
        parts += [f"{str(i).translate(_SUPERSCRIPT)} {escape(text)}  " for i, text in enumerate(notes.texts, 1)]
        parts += [""] if notes.texts else []
    return "\n".join(parts)


def _markdown_table(sheet: Sheet) -> list[str]:
    rule = [":--" if i < sheet.num_names else "--:" for i in range(len(sheet.header))]
    body = [[escape(cell) for cell in row] for row in [sheet.header, *sheet.rows]]
    return ["| " + " | ".join(row) + " |" for row in [body[0], rule, *body[1:]]]


def escape(text: str) -> str:
    """Return `text` so that Markdown shows it literally, on one line."""
    text = re.sub(r"[\x00-\x1f\x7f\u2028\u2029]+", " ", text)
    text = re.sub(r"([\\`*<>|$~&])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    return re.sub(r"\](?=[(\[:])", r"\\]", text)


def _code(text: str) -> str:
    return escape(text) if "`" in text else f"`{text}`"


def print_table(records: Iterable[Record], console: Console) -> None:
    """Print the essential columns of each task, to be read in 120 characters a line."""
    for task in by_task(records):
        notes = Notes()
        metrics = task.ranking[:2]
        sizes = list(dict.fromkeys((*task.batch_sizes[:1], *task.batch_sizes[-1:])))
        points = [(reference, size) for reference in task.references[:1] for size in task.speedup_batch_sizes()]
        failed = any(cell.problems for cell in task.cells)
        table = Table(title=Text(task.name), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("System", overflow="fold")
        header = [heading(metric).replace(" (", "\n(") for metric in metrics]
        header += [f"Tokens/s\nbatch {size}" for size in sizes] + ["p50 (ms)\nbatch 1"]
        for text in header + [f"Speed-up\nbatch {size}" for _, size in points]:
            table.add_column(Text(text), justify="right", no_wrap=True)
        if failed:
            table.add_column("Status", overflow="fold")
        for cell in task.cells:
            row = [_quality(cell, metric) for metric in metrics]
            row += [show(_point(cell.get("tokens_per_second", size))) for size in sizes]
            row += [show(_point(cell.smallest_batch("latency_p50")))]
            row += [show(_point(task.speedup(cell, *point)), fixed(2)) for point in points]
            table.add_row(*(Text(text) for text in [cell.name, *row, *([_status(cell, notes)] if failed else [])]))
        console.print(table)
        lines = ["[low, high]: 95 % bootstrap interval over sentences; (min–max): over training seeds."]
        lines += [f"Speed-up: over {task.references[0]}."] if points else []
        lines += [f"{str(i).translate(_SUPERSCRIPT)} {text}" for i, text in enumerate(notes.texts, 1)]
        console.print(Text("\n".join(lines)))


def _point(estimate: Estimate) -> Estimate:
    """Leave the interval away, where there is no room for it."""
    return Estimate(estimate.value, status=estimate.status)
