"""Latency at batch 1: how long a user waits for one sentence, and how much that varies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.figures.rows import row_page
from bench.figures.style import empty_figure, family_legend, family_style, log_axis
from bench.protocol import conditions
from bench.results import Cell, TaskResults

COLUMNS = ("task", "system", "data", "settings", "sentence", "milliseconds", "tokens")
MIN_FOR_P95 = 130
"""Sentences that carry a 95th percentile at 99 % confidence."""


@dataclass(frozen=True)
class Sample:
    """The times of a cell, pooled over sentences, rounds and seeds, as the percentiles of the records are."""

    milliseconds: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]
    """Emitted tokens, time by time."""
    num_sentences: int
    """Distinct sentences: timing one again adds nothing to what carries a percentile."""


Samples = Mapping[tuple[str, ...], Sample]
"""By task, system, data and settings."""


def read_latencies(path: Path) -> Samples:
    """Return the raw times of each cell.

    Raises:
        ValueError: the file is not a table of latencies.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a table of latencies ({error})") from error
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(f"{path}: not a table of latencies (no column {', '.join(missing)})")
    for name, least in (("milliseconds", np.nextafter(0, 1)), ("tokens", 0)):
        values = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64)
        bad = ~(np.isfinite(values) & (values >= least))
        if bad.any():
            row = int(bad.argmax())
            kind = "positive number" if least else "number of tokens"
            raise ValueError(f"{path}:{row + 2}: {name} is {table[name][row]!r}, no {kind}")
        table[name] = values
    groups = table.groupby(list(COLUMNS[:4]), sort=False)
    return {
        tuple(map(str, key)): Sample(
            rows["milliseconds"].to_numpy(), rows["tokens"].to_numpy(dtype=np.int64), rows["sentence"].nunique()
        )
        for key, rows in groups
    }


def draw_latency(task: TaskResults, samples: Samples | None) -> Figure:
    """Draw the latencies of each cell as a box, from raw times; without those, the percentiles of the records."""
    raw = {id(cell): sample_of(cell, samples) for cell in task.cells}
    cells = [cell for cell in task.cells if raw[id(cell)] is not None or _percentiles(cell)]
    title = f"{task.name}: latency of one sentence at batch size 1"
    if not cells:
        return empty_figure(title, "No latencies in the records.", task)
    figure, (ax,) = row_page(title, cells, _notes(task, cells, raw), family_legend(cells))
    times: list[float] = []
    for row, cell in enumerate(cells):
        sample = raw[id(cell)]
        times += _draw_box(ax, row, cell, sample) if sample is not None else _draw_percentiles(ax, row, cell)
    log_axis(ax.xaxis, min(times) / 1.25, max(times) * 1.25)
    ax.set_xlabel("Latency (ms, log scale)")
    return figure


def sample_of(cell: Cell, samples: Samples | None) -> Sample | None:
    """Return the raw times of `cell`, if there are any."""
    return (samples or {}).get((cell.task, cell.system, cell.data, cell.settings))


def _percentiles(cell: Cell) -> list[float]:
    """Return p50 and those of p90 and p95 that there are; empty without a p50."""
    values = [cell.smallest_batch(f"latency_{p}").value for p in ("p50", "p90", "p95")]
    return [value for value in values if value] if values[0] else []


def _style(cell: Cell) -> tuple[str, str]:
    """Edge and face colour: filled if trained on distilled data, hollow on raw."""
    colour = family_style(cell.family)[0]
    return colour, colour if cell.data == "distilled" else "white"


def _draw_box(ax: Axes, row: int, cell: Cell, sample: Sample) -> list[float]:
    edge, face = _style(cell)
    tails = (5, 95) if sample.num_sentences >= MIN_FOR_P95 else (0, 100)
    points = np.percentile(sample.milliseconds, [0, tails[0], 25, 50, 75, tails[1], 100])
    fastest, low, q1, median, q3, high, slowest = map(float, points)
    ax.hlines(row, low, high, color=edge, linewidth=1.4, zorder=2)
    ax.vlines([low, high], row - 0.12, row + 0.12, color=edge, linewidth=1.4, zorder=2)
    ax.barh(row, q3 - q1, left=q1, height=0.5, facecolor=face, edgecolor=edge, linewidth=1.5, zorder=3)
    ax.vlines(median, row - 0.25, row + 0.25, color="white" if face == edge else edge, linewidth=2.0, zorder=4)
    if tails != (0, 100):
        ax.plot([fastest, slowest], [row, row], linestyle="none", marker=".", markersize=4, color=edge, zorder=2)
    return [fastest, slowest]


def _draw_percentiles(ax: Axes, row: int, cell: Cell) -> list[float]:
    edge, face = _style(cell)
    values = _percentiles(cell)
    ax.hlines(row, values[0], values[-1], color=edge, linewidth=1.4, zorder=2)
    ax.vlines(values[1:], row - 0.16, row + 0.16, color=edge, linewidth=1.6, zorder=2)
    ax.plot(values[0], row, marker=family_style(cell.family)[1], markersize=8, markerfacecolor=face,
            markeredgecolor=edge, markeredgewidth=1.5, zorder=3)  # fmt: skip
    return values


def _notes(task: TaskResults, cells: list[Cell], raw: Mapping[int, Sample | None]) -> list[str]:
    counts = sorted({sample.num_sentences for sample in raw.values() if sample is not None})
    notes = ["From features to ids: feature extraction and detokenisation are not in it."] * task.is_speech
    if counts:
        tails = "5 to 95 %; dots: fastest and slowest" if counts[-1] >= MIN_FOR_P95 else "fastest to slowest"
        if counts[0] < MIN_FOR_P95 <= counts[-1]:
            tails += f"; fastest to slowest where there are fewer than {MIN_FOR_P95} sentences"
        number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        notes.append(
            f"{number} sentences, each timed in every round. Line: median; box: middle half; whiskers: {tails}."
        )
    if any(raw[id(cell)] is None for cell in cells):
        notes.append("Where there are no raw times: marker at the 50th percentile, ticks at the 90th and the 95th.")
    notes += [f"Not shown: {cell.name}: {cell.why}" for cell in task.cells if cell not in cells]
    return [*notes, conditions(task)]
