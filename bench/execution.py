"""Runs a suite from its steps to its results folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cell_steps import Conditions
from bench.collect import Collector, write_results
from bench.errors import DataError
from bench.graph import Graph
from bench.jobs import Outcome
from bench.machine import available_cores, environment, resolve_device, resolve_dtype
from bench.progress import Display
from bench.records import Record
from bench.runner import Resources, Runner
from bench.steps import Step
from bench.store import Store

FAILURES = ("failed", "timeout")
"""Statuses of a single value that make a run fail; that a batch does not fit in memory is a result."""


@dataclass(frozen=True)
class Result:
    """What a run of a suite gave."""

    records: list[Record]
    failed: list[tuple[Step, Outcome]]
    """Steps without an artifact, those that were skipped apart."""

    @property
    def good(self) -> bool:
        """Whether every cell was trained, scored and measured."""
        return not any(record.metric == "cell" or record.status in FAILURES for record in self.records)


def find_conditions(device: str, dtype: str) -> Conditions:
    """Return the conditions under which to run; `auto` leaves the choice to the machine.

    Raises:
        ValueError: there is no such device here.
    """
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    cores = available_cores()
    return Conditions(device, dtype, cores, environment(device, dtype, cores)["fingerprint"])


def find_resources(conditions: Conditions, jobs: int | None) -> Resources:
    """Return what steps may use at a time: all cores, and on CUDA all visible devices."""
    gpus: tuple[str, ...] = ()
    if conditions.device == "cuda":
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
        gpus = tuple(names)[: torch.cuda.device_count()]
    return Resources(conditions.cores, gpus, jobs)


def forget_failed(store: Store, measures: Iterable[Step]) -> None:
    """Drop finished measurements in which something failed, so that this run takes them again."""
    for step in measures:
        file = store.path(*step.id) / "measurements.json"
        if file.exists():
            rows = json.loads(file.read_text(encoding="utf-8"))["measurements"]
            if any(row.get("status") in FAILURES for row in rows):
                store.discard(*step.id)


def left_out(file: Path) -> str | None:
    """Return how many training examples the prepared data that `file` describes has left out, and why; None if none."""
    if not file.exists():
        return None
    train = json.loads(file.read_text(encoding="utf-8")).get("splits", {}).get("train", {})
    dropped = {reason: count for reason, count in train.get("dropped", {}).items() if count}
    if not dropped:
        return None
    reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in dropped.items())
    return f"{sum(dropped.values())} of {train['read']} training examples are left out ({reasons}); see {file}"


def execute(
    graph: Graph, store: Store, display: Display, folder: Path, command: Sequence[str], jobs: int | None = None
) -> Result:
    """Do all steps of `graph` and write the results into `folder`; failed cells do not keep the others from it.

    Raises:
        DataError: the data of a task is not usable; nothing has been trained then.
        Interrupted: the process was asked to stop; what is done is kept in the store.
    """
    runner = Runner(store, find_resources(graph.conditions, jobs), display)
    with display:
        unusable = [outcome.reason for outcome in runner.run(graph.prepares).values() if outcome.user_error]
        if unusable:
            raise DataError("\n".join(unusable))
        for step in graph.prepares:
            if line := left_out(store.path(*step.id) / "data.json"):
                display.note(f"{step.label}: {line}")
        runner.run(graph.work)
        measures = graph.measures(lambda step: runner.outcomes[step.id].status == "ok")
        forget_failed(store, measures.values())
        runner.run(measures.values())
    records = write_results(Collector(graph, runner.outcomes, measures, store), folder, command)
    steps = [*graph.prepares, *graph.work, *measures.values()]
    bad = [(step, runner.outcomes[step.id]) for step in steps]
    return Result(records, [(step, o) for step, o in bad if o.status not in ("ok", "skipped")])
