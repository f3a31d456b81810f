"""Error rate against real-time factor: what speech recognition is usually judged by."""

from __future__ import annotations

from matplotlib.figure import Figure

from bench.figures.scatter import Dot, Panel, Scatter, references
from bench.figures.style import empty_figure
from bench.results import TaskResults


def draw_real_time(task: TaskResults) -> Figure | None:
    """Draw the headline metric against the real-time factor of decoding at batch size 1; None if this is not speech."""
    if not task.is_speech:
        return None
    title = f"{task.name}: quality against real-time factor"
    size = task.real_time_batch_sizes[0] if task.real_time_batch_sizes else 1
    if task.headline is not None:
        panel = Panel(size, _dots(task, size), f"No cell has quality and a real-time factor at batch size {size}.")
        about = "Real-time factor: time over the duration of the audio; here of decoding, from features to ids."
        x_label = "Real-time factor of decoding (log scale)"
        if figure := Scatter(title, x_label, [panel], less_is_faster=True, about=about).draw(task):
            return figure
    missing = "cell that has both quality and real-time factor" if task.headline is not None else "quality"
    return empty_figure(title, f"No {missing} in the records.", task)


def _dots(task: TaskResults, size: int) -> list[Dot]:
    assert task.headline is not None
    dots = []
    for cell in task.cells:
        factor, quality = cell.get("real_time_factor", size, "decode"), cell.get(task.headline)
        if factor.value is not None and factor.value > 0 and quality.value is not None:
            dots.append(Dot(cell, factor, quality, any(cell is other for other in references(task))))
    return dots
