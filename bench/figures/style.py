"""How all figures look: one colour and one marker per family, literal text, pages laid out in inches, stable files.

Colours start from Okabe and Ito's palette for the colour-blind; with twelve families the marker is the second cue.
"""

from __future__ import annotations

import hashlib
import io
import math
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.protocol import conditions
from bench.results import Cell, TaskResults
from bench.store import write_atomically

FAMILIES = {
    "transformer": ("#0072B2", "o"),
    "rnn": ("#4D4D4D", "s"),
    "ctc": ("#D55E00", "D"),
    "fertility_nat": ("#E69F00", "^"),
    "mask_predict": ("#009E73", "v"),
    "levenshtein": ("#CC79A7", "P"),
    "insertion": ("#56B4E9", "X"),
    "imputer": ("#882255", "<"),
    "inat": ("#999933", ">"),
    "glat": ("#6A3D9A", "p"),
    "kermit": ("#332288", "h"),
    "masked_diffusion": ("#117733", "d"),
}
"""Colour and marker of each family, the same in every figure."""
_OTHER_COLOURS = ("#8C564B", "#7F7F7F", "#B15928", "#5F7C8A", "#A6761D")
_OTHER_MARKERS = ("*", "8", "H")

Style = dict[str, Any]
"""Keyword arguments of artists."""

DPI = 150
SIZE = 9.0
"""Font size in points."""
GREY = "#5A5A5A"
MARKER_POINTS = 8.0
RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelsize": SIZE,
    "axes.titlesize": SIZE + 1,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "natbench",
}


def family_style(family: str) -> tuple[str, str]:
    """Return colour and marker of `family`; a family that is not built in always gets the same ones of its own."""
    if family in FAMILIES:
        return FAMILIES[family]
    digest = hashlib.sha256(family.encode()).digest()
    return _OTHER_COLOURS[digest[0] % len(_OTHER_COLOURS)], _OTHER_MARKERS[digest[1] % len(_OTHER_MARKERS)]


def text_colour(family: str) -> str:
    """Return the family's colour, darkened to be read on white."""
    red, green, blue = to_rgb(family_style(family)[0])
    return to_hex((red * 0.7, green * 0.7, blue * 0.7))


def marker_style(cell: Cell) -> Style:
    """Return how a cell is marked: filled if trained on distilled data, hollow on raw."""
    colour, marker = family_style(cell.family)
    fill = colour if cell.data == "distilled" else "white"
    return {
        "marker": marker,
        "markersize": MARKER_POINTS,
        "color": colour,
        "markerfacecolor": fill,
        "markeredgecolor": colour,
        "markeredgewidth": 1.5,
    }


def literal(text: str) -> str:
    """Return `text` with what no file can show, control characters, replaced; nothing in it is markup."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def wrap(text: str, width: int) -> str:
    """Break `text` into lines of at most `width` characters, inside of words if need be."""
    return "\n".join(textwrap.wrap(literal(text), width)) or " "


_MEASURING_DPI = 720
"""High, so that hinting does not round widths."""


@cache
def _renderer() -> Any:
    return FigureCanvasAgg(Figure(figsize=(0.1, 0.1), dpi=_MEASURING_DPI)).get_renderer()  # type: ignore[no-untyped-call]


@cache
def text_size(text: str, size: float = SIZE) -> tuple[float, float]:
    """Return width and height of `text` (of several lines) in points."""
    font = FontProperties(family=RC["font.family"], size=size)
    lines = text.split("\n")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        width = max(_renderer().get_text_width_height_descent(line, font, False)[0] for line in lines)
    return width * 72 / _MEASURING_DPI, len(lines) * size * 1.25


@dataclass
class Page:
    """A figure: a title, panels in rows, a legend under them, and notes at the bottom. Lengths are in inches."""

    title: str
    panels: int = 1
    columns: int = 0
    """Panels in a row; 0: all side by side."""
    panel_width: float = 5.2
    panel_height: float = 4.2
    left: float = 0.85
    """Room for tick labels and the axis label of each panel."""
    first_left: float | None = None
    """The same for the first panel of each row, if that needs more."""
    right: float = 0.3
    """Room to the right of each panel."""
    margin: float = 0.0
    """Room to the right of the last one, beside that."""
    above: float = 0.05
    """Room above each row of panels, for what stands there beside `panel_titles`."""
    below: float = 0.3
    """Room under each row but the last one, for tick labels."""
    legend: list[tuple[str, Line2D]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    x_label_lines: int = 1
    panel_titles: Sequence[str] = ()

    def build(self) -> tuple[Figure, list[Axes]]:
        """Return the figure and its panels."""
        columns = self.columns or self.panels
        num_rows = math.ceil(self.panels / columns)
        extra = 0.0 if self.first_left is None else self.first_left - self.left
        width = columns * (self.left + self.panel_width + self.right) + extra + self.margin
        characters = int(width * 72 / (0.56 * SIZE))
        notes = "\n".join(wrap(note, characters) for note in self.notes)
        title = wrap(self.title, int(characters * 0.85))
        line = SIZE * 1.3 / 72
        rows = self._legend_rows(width)
        below_legend = 0.12 + (notes.count("\n") + 1) * line if notes else 0.08
        bottom = below_legend + len(rows) * line * 1.25 + 0.38 + (self.x_label_lines) * line
        above = self.above + (0.23 if self.panel_titles else 0)
        row_height = above + self.panel_height + self.below
        height = bottom + num_rows * row_height - self.below + 0.2 + (title.count("\n") + 1) * line * 1.15
        figure = Figure(figsize=(width, height), dpi=72)
        FigureCanvasAgg(figure)
        figure.text(0.12 / width, 1 - 0.1 / height, title, va="top", size=SIZE + 2, weight="bold")
        if notes:
            figure.text(0.12 / width, 0.08 / height, notes, va="bottom", size=SIZE - 1, color=GREY, linespacing=1.3)
        for index, row in enumerate(rows):
            self._draw_legend_row(figure, row, below_legend + (len(rows) - 1 - index + 0.5) * line * 1.25)
        axes = []
        for panel in range(self.panels):
            down, across = divmod(panel, columns)
            start = across * (self.left + self.panel_width + self.right) + self.left + extra
            base = bottom + (num_rows - 1 - down) * row_height
            box = (start / width, base / height, self.panel_width / width, self.panel_height / height)
            axes.append(figure.add_axes(box))
        for ax, text in zip(axes, self.panel_titles, strict=False):
            ax.set_title(text, loc="left")
        return figure, axes

    def _legend_rows(self, width: float) -> list[list[tuple[str, Line2D]]]:
        """Break the legend into rows that fit."""
        rows: list[list[tuple[str, Line2D]]] = []
        free = 0.0
        for text, handle in self.legend:
            needed = _legend_width(text, handle)
            if not rows or needed > free:
                rows.append([])
                free = width - 0.3
            rows[-1].append((literal(text), handle))
            free -= needed
        return rows

    def _draw_legend_row(self, figure: Figure, row: list[tuple[str, Line2D]], y: float) -> None:
        width, height = figure.get_size_inches()
        x = 0.14
        for text, handle in row:
            end = x + _handle_width(handle)
            handle.set_data([x / width, (x + end) / 2 / width, end / width], [y / height] * 3)
            handle.set_markevery([1])
            handle.set_transform(figure.transFigure)
            figure.add_artist(handle)
            figure.text((end + 0.07) / width, y / height, text, va="center", size=SIZE)
            x += _legend_width(text, handle)


def _handle_width(handle: Line2D) -> float:
    """Return the inches that a legend's handle takes: more if it is a line."""
    return 0.14 if handle.get_linestyle() == "None" else 0.42


def _legend_width(text: str, handle: Line2D) -> float:
    return _handle_width(handle) + 0.07 + text_size(literal(text))[0] / 72 + 0.2


def family_legend(cells: Iterable[Cell], *, lines: bool = False) -> list[tuple[str, Line2D]]:
    """Return a legend entry for each family and one for each kind of training data, which `lines` show too."""
    cells = list(cells)
    entries = []
    for family in dict.fromkeys(cell.family for cell in cells):
        colour, marker = family_style(family)
        style: Style = {"color": colour, "marker": marker, "markersize": MARKER_POINTS}
        entries.append((family, Line2D([], [], linestyle="none", **style)))
    for data, fill in (("raw", "white"), ("distilled", GREY)):
        if any(cell.data == data for cell in cells):
            style = {"color": GREY, "marker": "o", "markersize": MARKER_POINTS, "markerfacecolor": fill}
            style |= {"markeredgewidth": 1.5, "linestyle": line_style(data) if lines else "none"}
            entries.append((f"trained on {data} data", Line2D([], [], **style)))
    return entries


def line_style(data: str) -> str:
    """Return the line style of a kind of training data: solid if distilled, dashed if raw."""
    return "-" if data == "distilled" else "--"


def log_axis(axis: Axis, low: float, high: float, ticks: Iterable[float] | None = None) -> None:
    """Make `axis` logarithmic from `low` to `high`, with plain numbers (1, 2, 5, 10, ...) at its ticks."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}lim": (low, high)})  # type: ignore[attr-defined]
    if ticks is None:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if high / low < 3000 else (1,)
        ticks = [step * 10.0**decade for decade in decades for step in steps]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e5 else f"{value / 1000:g}k"))


def empty_figure(title: str, text: str, task: TaskResults) -> Figure:
    """Return a figure that says what is missing, and which cells failed."""
    notes = [f"{cell.name}: {cell.why}" for cell in task.cells if cell.problems]
    figure, (ax,) = Page(title, panel_height=1.2, notes=[*notes, conditions(task)]).build()
    say_missing(ax, text)
    return figure


def say_missing(ax: Axes, text: str) -> None:
    """Write into an empty panel what is missing."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, wrap(text, 50), transform=ax.transAxes, ha="center", va="center", color=GREY)


_FORMATS: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
"""The metadata that each leaves out, so that the same figure gives the same bytes."""


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `figure` as PNG and SVG; the same figure gives the same bytes."""
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in _FORMATS]
    for path, suffix in zip(paths, _FORMATS, strict=True):
        write_atomically(path, _rendered(figure, suffix))
    return paths


def svg_of(figure: Figure) -> bytes:
    """Return `figure` as SVG."""
    return _rendered(figure, "svg")


def _rendered(figure: Figure, suffix: str) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # shown as a box in PNG, literally in SVG
        figure.savefig(buffer, format=suffix, dpi=DPI, metadata=_FORMATS[suffix])
    return buffer.getvalue()


def styled() -> Any:
    """Return the context in which figures are made and saved."""
    return mpl.rc_context(RC)
