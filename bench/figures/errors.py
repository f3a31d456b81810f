"""The error picture: which characters are substituted, deleted and inserted, along the reference, system by system."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from bench.figures.labels import LABEL_SIZE
from bench.figures.style import MARKER_POINTS, Page, Style, empty_figure, text_colour, text_size, wrap
from bench.protocol import conditions
from bench.results import Cell, TaskResults
from bench.subsets import POSITION, Subset

KINDS = {
    "cer_substitutions": ("substitutions", "#3B5B92"),
    "cer_deletions": ("deletions", "#F2B134"),
    "cer_insertions": ("insertions", "#C1443C"),
}
"""What each metric is called, and its colour; from the bottom of a bar up."""
COLUMNS = 5
LABEL_WIDTH = 34
PITCH = 2.6
"""Inches from one panel to the next."""


def draw_errors(task: TaskResults) -> Figure | None:
    """Draw the errors of each kind over the tenths of the reference, a panel for each cell; None if there are none.

    Each panel has a scale of its own: what counts is where the errors are, and how much there is of them is said.
    """
    subsets = {metric: names for (metric, tag), names in task.subsets.items() if tag == POSITION and metric in KINDS}
    if not subsets:
        return None
    title = f"{task.name}: where in the reference the errors are"
    cells = [c for c in task.cells if any(_values(c, metric, names) for metric, names in subsets.items())]
    if not cells:
        return empty_figure(title, "No errors by position in the records.", task)
    texts = [_title(cell) for cell in cells]
    columns = min(COLUMNS, len(cells))
    page = Page(
        title,
        panels=len(cells),
        columns=columns,
        panel_width=PITCH - 0.65,
        panel_height=1.1,
        left=0.55,
        right=0.1,
        margin=max(0.1, (2 - columns) * PITCH),
        above=max(text_size(text, LABEL_SIZE)[1] for text in texts) / 72 + 0.12,
        legend=[(name, _square(colour)) for name, colour in KINDS.values()],
        notes=[
            "Edits of each kind in % of the characters of all references in that tenth of their length, along the "
            "alignment that CER counts: what is inserted belongs to the tenth where it is inserted. Each panel has a "
            "scale of its own." + (" Means over training seeds." if any(len(c.seeds) > 1 for c in cells) else ""),
            *(f"Not shown: {c.name}: {c.why}" for c in task.cells if all(c is not other for other in cells)),
            conditions(task),
        ],
    )
    figure, axes = page.build()
    for i, (ax, cell, text) in enumerate(zip(axes, cells, texts, strict=True)):
        ax.set_title(text, loc="left", size=LABEL_SIZE, color=text_colour(cell.family), linespacing=1.15, pad=4)
        _draw(ax, cell, subsets)
        if i % columns == 0:
            ax.set_ylabel("Edits (%)")
        if i + columns >= len(cells):
            ax.set_xlabel("Position (% of the reference)")
    return figure


def _title(cell: Cell) -> str:
    rate = cell.get("cer").value
    return wrap(cell.name, LABEL_WIDTH) + ("" if rate is None else f"\nCER {rate:.1f} %")


def _values(cell: Cell, metric: str, names: Sequence[str]) -> dict[Subset, float]:
    """Return the values that there are, by subset."""
    found = {Subset.parse(name): cell.get(metric, subset=name).value for name in names}
    return {subset: value for subset, value in found.items() if value is not None}


def _square(colour: str) -> Line2D:
    style: Style = {"color": colour, "marker": "s", "markersize": MARKER_POINTS}
    return Line2D([], [], linestyle="none", **style)


def _draw(ax: Axes, cell: Cell, subsets: dict[str, list[str]]) -> None:
    """Draw one stacked bar for each part of the reference."""
    tops: dict[Subset, float] = {}
    for metric, (_, colour) in KINDS.items():
        for subset, value in _values(cell, metric, subsets.get(metric, ())).items():
            base = tops.get(subset, 0.0)
            ax.bar(subset.middle, value, 0.86 * (subset.high - subset.low), bottom=base, color=colour, zorder=2)
            tops[subset] = base + value
    ax.set_ylim(0, max(1.1 * max(tops.values()), 1.0))
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.set_xlim(0, 100)
    ax.xaxis.set_major_locator(FixedLocator([0, 50, 100]))
    ax.grid(visible=False, axis="x")
    ax.tick_params(labelsize=LABEL_SIZE)
