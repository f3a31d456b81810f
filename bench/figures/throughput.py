"""Throughput, and speed-up over an AR reference, against batch size: who profits from batching."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.figures.labels import GAP, LABEL_SIZE, label_ends
from bench.figures.style import (
    GREY,
    Page,
    empty_figure,
    family_legend,
    family_style,
    line_style,
    log_axis,
    marker_style,
    text_colour,
    text_size,
    wrap,
)
from bench.protocol import conditions
from bench.results import Cell, Estimate, TaskResults

Line = tuple[Cell, list[tuple[int, Estimate]]]

LABEL_WIDTH = 34


def draw_throughput(task: TaskResults) -> Figure:
    """Draw tokens per second over the batch size, a line per cell with its interval as a band."""
    title = f"{task.name}: throughput against batch size"
    figure = _draw(
        task,
        title,
        "Throughput (target tokens/s, log scale)",
        lambda cell, size: cell.get("tokens_per_second", size),
        [],
    )
    return figure or empty_figure(title, "No throughput in the records.", task)


def draw_speedup(task: TaskResults) -> Figure | None:
    """Draw the speed-up over the first AR reference over the batch size: where decoding in parallel stops paying.

    As in Helcl et al. 2022. Nothing is drawn without a reference, or with one batch size.
    """
    if not task.references or len(task.speedup_batch_sizes()) < 2:
        return None
    reference = task.references[0]
    return _draw(
        task,
        f"{task.name}: speed-up against batch size",
        f"Speed-up over {reference} (×, log scale)",
        lambda cell, size: task.speedup(cell, reference, size),
        ["Above the line: faster than the reference. Median of paired ratios, same batch size and same rounds."],
        at=1.0,
    )


def _draw(
    task: TaskResults,
    title: str,
    label: str,
    value: Callable[[Cell, int], Estimate],
    notes: list[str],
    at: float | None = None,
) -> Figure | None:
    """Draw what `value` gives of each cell over the batch size; None if that is nothing. `at`: a line across."""
    lines: list[Line] = []
    lost_notes = []
    for cell in task.cells:
        sweep = [(size, value(cell, size)) for size in task.batch_sizes]
        good = [(size, rate) for size, rate in sweep if rate.value]
        lost = [str(size) for size, rate in sweep if not rate.value]
        why = "no tokens emitted" if any(rate.value == 0 for _, rate in sweep) else cell.why
        if good:
            lines.append((cell, good))
        if lost:
            lost_notes.append(f"Not shown at batch size {', '.join(lost)}: {cell.name}: {why}")
    if not lines:
        return None
    texts = [wrap(cell.name, LABEL_WIDTH) for cell, _ in lines]
    sizes = [text_size(text, LABEL_SIZE) for text in texts]
    several = any(len(cell.seeds) > 1 for cell, _ in lines)
    bands = "Bands: " + ("smallest to largest of several training seeds, else " if several else "") + "95 % interval."
    page = Page(
        title,
        panel_height=max(4.2, sum(height for _, height in sizes) / 72 + 0.1),
        right=(GAP + max(width for width, _ in sizes)) / 72 + 0.15,
        legend=family_legend([cell for cell, _ in lines], lines=True),
        notes=[*notes, bands, *lost_notes, conditions(task)],
    )
    figure, (ax,) = page.build()
    ax.set(xlabel="Batch size (sentences, log scale)", ylabel=label)
    _limits(ax, lines)
    if at is not None:
        ax.axhline(at, color=GREY, linewidth=1.2, zorder=1)
    for cell, sweep in lines:
        _draw_line(ax, cell, sweep)
    ends = [(float(sweep[-1][0]), sweep[-1][1].value or 0.0) for _, sweep in lines]
    label_ends(ax, ends, texts, [text_colour(cell.family) for cell, _ in lines])
    return figure


def _limits(ax: Axes, lines: list[Line]) -> None:
    sizes = sorted({size for _, sweep in lines for size, _ in sweep})
    log_axis(ax.xaxis, sizes[0] / 1.3, sizes[-1] * 1.15, sizes)
    rates = [bound for _, sweep in lines for _, rate in sweep for bound in (*(rate.bounds or ()), rate.value or 0.0)]
    rates = [rate for rate in rates if rate > 0]
    log_axis(ax.yaxis, min(rates) / 1.3, max(rates) * 1.3)


def _draw_line(ax: Axes, cell: Cell, sweep: list[tuple[int, Estimate]]) -> None:
    sizes = [size for size, _ in sweep]
    rates = [rate.value or 0.0 for _, rate in sweep]
    bounds = [rate.bounds or (value, value) for (_, rate), value in zip(sweep, rates, strict=True)]
    ax.fill_between(
        sizes, [low for low, _ in bounds], [high for _, high in bounds],
        color=family_style(cell.family)[0], alpha=0.18, linewidth=0, zorder=2,
    )  # fmt: skip
    ax.plot(sizes, rates, linestyle=line_style(cell.data), linewidth=1.5, zorder=3, **marker_style(cell))
