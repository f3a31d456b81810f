"""Tables from records: Markdown and CSV files in the results folder, and a short one for the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.protocol import protocol, signatures
from bench.records import Record, read_records
from bench.results import Estimate, Key, by_task, quality_metric
from bench.sheets import Notes, Sheet, fixed, heading, quality, show, status, task_sheets
from bench.store import write_atomically


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

    A value has the column `metric`, `metric[subset]`, `metric@batch`, `metric:part@batch` or `metric@batch vs
    reference`, and beside it `... low` and `... high` for the interval of a single seed, `... min` and `... max` for
    the spread over several. Columns without any value are left out.
    """
    rows = []
    for task in by_task(records):
        for cell in task.cells:
            row: dict[str, object] = {
                "suite": cell.records[0].suite, "task": task.name, "system": cell.system, "family": cell.family,
                "data": cell.data, "settings": cell.settings, "seeds": " ".join(map(str, cell.seeds)),
                "status": status(cell), "reason": "; ".join(p.reason for p in cell.problems),
            }  # fmt: skip
            for owner in (task.model_of(cell), cell):
                if owner is not None:
                    for key in owner.keys:
                        row.update(_columns(key, owner.estimate(key)))
            rows.append(row)
    return pd.DataFrame(rows)


def _columns(key: Key, estimate: Estimate) -> dict[str, float]:
    name = f"{key.metric}:{key.part}" if key.part else key.metric
    name += f"[{key.subset}]" if key.subset else ""
    name += f"@{key.batch_size}" if key.batch_size is not None else ""
    name += f" vs {key.reference}" if key.reference else ""
    low, high = estimate.spread or (None, None)
    values = {"": estimate.value, " low": estimate.low, " high": estimate.high, " min": low, " max": high}
    return {name + suffix: value for suffix, value in values.items() if value is not None}


def render_markdown(records: Sequence[Record]) -> str:
    """Return the tables of all tasks as one Markdown page, headed by how the values were measured."""
    suite = ", ".join(dict.fromkeys(escape(r.suite) for r in records))
    parts = [f"# Results of {suite}" if suite else "# Results", ""]
    if not records:
        return "\n".join([*parts, "There are no records.", ""])
    for task in by_task(records):
        notes = Notes()
        parts += [f"## {escape(task.name)}", "", *(f"- {escape(line)}" for line in protocol(task))]
        for signature, metrics in signatures(task).items():
            parts.append(f"- {', '.join(quality_metric(metric).title for metric in metrics)}: {_code(signature)}")
        parts += [""]
        for sheet in task_sheets(task, notes):
            parts += [f"### {sheet.title}", "", *_markdown_table(sheet), ""]
        parts += [f"{escape(line)}  " for line in notes.lines]
        parts += [""] if notes.lines else []
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
    return re.sub(r"\](?=[(\[])", r"\\]", text)


def _code(text: str) -> str:
    return escape(text) if "`" in text else f"`{text}`"


def print_table(records: Iterable[Record], console: Console) -> None:
    """Print the essential columns of each task, to be read in 120 characters a line."""
    for task in by_task(records):
        notes = Notes()
        metrics = task.ranking[:2]
        sizes = list(dict.fromkeys((*task.batch_sizes[:1], *task.batch_sizes[-1:])))
        rate, part = ("real_time_factor", "decode") if task.is_speech else ("tokens_per_second", "")
        points = [(reference, size) for reference in task.references[:1] for size in task.speedup_batch_sizes()]
        failed = any(cell.problems for cell in task.cells)
        table = Table(title=Text(task.name), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("System", overflow="fold")
        header = [heading(metric).replace(" (", "\n(") for metric in metrics]
        header += [f"{'RTF' if task.is_speech else 'Tokens/s'}\nbatch {size}" for size in sizes] + ["p50 (ms)\nbatch 1"]
        for text in header + [f"Speed-up\nbatch {size}" for _, size in points]:
            table.add_column(Text(text), justify="right", no_wrap=True)
        if failed:
            table.add_column("Status", overflow="fold")
        for cell in task.cells:
            row = [quality(cell, metric) for metric in metrics]
            row += [show(_point(cell.get(rate, size, part))) for size in sizes]
            row += [show(_point(cell.smallest_batch("latency_p50")))]
            row += [show(_point(task.speedup(cell, *point)), fixed(2)) for point in points]
            table.add_row(*(Text(text) for text in [cell.name, *row, *([status(cell, notes)] if failed else [])]))
        console.print(table)
        lines = ["[low, high]: 95 % bootstrap interval over sentences; (min–max): over training seeds."]
        lines += ["RTF: real-time factor of decoding, processing time over the duration of the audio."] * task.is_speech
        lines += [f"Speed-up: over {task.references[0]}."] if points else []
        console.print(Text("\n".join([*lines, *notes.lines])))


def _point(estimate: Estimate) -> Estimate:
    """Leave the interval away, where there is no room for it."""
    return Estimate(estimate.value, status=estimate.status)
