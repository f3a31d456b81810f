"""Where decoding spends its time, part by part."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.figures.rows import row_page
from bench.figures.style import GREY, say_missing
from bench.protocol import conditions
from bench.results import Cell, TaskResults

PARTS = {
    "encoder": ("encoder", "#0072B2"),
    "decoder": ("decoder layers", "#E69F00"),
    "output": ("output layer", "#009E73"),
    "companion": ("teacher, draft or aligner", "#CC79A7"),
    "other": ("everything else", "#B0B0B0"),
}
"""What legends call the parts, and their colours."""


def draw_breakdown(task: TaskResults) -> Figure | None:
    """Draw the time of a sentence by part, as a bar per cell at the smallest and the largest batch size.

    Nothing is drawn of a task where no parts were timed.
    """
    there = [size for size in task.batch_sizes if any(_shares(cell, size) for cell in task.cells)]
    if not there:
        return None
    sizes = list(dict.fromkeys((there[0], there[-1])))
    cells = [cell for cell in task.cells if any(_shares(cell, size) for size in sizes)]
    legend = [(text, _key(colour)) for text, colour in PARTS.values()]
    notes = [
        "Length: time of a sentence. Parts: their shares in a run of their own, with a wait for the device at each "
        "border. Output layer: logits alone. Everything else: embeddings, heads, choices, canvases, caches.",
        *(f"Not shown: {cell.name}: {_why(cell)}" for cell in task.cells if cell not in cells),
        conditions(task),
    ]
    titles = [f"Batch size {size}" for size in sizes]
    figure, axes = row_page(f"{task.name}: where the time goes", cells, notes, legend, titles, panel_width=4.4)
    for ax, size in zip(axes, sizes, strict=True):
        _draw(ax, cells, size)
    return figure


def _shares(cell: Cell, size: int) -> dict[str, float]:
    found = {part: cell.get("time_share", size, part).value for part in PARTS}
    return {part: value for part, value in found.items() if value is not None}


def _milliseconds(cell: Cell, size: int) -> float | None:
    rate = cell.get("sentences_per_second", size).value
    return 1000 / rate if rate else None


def _why(cell: Cell) -> str:
    return cell.why if cell.problems else "decoded by another engine, or its parts were not timed"


def _draw(ax: Axes, cells: list[Cell], size: int) -> None:
    longest = max((_milliseconds(cell, size) or 0.0 for cell in cells), default=0.0)
    if not longest:
        say_missing(ax, f"No times at batch size {size}.")
        return
    for row, cell in enumerate(cells):
        total, shares = _milliseconds(cell, size), _shares(cell, size)
        left = 0.0
        for part, share in shares.items() if total else ():
            width = (total or 0.0) * share / 100
            ax.barh(row, width, left=left, height=0.6, color=PARTS[part][1], zorder=3)
            left += width
        if total:
            ax.annotate(
                f"{total:.3g} ms", (left, row), xytext=(4, 0), textcoords="offset points", va="center", color=GREY
            )
    ax.set_xlim(0, longest * 1.22)
    ax.set_xlabel("Time per sentence (ms)")


def _key(colour: str) -> Line2D:
    return Line2D([], [], linestyle="none", marker="s", markersize=8, color=colour)
