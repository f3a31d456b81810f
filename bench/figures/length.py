"""Latency by the length of the output: how the cost of a sentence grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.figures.labels import GAP, LABEL_SIZE, label_ends
from bench.figures.latency import Sample, Samples, sample_of
from bench.figures.style import Page, family_legend, line_style, log_axis, marker_style, text_colour, text_size, wrap
from bench.protocol import conditions
from bench.results import Cell, TaskResults

LABEL_WIDTH = 34
MOST_BUCKETS = 6
LEAST_TIMES = 10
"""Times in a bucket, rounds counted."""
LEAST_SPAN = 1.5
"""How many times as long as the shortest group the longest must be for a cell to be shown."""

Points = list[tuple[float, float]]
"""Mean length and median milliseconds of each bucket."""


def draw_length(task: TaskResults, samples: Samples | None) -> Figure | None:
    """Draw the median latency over the number of emitted tokens, a line per cell.

    Nothing is drawn of a task whose outputs are all about as long.
    """
    found = [(cell, sample_of(cell, samples)) for cell in task.cells]
    every = [(cell, by_length(sample)) for cell, sample in found if sample is not None]
    lines = [(cell, points) for cell, points in every if points and points[-1][0] >= LEAST_SPAN * points[0][0]]
    if 2 * len(lines) < max(len(every), 1):
        return None
    texts = [wrap(cell.name, LABEL_WIDTH) for cell, _ in lines]
    sizes = [text_size(text, LABEL_SIZE) for text in texts]
    shown = {id(cell) for cell, _ in lines}
    page = Page(
        f"{task.name}: latency by output length at batch size 1",
        panel_height=max(4.2, sum(height for _, height in sizes) / 72 + 0.1),
        right=(GAP + max(width for width, _ in sizes)) / 72 + 0.15,
        legend=family_legend([cell for cell, _ in lines], lines=True),
        notes=[
            f"Median over the sentences of about as many emitted tokens, in at most {MOST_BUCKETS} groups of "
            f"{LEAST_TIMES} times or more.",
            *(f"Not shown: {c.name}: {_why(c, sample)}" for c, sample in found if id(c) not in shown),
            conditions(task),
        ],
    )
    figure, (ax,) = page.build()
    ax.set(xlabel="Emitted tokens (log scale)", ylabel="Latency (ms, log scale)")
    _limits(ax, [points for _, points in lines])
    for cell, points in lines:
        xs, ys = zip(*points, strict=True)
        ax.plot(xs, ys, linestyle=line_style(cell.data), linewidth=1.5, zorder=3, **marker_style(cell))
    ends = [points[-1] for _, points in lines]
    label_ends(ax, ends, texts, [text_colour(cell.family) for cell, _ in lines])
    return figure


def by_length(sample: Sample) -> Points:
    """Return mean length and median time of sentences grouped by output length, short ones first.

    A group has as many times as any other, as far as equal lengths, which stay together, allow.
    """
    counted = sample.tokens > 0
    tokens, times = sample.tokens[counted], sample.milliseconds[counted]
    if not len(tokens):
        return []
    buckets = min(MOST_BUCKETS, max(1, len(tokens) // LEAST_TIMES))
    borders = np.unique(np.quantile(tokens, np.linspace(0, 1, buckets + 1)[1:-1], method="higher"))
    group = np.searchsorted(borders, tokens, side="right")
    return [
        (float(tokens[group == g].mean()), float(np.median(times[group == g])))
        for g in np.unique(group)
        if (group == g).sum() >= LEAST_TIMES
    ]


def _why(cell: Cell, sample: Sample | None) -> str:
    if sample is not None:
        return "outputs all about as long"
    return cell.why if cell.problems else "no raw times"


def _limits(ax: Axes, lines: Sequence[Points]) -> None:
    lengths, times = zip(*(point for line in lines for point in line), strict=True)
    for axis, values in ((ax.xaxis, lengths), (ax.yaxis, times)):
        log_axis(axis, min(values) / 1.25, max(values) * 1.25)
