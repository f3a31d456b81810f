"""Figures from the records of a run: quality against speed-up, throughput against batch size, latency. No torch."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from bench.figures.latency import draw_latency, read_latencies
from bench.figures.multimodality import draw_multimodality
from bench.figures.pareto import draw_pareto
from bench.figures.refinement import draw_refinement
from bench.figures.style import save, styled
from bench.figures.throughput import draw_throughput
from bench.records import read_records
from bench.results import by_task


def write_figures(results_dir: Path) -> list[Path]:
    """Draw the figures of each task into `figures/` as PNG and SVG, from `records.csv` and, if there, `latencies.csv`.

    The same records give the same bytes.

    Raises:
        ValueError: one of the two files is damaged.
    """
    records = read_records(results_dir / "records.csv")
    latencies = results_dir / "latencies.csv"
    samples = read_latencies(latencies) if latencies.is_file() else None
    folder = results_dir / "figures"
    folder.mkdir(exist_ok=True)
    written = []
    for task in by_task(records):
        stem = folder / file_name(task.name)
        with styled():
            written += save(draw_pareto(task), stem.with_name(f"{stem.name}-quality-speedup"))
            written += save(draw_throughput(task), stem.with_name(f"{stem.name}-throughput"))
            written += save(draw_latency(task, samples), stem.with_name(f"{stem.name}-latency"))
            written += save(draw_refinement(task), stem.with_name(f"{stem.name}-quality-passes"))
            written += save(draw_multimodality(task), stem.with_name(f"{stem.name}-multimodality"))
    return written


def file_name(task: str) -> str:
    """Return a name for the files of `task`: its own if it can be one, else one that no other task has."""
    safe = re.sub(r"[^\w.-]+", "_", task, flags=re.ASCII).strip(".")[:60]
    return safe if safe and safe == task else f"{safe}-{hashlib.sha256(task.encode()).hexdigest()[:8]}"
