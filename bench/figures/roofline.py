"""How near decoding comes to what the device allows."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.figures.rows import row_page
from bench.figures.style import GREY, SIZE, family_legend, family_style
from bench.protocol import conditions
from bench.results import TaskResults


def draw_roofline(task: TaskResults) -> Figure | None:
    """Draw each cell's share of the roofline, a mark per batch size; None if none was counted."""
    sizes = [size for size in task.batch_sizes if any(c.get("roofline_fraction", size).value for c in task.cells)]
    cells = [c for c in task.cells if any(c.get("roofline_fraction", size).value for size in sizes)]
    if not cells:
        return None
    areas = {size: 4.0 + 5.0 * i / max(len(sizes) - 1, 1) for i, size in enumerate(sizes)}
    legend = family_legend(cells) + [
        (f"batch size {size}", Line2D([], [], linestyle="none", marker="o", markersize=areas[size], color=GREY))
        for size in sizes
    ]
    notes = [
        "The least time for the floating-point operations and bytes of matrix products, attention and convolutions, at "
        "the device's measured matrix rate and bandwidth, over the measured time. The larger the mark, the larger the "
        "batch.",
        *(f"Not shown: {c.name}: {c.why if c.problems else 'not counted'}" for c in task.cells if c not in cells),
        conditions(task),
    ]
    figure, (ax,) = row_page(f"{task.name}: share of the roofline", cells, notes, legend)
    for row, cell in enumerate(cells):
        colour, marker = family_style(cell.family)
        found = [(size, cell.get("roofline_fraction", size)) for size in sizes]
        values = [estimate.value for _, estimate in found if estimate.value is not None]
        ax.hlines(row, min(values), max(values), color=colour, linewidth=1.2, zorder=2)
        for size, estimate in found:
            if estimate.value is None:
                continue
            if estimate.bounds:
                ax.hlines(row, *estimate.bounds, color=colour, linewidth=3.0, alpha=0.3, zorder=2)
            fill = colour if cell.data == "distilled" else "white"
            ax.plot(estimate.value, row, marker=marker, markersize=areas[size], markerfacecolor=fill,
                    markeredgecolor=colour, markeredgewidth=1.5, linestyle="none", zorder=3)  # fmt: skip
    ax.axvline(100, color=GREY, linewidth=1.2, zorder=1)
    ax.set_xlim(0, max(104.0, *(1.02 * v for c in cells for s in sizes if (v := c.get("roofline_fraction", s).value))))
    ax.set_xlabel("Share of the roofline (%)", size=SIZE)
    return figure
