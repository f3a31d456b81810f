"""Quality against speed-up: the picture of what speed costs, with the Pareto front of the systems compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.figures.labels import label_points
from bench.figures.style import (
    GREY,
    MARKER_POINTS,
    SIZE,
    Page,
    Style,
    empty_figure,
    family_legend,
    literal,
    log_axis,
    marker_style,
    say_missing,
    text_colour,
    text_size,
    wrap,
)
from bench.protocol import conditions
from bench.results import Cell, Estimate, TaskResults, quality_metric

LABEL_WIDTH = 32
"""Characters in a line of a label."""
MAX_DIRECT = 16
"""With more cells than this, points are numbered."""
FRONT = "#BBBBBB"
"""Colour of the Pareto front."""


@dataclass(frozen=True)
class Dot:
    """A cell with both values."""

    cell: Cell
    speedup: Estimate
    quality: Estimate
    is_reference: bool

    @property
    def x(self) -> float:
        """Speed-up."""
        assert self.speedup.value is not None
        return self.speedup.value

    @property
    def y(self) -> float:
        """Quality."""
        assert self.quality.value is not None
        return self.quality.value

    @property
    def bars(self) -> list[tuple[float, float, float, float]]:
        """Both error bars as left, bottom, right, top."""
        left, bottom, right, top = self.extent
        return [(left, self.y, right, self.y), (self.x, bottom, self.x, top)]

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, bottom, right and top end of the error bars."""
        left, right = self.speedup.bounds or (self.x, self.x)
        bottom, top = self.quality.bounds or (self.y, self.y)
        return min(left, self.x), min(bottom, self.y), max(right, self.x), max(top, self.y)


def draw_pareto(task: TaskResults) -> Figure:
    """Draw quality against the speed-up over the first AR reference, at the smallest and the largest batch size."""
    return _draw(task, direct=True) or _draw(task, direct=False) or _empty(task)


def _empty(task: TaskResults) -> Figure:
    missing = [name for name, there in (("quality", task.headline), ("speed-up", task.references)) if not there]
    what = " and no ".join(missing) or "cell that has both quality and speed-up"
    return empty_figure(_title(task), f"No {what} in the records.", task)


def _title(task: TaskResults) -> str:
    return f"{task.name}: quality against speed-up"


def _draw(task: TaskResults, *, direct: bool) -> Figure | None:
    """Draw with labels at the points, or with numbers and a key; None if there is nothing or no room for labels."""
    sizes = task.speedup_batch_sizes()
    if not sizes or not task.headline or not task.references:
        return None
    reference = task.references[0]
    panels = [_dots(task, reference, size) for size in sizes]
    if not any(panels):
        return None
    shown = [cell for cell in task.cells if any(dot.cell is cell for dots in panels for dot in dots)]
    key = [] if direct else [wrap(f"{i}  {cell.name}", 44) for i, cell in enumerate(shown, 1)]
    if direct and len(shown) > MAX_DIRECT:
        return None
    texts = {id(c): wrap(c.name, LABEL_WIDTH) if direct else str(i) for i, c in enumerate(shown, 1)}
    x_label = wrap(f"Speed-up over {reference} (×, log scale)", 64)
    key_width, key_height = text_size("\n".join(key), SIZE - 1) if key else (0.0, 0.0)
    page = Page(
        _title(task),
        panels=len(sizes),
        panel_height=max(4.6, key_height / 72 if key else 0),
        right=0.35,
        legend=_legend(shown, any(dot.is_reference for dots in panels for dot in dots)),
        notes=_notes(task, sizes, panels),
        x_label_lines=x_label.count("\n") + 1,
        panel_titles=[f"Batch size {size}" for size in sizes],
        margin=key_width / 72 + 0.2 if key else 0.0,
    )
    figure, axes = page.build()
    info = quality_metric(task.headline)
    for ax, dots, size in zip(axes, panels, sizes, strict=True):
        ax.set_xlabel(x_label)
        ax.set_ylabel(literal(info.title) + (f" ({info.unit})" if info.unit else ""))
        if not dots:
            say_missing(ax, f"No cell has quality and a speed-up at batch size {size}.")
            continue
        _limits(ax, [dot for other in panels for dot in other], lower_is_better=bool(info.lower_is_better))
        low, high = sorted(ax.get_ylim())
        possible = (max(low, 0.0), min(high, 100.0 if info.unit == "%" else high))
        ax.set_yticks([tick for tick in ax.get_yticks() if possible[0] <= tick <= possible[1]])
        lines = _front(ax, dots, lower_is_better=bool(info.lower_is_better))
        _points(ax, dots)
        fits = label_points(
            ax,
            [(dot.x, dot.y) for dot in dots],
            [texts[id(dot.cell)] for dot in dots],
            [text_colour(dot.cell.family) for dot in dots],
            [*(bar for dot in dots for bar in dot.bars), *lines],
            together=20.0 if direct else 9.0,
        )
        if direct and not fits:
            return None
    if key:
        axes[-1].annotate(
            "\n".join(key), (1, 1), xytext=(16, 0), xycoords="axes fraction", textcoords="offset points",
            size=SIZE - 1, va="top", linespacing=1.25, annotation_clip=False,
        )  # fmt: skip
    return figure


def _dots(task: TaskResults, reference: str, size: int) -> list[Dot]:
    assert task.headline is not None
    references = [task.referred(name) for name in task.references]
    dots = []
    for cell in task.cells:
        speedup, quality = task.speedup(cell, reference, size), cell.get(task.headline)
        if speedup.value is not None and speedup.value > 0 and quality.value is not None:
            dots.append(Dot(cell, speedup, quality, any(cell is other for other in references)))
    return dots


def _limits(ax: Axes, dots: Sequence[Dot], *, lower_is_better: bool) -> None:
    """Give all panels the same limits, with room for labels; better is up."""
    left = min(1.0, *(dot.extent[0] for dot in dots))
    right = max(1.0, *(dot.extent[2] for dot in dots))
    room = max(right / left, 4.0) ** 0.16
    log_axis(ax.xaxis, left / room, right * room * 1.15)
    bottom, top = min(dot.extent[1] for dot in dots), max(dot.extent[3] for dot in dots)
    room = 0.09 * max(top - bottom, 5.0)
    bottom, top = bottom - room, top + room
    ax.set_ylim((top, bottom) if lower_is_better else (bottom, top))


def front(points: Sequence[tuple[float, float]], *, lower_is_better: bool = False) -> list[tuple[float, float]]:
    """Return the points that no other one beats or equals in one value and beats in the other, by rising speed-up."""
    sign = -1 if lower_is_better else 1
    best: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda p: (-p[0], -sign * p[1])):
        if not best or sign * y > sign * best[-1][1]:
            best.append((x, y))
    return best[::-1]


def _front(ax: Axes, dots: Sequence[Dot], *, lower_is_better: bool) -> list[tuple[float, float, float, float]]:
    """Draw the front, and the first reference's speed; return their lines as left, bottom, right, top.

    Steps, not slopes: whoever has a system has all that is slower and worse, but nothing between two systems.
    """
    best = front([(dot.x, dot.y) for dot in dots], lower_is_better=lower_is_better)
    worst = ax.get_ylim()[0]
    xs = [ax.get_xlim()[0], *(x for x, _ in best)]
    ys = [*(y for _, y in best), worst]
    lines = [(xs[i], ys[i], xs[i + 1], ys[i]) for i in range(len(best))]
    lines += [(xs[i + 1], ys[i], xs[i + 1], ys[i + 1]) for i in range(len(best))]
    corners = [point for i in range(len(best)) for point in ((xs[i], ys[i]), (xs[i + 1], ys[i]))]
    corners.append((xs[-1], worst))
    ax.plot([x for x, _ in corners], [y for _, y in corners], color=FRONT, linewidth=1.4, zorder=1)
    ax.axvline(1.0, color=GREY, linewidth=0.9, linestyle=":", zorder=1)
    return [*lines, (1.0, worst, 1.0, ax.get_ylim()[1])]


def _points(ax: Axes, dots: Sequence[Dot]) -> None:
    for dot in dots:
        left, bottom, right, top = dot.extent
        ax.errorbar(
            dot.x, dot.y, xerr=[[dot.x - left], [right - dot.x]], yerr=[[dot.y - bottom], [top - dot.y]],
            elinewidth=1.0, capsize=2.0, zorder=3, linestyle="none", **marker_style(dot.cell),
        )  # fmt: skip
        if dot.is_reference:
            ax.plot(dot.x, dot.y, marker="o", markersize=15, markerfacecolor="none", markeredgecolor="black",
                    markeredgewidth=0.9, zorder=4, linestyle="none")  # fmt: skip


def _legend(cells: Sequence[Cell], with_reference: bool) -> list[tuple[str, Line2D]]:
    entries = family_legend(cells)
    if with_reference:
        ring: Style = {
            "marker": "o",
            "markersize": MARKER_POINTS + 4,
            "markerfacecolor": "none",
            "markeredgecolor": "black",
        }
        entries.append(("AR reference", Line2D([], [], linestyle="none", **ring)))
    entries.append(("Pareto front", Line2D([], [], color=FRONT, linewidth=1.4)))
    entries.append(("as fast as the first reference", Line2D([], [], color=GREY, linewidth=0.9, linestyle=":")))
    return entries


def _notes(task: TaskResults, sizes: Sequence[int], panels: Sequence[Sequence[Dot]]) -> list[str]:
    assert task.headline is not None
    several = any(len(cell.seeds) > 1 for cell in task.cells)
    notes = ["Bars: " + ("smallest to largest of several training seeds, else " if several else "") + "95 % interval."]
    if quality_metric(task.headline).lower_is_better:
        notes[0] += " Less is better, so the axis points down: up and right is best."
    for cell in task.cells:
        lost = [str(size) for size, dots in zip(sizes, panels, strict=True) if all(d.cell is not cell for d in dots)]
        if lost:
            notes.append(f"Not shown at batch size {', '.join(lost)}: {cell.name}: {cell.why}")
    return [*notes, conditions(task)]
