"""How often outputs repeat words or splice two right answers: the multimodality picture, raw beside distilled."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from bench.figures.style import GREY, Page, empty_figure, family_legend, literal, marker_style, text_size, wrap
from bench.protocol import conditions
from bench.results import Cell, TaskResults, quality_metric

METRICS = ("mixed_mode_rate", "repetition_rate")
LABEL_WIDTH = 44
ROW_INCHES = 0.24


def draw_multimodality(task: TaskResults) -> Figure | None:
    """Draw the mixed-mode rate (if the task has it) and the repetition rate, a row for each system and settings.

    The raw model and the distilled one of a row are joined: what distillation does about multimodality is the distance.
    """
    if task.quality and not task.ranking:
        return None
    title = f"{task.name}: signs of multimodality"
    metrics = [metric for metric in METRICS if any(cell.get(metric).value is not None for cell in task.cells)]
    rows = _rows(task, metrics)
    if not rows:
        return empty_figure(title, "No repetition or mixed-mode rate in the records.", task)
    names = [wrap(name, LABEL_WIDTH) for name in rows]
    cells = [cell for row in rows.values() for cell in row]
    page = Page(
        title,
        panels=len(metrics),
        panel_width=4.2,
        panel_height=max(2.0, ROW_INCHES * (len(rows) + sum(name.count("\n") for name in names)) + 0.2),
        left=max(text_size(name)[0] for name in names) / 72 + 0.35,
        legend=family_legend(cells),
        notes=[
            "Bars: 95 % interval, or smallest to largest of several training seeds.",
            *(f"Not shown: {cell.name}: {cell.why}" for cell in task.cells if all(cell is not c for c in cells)),
            conditions(task),
        ],
    )
    figure, axes = page.build()
    for ax, metric in zip(axes, metrics, strict=True):
        info = quality_metric(metric)
        ax.set_xlabel(literal(info.title) + (f" ({info.unit})" if info.unit else ""))
        ax.yaxis.set_major_locator(FixedLocator(range(len(rows))))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_yticklabels(names)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        for y, row in enumerate(rows.values()):
            _draw_row(ax, y, row, metric)
        ax.set_xlim(left=0)
        ax.set_xlim(right=max(ax.get_xlim()[1], 1.0))
    return figure


def _rows(task: TaskResults, metrics: Sequence[str]) -> dict[str, list[Cell]]:
    """Return the cells by system and settings, those that have one of `metrics`."""
    rows: dict[str, list[Cell]] = {}
    for cell in task.cells:
        if any(cell.get(metric).value is not None for metric in metrics):
            rows.setdefault(f"{cell.system} [{cell.settings}]" if cell.settings else cell.system, []).append(cell)
    return rows


def _draw_row(ax: Axes, y: int, cells: Sequence[Cell], metric: str) -> None:
    found = [(cell, cell.get(metric)) for cell in cells]
    values = [estimate.value for _, estimate in found if estimate.value is not None]
    if len(values) > 1:
        ax.plot([min(values), max(values)], [y, y], color=GREY, linewidth=0.8, zorder=1)
    for cell, estimate in found:
        if estimate.value is not None:
            low, high = estimate.bounds or (estimate.value, estimate.value)
            ax.errorbar(
                estimate.value, y, xerr=[[estimate.value - low], [high - estimate.value]],
                elinewidth=1.0, capsize=2.0, linestyle="none", zorder=3, clip_on=False, **marker_style(cell),
            )  # fmt: skip
