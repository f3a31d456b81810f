"""Quality against speed: points with error bars and labels, and the Pareto front of the systems compared.

Better is up and to the right, whatever the two values are: the axis of one that is better when less is turned round.
"""

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
from bench.results import Cell, Estimate, Metric, TaskResults, quality_metric

LABEL_WIDTH = 32
"""Characters in a line of a label."""
MAX_DIRECT = 16
"""With more cells than this, points are numbered."""
MAX_NUMBERED = 100
"""With more cells than this, only those on the Pareto front and the references are numbered."""
FRONT = "#BBBBBB"
"""Colour of the Pareto front."""


@dataclass(frozen=True)
class Dot:
    """A cell with both values."""

    cell: Cell
    speed: Estimate
    quality: Estimate
    is_reference: bool

    @property
    def x(self) -> float:
        """Speed."""
        assert self.speed.value is not None
        return self.speed.value

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
        """Least x, least y, greatest x and greatest y of the error bars."""
        left, right = self.speed.bounds or (self.x, self.x)
        bottom, top = self.quality.bounds or (self.y, self.y)
        return min(left, self.x), min(bottom, self.y), max(right, self.x), max(top, self.y)


@dataclass(frozen=True)
class Panel:
    """The points at one batch size."""

    batch_size: int
    dots: Sequence[Dot]
    missing: str
    """What to say if there is no point."""


@dataclass(frozen=True)
class Scatter:
    """What a figure shows. Speed has a logarithmic axis."""

    title: str
    x_label: str
    panels: Sequence[Panel]
    less_is_faster: bool
    at: float | None = None
    """Where to draw a vertical line, if anywhere."""
    at_title: str = ""
    """What the legend calls that line."""
    about: str = ""
    """What to say of the speed in a note."""

    def draw(self, task: TaskResults) -> Figure | None:
        """Draw with labels at the points if they fit, else with numbers and a key; None if there is no point."""
        assert task.headline is not None
        if not any(panel.dots for panel in self.panels):
            return None
        quality = quality_metric(task.headline)
        figure = self._draw(task, quality, direct=True) or self._draw(task, quality, direct=False)
        assert figure is not None
        return figure

    def _draw(self, task: TaskResults, quality: Metric, *, direct: bool) -> Figure | None:
        """Draw with labels at the points, or with numbers and a key; None if there is no room for labels."""
        dots = [dot for panel in self.panels for dot in panel.dots]
        shown = [cell for cell in task.cells if any(dot.cell is cell for dot in dots)]
        if direct and len(shown) > MAX_DIRECT:
            return None
        named = shown if len(shown) <= MAX_NUMBERED else self._outstanding(shown, quality)
        key = [] if direct else [wrap(f"{i}  {cell.name}", 44) for i, cell in enumerate(named, 1)]
        texts = {id(c): wrap(c.name, LABEL_WIDTH) if direct else str(i) for i, c in enumerate(named, 1)}
        x_label = wrap(self.x_label, 64)
        key_width, key_height = text_size("\n".join(key), SIZE - 1) if key else (0.0, 0.0)
        page = Page(
            self.title,
            panels=len(self.panels),
            panel_height=max(4.6, key_height / 72 if key else 0),
            right=0.35,
            legend=self._legend(shown, any(dot.is_reference for dot in dots)),
            notes=[*self._notes(task, quality), *_unnamed(shown, named)],
            x_label_lines=x_label.count("\n") + 1,
            panel_titles=[f"Batch size {panel.batch_size}" for panel in self.panels],
            margin=key_width / 72 + 0.2 if key else 0.0,
        )
        figure, axes = page.build()
        for ax, panel in zip(axes, self.panels, strict=True):
            ax.set_xlabel(x_label)
            ax.set_ylabel(literal(quality.title) + (f" ({quality.unit})" if quality.unit else ""))
            if not panel.dots:
                say_missing(ax, panel.missing)
                continue
            self._limits(ax, dots, quality)
            lines = self._front(ax, panel.dots, lower_is_better=bool(quality.lower_is_better))
            _points(ax, panel.dots)
            labelled = [dot for dot in panel.dots if id(dot.cell) in texts]
            fits = label_points(
                ax,
                [(dot.x, dot.y) for dot in labelled],
                [texts[id(dot.cell)] for dot in labelled],
                [text_colour(dot.cell.family) for dot in labelled],
                [*(bar for dot in panel.dots for bar in dot.bars), *lines],
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

    def _outstanding(self, cells: Sequence[Cell], quality: Metric) -> list[Cell]:
        """Return those of `cells` that are on the front of a panel, or a reference."""
        chosen = set()
        for panel in self.panels:
            points = [(dot.x, dot.y) for dot in panel.dots]
            worse = bool(quality.lower_is_better)
            best = set(front(points, lower_is_better=worse, less_is_faster=self.less_is_faster))
            chosen |= {id(dot.cell) for dot in panel.dots if dot.is_reference or (dot.x, dot.y) in best}
        return [cell for cell in cells if id(cell) in chosen]

    def _limits(self, ax: Axes, dots: Sequence[Dot], quality: Metric) -> None:
        """Give all panels the same limits, with room for labels; better is up and to the right."""
        always = [] if self.at is None else [self.at]
        least, most = min([*always, *(d.extent[0] for d in dots)]), max([*always, *(d.extent[2] for d in dots)])
        room = max(most / least, 4.0) ** 0.16
        slow, fast = (room, room * 1.15) if not self.less_is_faster else (room * 1.15, room)
        log_axis(ax.xaxis, least / slow, most * fast)
        if self.less_is_faster:
            ax.set_xlim(most * fast, least / slow)
        bottom, top = min(dot.extent[1] for dot in dots), max(dot.extent[3] for dot in dots)
        room = 0.09 * max(top - bottom, 5.0)
        bottom, top = bottom - room, top + room
        ax.set_ylim((top, bottom) if quality.lower_is_better else (bottom, top))
        possible = (max(bottom, 0.0), min(top, 100.0 if quality.unit == "%" else top))
        ax.set_yticks([tick for tick in ax.get_yticks() if possible[0] <= tick <= possible[1]])

    def _front(
        self, ax: Axes, dots: Sequence[Dot], *, lower_is_better: bool
    ) -> list[tuple[float, float, float, float]]:
        """Draw the front, and the line; return what was drawn as left, bottom, right, top.

        Steps, not slopes: whoever has a system has all that is slower and worse, but nothing between two systems.
        """
        best = front([(d.x, d.y) for d in dots], lower_is_better=lower_is_better, less_is_faster=self.less_is_faster)
        worst = ax.get_ylim()[0]
        xs = [ax.get_xlim()[0], *(x for x, _ in best)]
        ys = [*(y for _, y in best), worst]
        lines = [(xs[i], ys[i], xs[i + 1], ys[i]) for i in range(len(best))]
        lines += [(xs[i + 1], ys[i], xs[i + 1], ys[i + 1]) for i in range(len(best))]
        corners = [point for i in range(len(best)) for point in ((xs[i], ys[i]), (xs[i + 1], ys[i]))]
        corners.append((xs[-1], worst))
        ax.plot([x for x, _ in corners], [y for _, y in corners], color=FRONT, linewidth=1.4, zorder=1)
        if self.at is None:
            return lines
        ax.axvline(self.at, color=GREY, linewidth=0.9, linestyle=":", zorder=1)
        return [*lines, (self.at, worst, self.at, ax.get_ylim()[1])]

    def _legend(self, cells: Sequence[Cell], with_reference: bool) -> list[tuple[str, Line2D]]:
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
        if self.at is not None:
            entries.append((self.at_title, Line2D([], [], color=GREY, linewidth=0.9, linestyle=":")))
        return entries

    def _notes(self, task: TaskResults, quality: Metric) -> list[str]:
        several = any(len(cell.seeds) > 1 for cell in task.cells)
        spread = "smallest to largest of several training seeds, else " if several else ""
        notes = [f"Bars: {spread}95 % interval."]
        if quality.lower_is_better and self.less_is_faster:
            notes[0] += " Less is better of both, so both axes are turned round: up and right is best."
        elif quality.lower_is_better:
            notes[0] += " Less is better, so the axis points down: up and right is best."
        elif self.less_is_faster:
            notes[0] += " Less is faster, so the axis is turned round: up and right is best."
        for cell in task.cells:
            lost = [str(p.batch_size) for p in self.panels if all(dot.cell is not cell for dot in p.dots)]
            if lost:
                notes.append(f"Not shown at batch size {', '.join(lost)}: {cell.name}: {cell.why}")
        return [*([self.about] if self.about else []), *notes, conditions(task)]


def _unnamed(shown: Sequence[Cell], named: Sequence[Cell]) -> list[str]:
    """Return a note if not all cells are named."""
    if len(named) == len(shown):
        return []
    return [f"Of {len(shown)} points those on the Pareto front and the AR references are named; tables have the rest."]


def references(task: TaskResults) -> list[Cell]:
    """Return the cells that speed-ups are taken over."""
    return [cell for cell in map(task.referred, task.references) if cell is not None]


def front(
    points: Sequence[tuple[float, float]], *, lower_is_better: bool = False, less_is_faster: bool = False
) -> list[tuple[float, float]]:
    """Return the points that no other one beats or equals in one value and beats in the other, the slowest first."""
    faster, better = -1 if less_is_faster else 1, -1 if lower_is_better else 1
    best: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda p: (-faster * p[0], -better * p[1])):
        if not best or better * y > better * best[-1][1]:
            best.append((x, y))
    return best[::-1]


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
