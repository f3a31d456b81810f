"""Quality against speed-up: the picture of what speed costs."""

from __future__ import annotations

from matplotlib.figure import Figure

from bench.figures.scatter import Dot, Panel, Scatter, references
from bench.figures.style import empty_figure
from bench.results import TaskResults


def draw_pareto(task: TaskResults) -> Figure | None:
    """Draw quality against the speed-up over the first AR reference, at the smallest and the largest batch size.

    Nothing is drawn of a task that ranks nothing by quality.
    """
    if task.quality and not task.ranking:
        return None
    title = f"{task.name}: quality against speed-up"
    missing = [name for name, there in (("quality", task.headline), ("speed-up", task.references)) if not there]
    if not missing:
        reference = task.references[0]
        panels = [
            Panel(size, _dots(task, reference, size), f"No cell has quality and a speed-up at batch size {size}.")
            for size in task.speedup_batch_sizes()
        ]
        x_label = f"Speed-up over {reference} (×, log scale)"
        plot = Scatter(title, x_label, panels, less_is_faster=False, at=1.0, at_title="as fast as the first reference")
        if figure := plot.draw(task):
            return figure
    what = " and no ".join(missing) or "cell that has both quality and speed-up"
    return empty_figure(title, f"No {what} in the records.", task)


def _dots(task: TaskResults, reference: str, size: int) -> list[Dot]:
    assert task.headline is not None
    dots = []
    for cell in task.cells:
        speedup, quality = task.speedup(cell, reference, size), cell.get(task.headline)
        if speedup.value is not None and speedup.value > 0 and quality.value is not None:
            dots.append(Dot(cell, speedup, quality, any(cell is other for other in references(task))))
    return dots
