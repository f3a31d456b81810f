"""Learning curves: the score on the development set as training goes on, which tells a short budget from a defect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.figures.labels import GAP, LABEL_SIZE, label_ends
from bench.figures.style import Page, family_legend, line_style, marker_style, text_colour, text_size, wrap
from bench.protocol import conditions
from bench.results import Cell, TaskResults, quality_metric

COLUMNS = ("task", "system", "data", "seed", "metric", "tokens", "seconds", "loss", "score")
NUMBERS = ("tokens", "seconds", "score")
LABEL_WIDTH = 34


@dataclass(frozen=True)
class Curve:
    """One training, evaluated again and again."""

    task: str
    system: str
    data: str
    seed: int
    metric: str
    tokens: tuple[float, ...]
    """Target tokens trained on so far."""
    seconds: tuple[float, ...]
    score: tuple[float, ...]
    """Of the development set, more is better: rates of errors are negative."""

    @property
    def shown(self) -> list[float]:
        """The score as people know it."""
        falls = quality_metric(self.metric).lower_is_better
        return [-value if falls else value for value in self.score]


def read_curves(path: Path) -> list[Curve]:
    """Return the curves of a `curves.csv`, in its order.

    Raises:
        ValueError: the file is no table of curves.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a table of learning curves ({error})") from error
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(f"{path}: not a table of learning curves (no column {', '.join(missing)})")
    for name in (*NUMBERS, "seed"):
        numbers = pd.to_numeric(table[name], errors="coerce")
        bad = ~np.isfinite(numbers.to_numpy(dtype=np.float64))
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(f"{path}:{row + 2}: {name} is {table[name][row]!r}, no number")
        table[name] = numbers
    groups = table.groupby(["task", "system", "data", "seed", "metric"], sort=False)
    curves = []
    for key, rows in groups:
        task, system, data, seed, metric = map(str, key)
        curves.append(Curve(task, system, data, int(seed), metric, *(tuple(rows[name]) for name in NUMBERS)))
    return curves


def draw_learning(task: TaskResults, curves: Sequence[Curve]) -> Figure | None:
    """Draw the development score over target tokens and over minutes, a line per training; None without curves."""
    lines = [(cell, curve) for cell in task.models for curve in curves if _belongs(curve, cell)]
    if not lines:
        return None
    several = len({curve.seed for _, curve in lines}) > 1
    names = [cell.name + (f" seed {curve.seed}" if several else "") for cell, curve in lines]
    texts = [wrap(name, LABEL_WIDTH) for name in names]
    sizes = [text_size(text, LABEL_SIZE) for text in texts]
    page = Page(
        f"{task.name}: learning curves",
        panels=2,
        panel_height=max(4.2, sum(height for _, height in sizes) / 72 + 0.1),
        margin=(GAP + max(width for width, _ in sizes)) / 72,
        legend=family_legend([cell for cell, _ in lines], lines=True),
        notes=[
            "The score of the development set as training goes on, decoded by the family's default settings (Mask-CTC: "
            "from the output of CTC), before checkpoints are chosen or averaged. A line that still gets better at its "
            "end was stopped by its budget.",
            conditions(task),
        ],
    )
    figure, axes = page.build()
    info = quality_metric(lines[0][1].metric)
    title = f"{info.title} of the development set" + (f" ({info.unit})" if info.unit else "")
    axes[0].set(xlabel="Target tokens (millions)", ylabel=title)
    axes[1].set(xlabel="Minutes of training", ylabel=title)
    for ax, scale, name in ((axes[0], 1e6, "tokens"), (axes[1], 60.0, "seconds")):
        for cell, curve in lines:
            _draw(ax, cell, [x / scale for x in getattr(curve, name)], curve.shown)
        ax.set_xlim(left=0)
    ends = [(curve.seconds[-1] / 60, curve.shown[-1]) for _, curve in lines]
    label_ends(axes[1], ends, texts, [text_colour(cell.family) for cell, _ in lines])
    return figure


def _belongs(curve: Curve, cell: Cell) -> bool:
    return (curve.task, curve.system, curve.data) == (cell.task, cell.system, cell.data)


def _draw(ax: Axes, cell: Cell, xs: Sequence[float], ys: Sequence[float]) -> None:
    style = {**marker_style(cell), "markersize": 3.5}
    ax.plot(xs, ys, linestyle=line_style(cell.data), linewidth=1.3, zorder=3, **style)
