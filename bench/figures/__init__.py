"""Figures from the records of a run: what each system gives in quality and costs in time. No torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from bench.figures.breakdown import draw_breakdown
from bench.figures.errors import draw_errors
from bench.figures.latency import Samples, draw_latency, read_latencies
from bench.figures.learning import Curve, draw_learning, read_curves
from bench.figures.length import draw_length
from bench.figures.multimodality import draw_multimodality
from bench.figures.pareto import draw_pareto
from bench.figures.positions import draw_positions
from bench.figures.real_time import draw_real_time
from bench.figures.refinement import draw_refinement
from bench.figures.roofline import draw_roofline
from bench.figures.style import save, styled, svg_of
from bench.figures.subsets import draw_subsets
from bench.figures.throughput import draw_speedup, draw_throughput
from bench.records import read_records
from bench.results import TaskResults, by_task

KINDS = (
    *("quality-speedup", "throughput", "speedup", "latency", "latency-length", "quality-passes", "multimodality"),
    *("quality-rtf", "subsets", "errors", "positions", "learning", "breakdown", "roofline"),
)
"""What file names end with, after the task."""
FEW_ENOUGH = 150
"""With more cells than this, a line or a bar for each is no picture any more, and only `AT_ANY_SIZE` are drawn."""
AT_ANY_SIZE = ("quality-speedup", "quality-rtf")


def write_figures(results_dir: Path) -> list[Path]:
    """Draw the figures of each task into `figures/` as PNG and SVG, from `records.csv` and what lies beside it.

    That is `latencies.csv`, the raw times, and `curves.csv`, the learning curves; either may be missing.

    The same records give the same bytes. A figure that has nothing to do with a task is not drawn, and those that a
    former run left go away.

    Raises:
        ValueError: one of the files is damaged.
    """
    records = read_records(results_dir / "records.csv")
    latencies = results_dir / "latencies.csv"
    samples = read_latencies(latencies) if latencies.is_file() else None
    curves = read_curves(results_dir / "curves.csv") if (results_dir / "curves.csv").is_file() else []
    folder = results_dir / "figures"
    folder.mkdir(exist_ok=True)
    written = []
    for task in by_task(records):
        for kind in KINDS:
            with styled():
                figure = draw(kind, task, samples, curves)
                if figure is not None:
                    written += save(figure, folder / f"{file_name(task.name)}-{kind}")
    drawn = re.compile(rf".*-({'|'.join(KINDS)})\.(png|svg)")
    for path in sorted(folder.iterdir()):
        if drawn.fullmatch(path.name) and path not in written:
            path.unlink()
    return written


def draw(kind: str, task: TaskResults, samples: Samples | None = None, curves: Sequence[Curve] = ()) -> Figure | None:
    """Draw one of `KINDS`; None if it has nothing to do with the task.

    samples: the raw latencies, if there are any; curves: the learning curves, those of other tasks among them.
    """
    drawers: dict[str, Callable[[TaskResults], Figure | None]] = {
        "quality-speedup": draw_pareto,
        "throughput": draw_throughput,
        "speedup": draw_speedup,
        "latency": partial(draw_latency, samples=samples),
        "latency-length": partial(draw_length, samples=samples),
        "quality-passes": draw_refinement,
        "multimodality": draw_multimodality,
        "quality-rtf": draw_real_time,
        "subsets": draw_subsets,
        "errors": draw_errors,
        "positions": draw_positions,
        "learning": partial(draw_learning, curves=curves),
        "breakdown": draw_breakdown,
        "roofline": draw_roofline,
    }
    if len(task.cells) > FEW_ENOUGH and kind not in AT_ANY_SIZE:
        return None
    return drawers[kind](task)


def draw_svg(kind: str, task: TaskResults, curves: Sequence[Curve] = ()) -> bytes | None:
    """Draw one of `KINDS` as SVG; None if it has nothing to do with the task."""
    with styled():
        figure = draw(kind, task, curves=curves)
        return None if figure is None else svg_of(figure)


def file_name(task: str) -> str:
    """Return a name for the files of `task`: its own if it can be one, else one that no other task has."""
    safe = re.sub(r"[^\w.-]+", "_", task, flags=re.ASCII).strip(".")[:60]
    return safe if safe and safe == task else f"{safe}-{hashlib.sha256(task.encode()).hexdigest()[:8]}"
