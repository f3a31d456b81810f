"""How many tokens are right along the sentence: what left-to-right decoders' own choices cost, and what others do."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.figures.labels import GAP, LABEL_SIZE, label_ends
from bench.figures.style import GREY, Page, family_legend, line_style, marker_style, text_colour, text_size, wrap
from bench.names import FREE_RUNNING, TEACHER_FORCED
from bench.protocol import conditions
from bench.results import Cell, TaskResults
from bench.subsets import POSITION, Subset

LABEL_WIDTH = 30

Line = tuple[Cell, list[tuple[float, float]]]


def draw_positions(task: TaskResults) -> Figure | None:
    """Draw token accuracy over the tenths of the reference, each model in its best settings; None without values.

    Left-to-right decoders have a panel of their own, where a thin line is the same model teacher-forced.
    """
    free = [(cell, _points(task, cell, FREE_RUNNING)) for cell in task.best_settings]
    free = [(cell, points) for cell, points in free if points]
    if not free:
        return None
    forced = {id(cell): _points(task, cell, TEACHER_FORCED) for cell, _ in free}
    panels = [
        ("Left to right", [(cell, points) for cell, points in free if forced[id(cell)]]),
        ("All others", [(cell, points) for cell, points in free if not forced[id(cell)]]),
    ]
    panels = [(name, lines) for name, lines in panels if lines]
    sizes = [text_size(wrap(cell.name, LABEL_WIDTH), LABEL_SIZE) for cell, _ in free]
    tallest = max(sum(text_size(wrap(c.name, LABEL_WIDTH), LABEL_SIZE)[1] for c, _ in lines) for _, lines in panels)
    legend = family_legend([cell for cell, _ in free], lines=True)
    if any(forced.values()):
        legend.append(("teacher-forced", Line2D([], [], color=GREY, linewidth=0.9, linestyle=":")))
    page = Page(
        f"{task.name}: where in the sentence tokens are right",
        panels=len(panels),
        panel_width=4.2,
        panel_height=max(4.2, tallest / 72 + 0.1),
        right=(GAP + max(width for width, _ in sizes)) / 72 + 0.15,
        panel_titles=[name for name, _ in panels],
        legend=legend,
        notes=[
            "Tokens of the nearest reference that the alignment with the fewest edits finds in the output; "
            "teacher-forced: that are most probable after the reference's own tokens before them. Each model in its "
            "best settings. What lies between the two is what a model's own earlier choices cost: errors, and wordings "
            "that the reference does not have.",
            conditions(task),
        ],
    )
    figure, axes = page.build()
    drawn = [y for cell, points in free for _, y in (*points, *forced[id(cell)])]
    low, high = min(drawn), max(drawn)
    for ax, (_, lines) in zip(axes, panels, strict=True):
        ax.set(xlabel="Position in the reference (%)", ylabel="Token accuracy (%)", xlim=(0, 100))
        ax.set_ylim(max(0.0, low - 3), min(100.0, high) + 3)
        for cell, points in lines:
            _draw(ax, cell, points, forced[id(cell)])
        ends = [points[-1] for _, points in lines]
        texts = [wrap(cell.name, LABEL_WIDTH) for cell, _ in lines]
        label_ends(ax, ends, texts, [text_colour(cell.family) for cell, _ in lines])
    return figure


def _points(task: TaskResults, cell: Cell, metric: str) -> list[tuple[float, float]]:
    """Return the middle of each tenth and the value there."""
    names = task.subsets.get((metric, POSITION), [])
    values = [(Subset.parse(name).middle, cell.get(metric, subset=name).value) for name in names]
    return [(x, y) for x, y in values if y is not None]


def _draw(ax: Axes, cell: Cell, free: Sequence[tuple[float, float]], forced: Sequence[tuple[float, float]]) -> None:
    style = {**marker_style(cell), "markersize": 4}
    ax.plot(*zip(*free, strict=True), linestyle=line_style(cell.data), linewidth=1.4, zorder=3, **style)
    if forced:
        ax.plot(*zip(*forced, strict=True), linestyle=":", linewidth=0.9, color=style["color"], zorder=2)
