"""Figures with a row per cell."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.figures.style import Page, text_colour, text_size, wrap
from bench.results import Cell

LABEL_WIDTH = 34
ROW = 0.34
"""Inches per cell, at the least."""


def row_page(
    title: str,
    cells: Sequence[Cell],
    notes: Sequence[str],
    legend: Sequence[tuple[str, Line2D]],
    panels: Sequence[str] = ("",),
    panel_width: float = 5.8,
) -> tuple[Figure, list[Axes]]:
    """Return a figure whose panels have a row per cell, its name beside the first; `panels` are their titles."""
    texts = [wrap(cell.name, LABEL_WIDTH) for cell in cells]
    sizes = [text_size(text) for text in texts]
    names = max(width for width, _ in sizes) / 72 + 0.3
    page = Page(
        title,
        panels=len(panels),
        panel_width=panel_width,
        panel_height=max(ROW, max(height for _, height in sizes) / 72 + 0.08) * len(cells) + 0.2,
        left=names if len(panels) == 1 else 0.3,
        first_left=names,
        legend=list(legend),
        notes=list(notes),
        panel_titles=panels if any(panels) else (),
    )
    figure, axes = page.build()
    for ax in axes:
        ax.set_ylim(len(cells) - 0.45, -0.55)
        ax.set_yticks(range(len(cells)), texts if ax is axes[0] else [""] * len(cells))
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=False, axis="y")
    for label, cell in zip(axes[0].get_yticklabels(), cells, strict=True):
        label.set_color(text_colour(cell.family))
    return figure, axes
