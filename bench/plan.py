"""What `bench plan` shows: every step of a suite, whether it is done, and roughly how long it takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.markup import escape
from rich.table import Table

from bench.graph import Graph
from bench.preparation import PreparedData
from bench.progress import duration
from bench.steps import Step
from bench.store import Store
from bench.suite import TrainedModel
from models.registry import load_family


@dataclass(frozen=True)
class PlannedStep:
    """A step, as a plan shows it."""

    step: Step
    state: str
    """done | partial (it will resume) | to do."""
    parameters: int | None = None
    """Of the model to train; None for other steps, and while the data is not prepared."""


def make_plan(graph: Graph, store: Store) -> list[PlannedStep]:
    """Return the steps of `graph` in an order in which they can be done; nothing is run."""
    models = {step.id: model for model, step in graph.models}
    planned = []
    for step in [*graph.prepares, *graph.work, *graph.measures().values()]:
        state = "partial" if store.partial(*step.id).is_dir() else "to do"
        if store.has(*step.id):
            state = "done"
        model = models.get(step.id)
        data = step.parents.get("data")
        known = model is not None and data is not None and store.has(*data)
        parameters = count_parameters(model, PreparedData(store.path(*data))) if known and model and data else None
        planned.append(PlannedStep(step, state, parameters))
    return planned


def count_parameters(model: TrainedModel, data: PreparedData) -> int:
    """Return the number of trainable parameters, without allocating them."""
    family = load_family(model.family)
    with torch.device("meta"):
        network = family.model(family.config(**model.config), data.data_spec)
    return sum(p.numel() for p in network.parameters())


def plan_table(plan: list[PlannedStep]) -> Table:
    """Return the plan as a table, with the number of steps and the time still to spend below it."""
    table = Table("step", "state", "parameters", "about", "key", box=None, pad_edge=False, header_style="bold")
    table.columns[0].overflow = table.columns[4].overflow = "fold"
    table.columns[2].justify = table.columns[3].justify = "right"
    for entry in plan:
        parameters = "" if entry.parameters is None else f"{entry.parameters:,}"
        table.add_row(
            escape(entry.step.label),
            entry.state,
            parameters,
            duration(entry.step.seconds),
            f"{entry.step.kind}/{entry.step.key}",
        )
    open_steps = [entry.step for entry in plan if entry.state != "done"]
    table.caption = (
        f"{len(plan) - len(open_steps)} of {len(plan)} steps done; the others take about "
        f"{duration(sum(step.seconds for step in open_steps))} one after the other. Times are rough."
    )
    table.caption_justify = "left"
    return table
