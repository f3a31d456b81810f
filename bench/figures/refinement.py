"""Quality against decoder passes and against tokens per pass: what each round of refinement buys."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.figures.labels import GAP, LABEL_SIZE
from bench.figures.style import (
    Page,
    empty_figure,
    family_legend,
    line_style,
    literal,
    log_axis,
    marker_style,
    text_colour,
    text_size,
    wrap,
)
from bench.parallelism import Sweep, frontier, rising_title, sweeps
from bench.protocol import conditions
from bench.results import TaskResults, quality_metric

LABEL_WIDTH = 44


def draw_refinement(task: TaskResults) -> Figure | None:
    """Draw quality over decoder passes, and over tokens per pass with the AUP of each trained model.

    A line joins the settings of one model, the best one where several take as many passes.
    """
    if task.quality and not task.ranking:
        return None
    title = f"{task.name}: quality against decoder passes"
    lines = sweeps(task)
    if not lines or task.headline is None:
        return empty_figure(title, "No quality with decoder passes in the records.", task)
    texts = [wrap(f"{line.name}: AUP {line.aup:.0f}", LABEL_WIDTH) for line in lines]
    sizes = [text_size(text, LABEL_SIZE) for text in texts]
    cells = [point.cell for line in lines for point in line.points]
    info, quality = quality_metric(task.headline), rising_title(task.headline)
    quality = quality[0].upper() + quality[1:]
    page = Page(
        title,
        panels=2,
        panel_height=max(4.6, sum(height for _, height in sizes) / 72 + 0.1),
        margin=(GAP + max(width for width, _ in sizes)) / 72,
        legend=family_legend(cells, lines=True),
        notes=[
            *([f"{quality}: 100 − {info.title}, at least 0; the AUP is that of it."] if info.lower_is_better else []),
            "Passes are runs of the decoder stack, observed sentence by sentence. AUP: accuracy under parallelism, the "
            "area under quality over tokens per pass while quality stays within 5 points of the slowest setting; it "
            "compares systems whose slowest settings make about as many tokens per pass. Passes of a teacher or draft "
            "are not counted.",
            *_lost(task, lines),
            conditions(task),
        ],
    )
    figure, axes = page.build()
    for ax in axes:
        ax.set_ylabel(literal(quality) + (f" ({info.unit})" if info.unit else ""))
    axes[0].set_xlabel("Decoder passes per sentence (mean, log scale)")
    axes[1].set_xlabel("Tokens per decoder pass (log scale)")
    for ax, xs in zip(axes, (_passes(lines), _rates(lines)), strict=True):
        log_axis(ax.xaxis, min(x for row in xs for x in row) / 1.25, max(x for row in xs for x in row) * 1.25)
        _limits(ax, lines)
        for line, row in zip(lines, xs, strict=True):
            _draw(ax, line, row)
    _write_key(axes[1], lines, texts, [height for _, height in sizes])
    return figure


def _lost(task: TaskResults, lines: Sequence[Sweep]) -> list[str]:
    shown = {id(point.cell) for line in lines for point in line.points}
    return [f"Not shown: {cell.name}: {cell.why}" for cell in task.cells if id(cell) not in shown]


def _passes(lines: Sequence[Sweep]) -> list[list[float]]:
    return [[max(point.passes, 1e-3) for point in line.points] for line in lines]


def _rates(lines: Sequence[Sweep]) -> list[list[float]]:
    return [[max(point.tokens_per_pass, 1e-3) for point in line.points] for line in lines]


def _limits(ax: Axes, lines: Sequence[Sweep]) -> None:
    values = [point.quality for line in lines for point in line.points]
    room = 0.06 * max(max(values) - min(values), 5.0)
    ax.set_ylim(min(values) - room, max(values) + room)


def _draw(ax: Axes, line: Sweep, xs: Sequence[float]) -> None:
    style = marker_style(line.points[0].cell)
    best = frontier([(x, point.quality) for x, point in zip(xs, line.points, strict=True)])
    colour = style["color"]
    ax.plot([x for x, _ in best], [y for _, y in best], linestyle=line_style(line.data), color=colour, linewidth=1.3)
    ax.plot(xs, [point.quality for point in line.points], linestyle="none", zorder=3, **style)


def _write_key(ax: Axes, lines: Sequence[Sweep], texts: Sequence[str], heights: Sequence[float]) -> None:
    """Write each model's name and AUP to the right of the panel, in the order of the suite, in its family's colour."""
    down = 0.0
    for line, text, height in zip(lines, texts, heights, strict=True):
        ax.annotate(
            text, (1, 1), xytext=(GAP, -down), xycoords="axes fraction", textcoords="offset points",
            ha="left", va="top", size=LABEL_SIZE, color=text_colour(line.family), linespacing=1.15,
            annotation_clip=False,
        )  # fmt: skip
        down += height
