"""The steps that a cell of the comparison consists of, and the one that times many cells together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.cell_needs import modules_of, packages_of
from bench.step_keys import HOUR, make_step, timing_time
from bench.steps import Step, role_key
from bench.suite import Cell, Suite, TaskEntry
from models.registry import family_module


@dataclass(frozen=True)
class Conditions:
    """Under which conditions a suite runs."""

    device: str
    """cpu | cuda."""
    dtype: str
    """float32 | bfloat16."""
    cores: int
    """CPU cores that there are."""
    machine: str
    """Fingerprint of the machine: times taken on another one are not reused."""


@dataclass(frozen=True)
class CompanionStep:
    """The training of another model that fills a role."""

    step: Step
    family: str
    config: dict[str, Any]

    @property
    def description(self) -> dict[str, Any]:
        """How to build the model."""
        return {"family": self.family, "config": self.config}

    @property
    def module(self) -> str:
        """The module of its family."""
        return family_module(self.family)


@dataclass(frozen=True)
class CellSteps:
    """A cell and the steps that it consists of."""

    id: str
    """Unique within the task, fit for file names: `ctc-distilled-s1-beam=5`."""
    cell: Cell
    data: Step
    model: Step
    evaluation: Step
    companions: dict[str, CompanionStep]
    """Who fills the roles that decoding needs."""

    @property
    def label(self) -> str:
        """How tables call the cell: `ctc (distilled) [beam=5]`."""
        model = self.cell.model
        name = model.system if model.data == "raw" else f"{model.system} ({model.data})"
        return f"{name} [{self.cell.settings_label}]" if self.cell.settings_label else name


def measure_step(suite: Suite, conditions: Conditions, task: TaskEntry, cells: list[CellSteps]) -> Step:
    """Return the step that times `cells` of `task` together."""
    speed = suite.measure.speed
    assert speed is not None
    threads = speed.threads or conditions.cores
    compared = {(reference.system, reference.settings_label) for reference in suite.references}
    spec = {
        "cells": [
            {
                "id": c.id,
                "label": c.label,
                "system": c.cell.model.system,
                "family": c.cell.model.family,
                "config": c.cell.model.config,
                "settings": c.cell.settings,
                "data": c.cell.model.data,
                "seed": c.cell.model.seed,
                "companions": {role: companion.description for role, companion in c.companions.items()},
            }
            for c in cells
        ],
        "references": [
            c.id
            for c in cells
            if c.cell.model.data == "raw" and (c.cell.model.system, c.cell.settings_label) in compared
        ],
        "speed": {**speed.model_dump(mode="json"), "threads": threads},
        "split": suite.measure.quality.split,
        "device": conditions.device,
        "dtype": conditions.dtype,
    }
    parents = {"data": cells[0].data.id}
    for i, c in enumerate(cells):
        parents |= {f"model{i}": c.model.id, f"hypotheses{i}": c.evaluation.id}
        parents |= {role_key(role, i): companion.step.id for role, companion in c.companions.items()}
    points = len(cells) * len(speed.batch_sizes)
    return make_step(
        "measure",
        spec,
        parents,
        sorted(
            {family_module(c.cell.model.family) for c in cells}
            | {companion.module for c in cells for companion in c.companions.values()}
            | {module for c in cells for module in modules_of(c.cell)}
        ),
        packages=[package for c in cells for package in packages_of(c.cell)],
        extra={"machine": conditions.machine},
        label=f"measure speed on {task.name} ({len(cells)} cells)",
        alone=True,
        threads=threads,
        seconds=timing_time(speed, points),
        time_limit=HOUR + speed.max_seconds + 300.0 * points,
    )
