"""Quality by subset of the test set: how systems bear up where it gets harder, such as with more noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.figures.labels import GAP, LABEL_SIZE, label_ends
from bench.figures.style import (
    GREY,
    Page,
    empty_figure,
    family_legend,
    line_style,
    literal,
    marker_style,
    text_colour,
    text_size,
    wrap,
)
from bench.protocol import conditions
from bench.results import Cell, Estimate, TaskResults, quality_metric
from bench.subsets import POSITION, Subset, tag_title

Line = tuple[Cell, list[tuple[float, Estimate]]]

LABEL_WIDTH = 38
SPREAD = 0.6
"""Share of a subset's width over which its points lie side by side, so that their error bars can be told apart."""
MARKER = 6.0
ROOT_TICKS = (1000, 500, 200, 100, 50, 20, 10, 5, 2, 1, 0.5, 0.1, 0)
TICK_DISTANCE = 0.05
"""Least distance of ticks, as a share of the panel's height."""


def draw_subsets(task: TaskResults) -> Figure | None:
    """Draw a metric over the subsets, a line for each cell, a panel for each tag; None if there are no subsets.

    The metric is the headline if the subsets have it, else the first one that they have.
    """
    metrics = _metrics(task)
    if not metrics:
        return None
    titles = [f"{quality_metric(metric).title} by {tag_title(tag)}" for tag, metric in metrics.items()]
    title = f"{task.name}: {', '.join(titles)}"
    panels = [_lines(task, metric, task.subsets[metric, tag]) for tag, metric in metrics.items()]
    cells = [cell for cell in task.cells if any(cell is other for lines in panels for other, _ in lines)]
    if not cells:
        return empty_figure(title, "No quality of subsets in the records.", task)
    texts = {id(cell): wrap(cell.name, LABEL_WIDTH) for cell in cells}
    sizes = [text_size(text, LABEL_SIZE) for text in texts.values()]
    several = any(len(cell.seeds) > 1 for cell in cells)
    spread = "smallest to largest of several training seeds, else " if several else ""
    page = Page(
        title,
        panels=len(panels),
        panel_width=6.4,
        panel_height=max(4.6, sum(height for _, height in sizes) / 72 + 0.1),
        right=(GAP + max(width for width, _ in sizes)) / 72 + 0.15,
        legend=family_legend(cells, lines=True),
        notes=[
            f"Bars: {spread}95 % interval over the sentences of the subset. Vertical lines bound the subsets; points "
            "stand around their middles, side by side.",
            *(f"Not shown: {c.name}: {c.why}" for c in task.cells if all(c is not other for other in cells)),
            conditions(task),
        ],
    )
    figure, axes = page.build()
    for ax, (tag, metric), lines in zip(axes, metrics.items(), panels, strict=True):
        info = quality_metric(metric)
        ax.set_xlabel(literal(tag_title(tag)))
        root = ["square-root scale"] if info.lower_is_better else []
        remarks = ", ".join([*([info.unit] if info.unit else []), *root])
        ax.set_ylabel(literal(info.title) + (f" ({remarks})" if remarks else ""))
        if lines:
            right = _draw(ax, lines, [Subset.parse(name) for name in task.subsets[metric, tag]])
            if info.lower_is_better:
                _make_root(ax)
            ends = [(right, points[-1][1].value or 0.0) for _, points in lines]
            label_ends(ax, ends, [texts[id(c)] for c, _ in lines], [text_colour(c.family) for c, _ in lines])
    return figure


def _metrics(task: TaskResults) -> dict[str, str]:
    """Return the metric to show for each tag."""
    metrics: dict[str, str] = {}
    for metric, tag in task.subsets:
        if tag != POSITION and (metric == task.headline or tag not in metrics):
            metrics[tag] = metric
    return metrics


def _lines(task: TaskResults, metric: str, names: Sequence[str]) -> list[Line]:
    """Return each cell with its values, at the places where they stand: side by side within a subset."""
    found = []
    for cell in task.cells:
        values = [(Subset.parse(name), cell.get(metric, subset=name)) for name in names]
        good = [(subset, estimate) for subset, estimate in values if estimate.value is not None]
        if good:
            found.append((cell, good))
    step = SPREAD / max(len(found), 1)
    return [
        (cell, [(s.middle + (i - (len(found) - 1) / 2) * step * (s.high - s.low), estimate) for s, estimate in good])
        for i, (cell, good) in enumerate(found)
    ]


def _draw(ax: Axes, lines: Sequence[Line], subsets: Sequence[Subset]) -> float:
    """Draw the lines, each with a thin one from its last point to the right edge; return where that is."""
    edges = sorted({edge for subset in subsets for edge in (subset.low, subset.high)})
    for cell, points in lines:
        ys = [estimate.value or 0.0 for _, estimate in points]
        bounds = [estimate.bounds or (y, y) for (_, estimate), y in zip(points, ys, strict=True)]
        ax.errorbar(
            [x for x, _ in points], ys,
            yerr=[[max(y - low, 0) for y, (low, _) in zip(ys, bounds, strict=True)],
                  [max(high - y, 0) for y, (_, high) in zip(ys, bounds, strict=True)]],
            elinewidth=0.8, capsize=1.5, linewidth=1.2, linestyle=line_style(cell.data), zorder=3,
            **{**marker_style(cell), "markersize": MARKER},
        )  # fmt: skip
        ax.hlines(ys[-1], points[-1][0], edges[-1], color=GREY, linewidth=0.6, zorder=1)
    ax.xaxis.set_major_locator(FixedLocator(edges))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(edges[0], edges[-1])
    return edges[-1]


def _make_root(ax: Axes) -> None:
    """Let the axis of an error rate grow with its square root: small rates are told apart, and 0 has a place."""
    top = max(ax.get_ylim()[1], 1.0)
    ticks: list[float] = []
    for tick in ROOT_TICKS:
        near_zero = 0 < tick < top * TICK_DISTANCE**2
        if tick <= top and not near_zero and (not ticks or ticks[-1] ** 0.5 - tick**0.5 > TICK_DISTANCE * top**0.5):
            ticks.append(tick)
    ax.set_yscale("function", functions=(lambda y: np.sqrt(np.clip(y, 0, None)), np.square))
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_ylim(0, top * 1.03)  # room for half a marker
