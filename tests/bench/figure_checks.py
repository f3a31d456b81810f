"""How figures are looked at in tests: their texts, where those stand, and a crowd of cells to show."""

import xml.etree.ElementTree as ET

from matplotlib.text import Text

from bench import figures
from bench.figures.style import FAMILIES, styled
from bench.results import by_task
from tests.bench.synthetic import Spec


def texts(path):
    """The texts of an SVG file."""
    return [node.text or "" for node in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def draw(kind, rows, samples=None):
    """The figure of the only task in `rows`, or None."""
    (task,) = by_task(rows)
    with styled():
        figure = figures.draw(kind, task, samples)
        if figure is not None:
            figure.draw_without_rendering()
    return figure


def shown(figure):
    """All texts of a figure."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def drawn(figure):
    """The texts that a reader sees, with their boxes in pixels; ticks outside the axes are not drawn."""
    hidden = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            hidden |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    found = []
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and text not in hidden:
            found.append((text.get_text(), Text.get_window_extent(text)))  # of an annotation without its arrow
    return found


def overlaps(figure):
    """Pairs of texts whose boxes share more than a hair."""
    boxes = drawn(figure)
    found = []
    for i, (a, first) in enumerate(boxes):
        for b, second in boxes[i + 1 :]:
            width = min(first.x1, second.x1) - max(first.x0, second.x0)
            height = min(first.y1, second.y1) - max(first.y0, second.y0)
            if width > 1 and height > 2:
                found.append((a, b))
    return found


CROWD = [
    Spec(f"{family}-{data}", family, f"iterations={k}", data, 60 + 3 * k + 0.1 * i, 2 + i % 3, 5)
    for i, family in enumerate(FAMILIES)
    for k in (4, 10)
    for data in ("raw", "distilled")
]
