"""A suite file, checked as a whole before anything runs, and the models and cells that it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.configs import DistillConfig, MeasureConfig, SearchConfig, TrainConfig
from bench.gate.config import GateConfig
from bench.search import Departures, trials_of
from bench.suite_file import SuiteFile
from bench.suite_overrides import apply_overrides
from bench.suite_problems import Problems, SuiteError, show_value, unknown
from bench.suite_schema import FamilyDescription, TaskDescription, describe_families, describe_tasks, suite_json_schema
from bench.suite_search import check_search
from bench.suite_systems import Reference, SettingsEntry, SystemEntry, SystemReader
from bench.suite_task_checks import check_tasks, init_data
from bench.suite_tasks import TaskEntry, read_tasks
from bench.yaml_lines import YamlError, read_yaml

__all__ = [
    "Cell",
    "FamilyDescription",
    "Reference",
    "SettingsEntry",
    "Suite",
    "SuiteError",
    "SystemEntry",
    "TaskDescription",
    "TaskEntry",
    "TrainedModel",
    "describe_families",
    "describe_tasks",
    "load_suite",
    "suite_json_schema",
]


@dataclass(frozen=True)
class TrainedModel:
    """One training: a system on one task, one kind of data and one seed."""

    task: TaskEntry
    system: str
    family: str
    config: dict[str, Any]
    """The family's Config as JSON values, all defaults included."""
    data: str
    """raw | distilled."""
    teacher: str | None
    """The system whose model on raw data, of the same task and seed, gives the targets; None for raw data."""
    seed: int
    train: TrainConfig
    companions: tuple[Filled, ...] = ()
    """The other models that training needs, by role."""
    init: Filled | None = None
    """The model on whose encoder this one's starts."""
    trials: tuple[TrainedModel, ...] = ()
    """What a search for hyper-parameters trains for a short time; the best one's values are this model's."""
    departures: Departures = field(default_factory=dict)
    """What a trial has otherwise."""


@dataclass(frozen=True)
class Filled:
    """The model that fills a role: that of a system, on the same task and with the same seed."""

    role: str
    system: str
    data: str


@dataclass(frozen=True)
class Cell:
    """One row of the comparison: a trained model and a way to decode with it."""

    model: TrainedModel
    settings: dict[str, Any]
    """The family's Settings as JSON values, all defaults included."""
    settings_label: str
    """Canonical short form, `beam=5 alpha=0.6`; cells of one model have different ones."""
    companions: tuple[Filled, ...] = ()
    """The other models that decoding needs, by role."""


@dataclass(frozen=True)
class Suite:
    """A checked suite."""

    name: str
    tasks: tuple[TaskEntry, ...]
    systems: tuple[SystemEntry, ...]
    train: TrainConfig
    search: SearchConfig | None
    distill: DistillConfig
    measure: MeasureConfig
    gate: GateConfig
    references: tuple[Reference, ...]
    """What speed-ups compare with; empty if no autoregressive system is trained on raw data."""

    def models(self) -> list[TrainedModel]:
        """Return every model to train, in the order of the file: by task, system, data and seed."""
        return [model for _, model in self._models()]

    def cells(self) -> list[Cell]:
        """Return every cell to measure, in the order of the models and then of the settings."""
        return [
            Cell(
                model,
                settings.values,
                settings.label,
                self._filled(system, model.task, settings.needs[model.task.modality], model.data),
            )
            for system, model in self._models()
            if system.measured
            for settings in system.settings
        ]

    def _models(self) -> list[tuple[SystemEntry, TrainedModel]]:
        return [
            (
                system,
                self._searched(
                    TrainedModel(
                        task=task,
                        system=system.name,
                        family=system.family,
                        config=system.config,
                        data=data,
                        teacher=system.teacher if data == "distilled" else None,
                        seed=seed,
                        train=system.train_on(task),
                        companions=self._filled(system, task, system.needs[task.modality], data),
                        init=self._init(system, task),
                    )
                ),
            )
            for task in self.tasks
            for system in self.systems
            if task.has(system.name) and (system.tasks is None or task.name in system.tasks)
            for data in task.kinds(system.data)
            for seed in system.train.seeds
        ]

    def _searched(self, model: TrainedModel) -> TrainedModel:
        """Return `model` with its trials, if there is a search and anything to train."""
        if self.search is None or model.train.budget.none:
            return model
        recipe = {"budget": self.search.budget, "seeds": model.train.seeds[:1]}
        trials = tuple(
            replace(
                model,
                seed=model.train.seeds[0],
                config={**model.config, **departures["config"]},
                train=TrainConfig(**{**model.train.model_dump(), **departures["train"], **recipe}),
                departures=departures,
            )
            for departures in trials_of(self.search, model.train, model.config)
        )
        return replace(model, trials=trials)

    def _filled(self, system: SystemEntry, task: TaskEntry, needs: frozenset[str], data: str) -> tuple[Filled, ...]:
        available = {other.name: task.kinds(other.data) for other in self.systems}
        return tuple(
            Filled(c.role, c.system, c.data_for(data, available[c.system]))
            for c in system.companions
            if c.role in needs
        )

    def _init(self, system: SystemEntry, task: TaskEntry) -> Filled | None:
        name = system.train_on(task).init
        if name is None or name == system.name:
            return None
        available = next(task.kinds(other.data) for other in self.systems if other.name == name)
        return Filled("init", name, init_data(available))

    def select(self, systems: Sequence[str]) -> Suite:
        """Return the suite with only the named systems.

        Teachers and companions that they need stay as models to train (on the data and with the seeds needed) but give
        no cells. Of the references, those to the named systems stay.

        Raises:
            SuiteError: a name is unknown, or there is none.
        """
        known = [system.name for system in self.systems if system.measured]
        wrong = [f"--only: {unknown('system', name, known)}" for name in systems if name not in known]
        if wrong or not systems:
            raise SuiteError(wrong or ["--only: names no system"])
        wanted = {model_id(model) for system, model in self._models() if system.name in systems}
        cells = [cell for cell in self.cells() if cell.model.system in systems]
        wanted |= {(c.model.task.name, f.system, f.data, c.model.seed) for c in cells for f in c.companions}
        models = {model_id(model): model for model in self.models()}
        todo = list(wanted)
        while todo:
            model = models[todo.pop()]
            before = [(f.system, f.data) for f in (*model.companions, *([model.init] if model.init else []))]
            before += [(model.teacher, "raw")] if model.teacher is not None else []
            found = {(model.task.name, system, data, model.seed) for system, data in before}
            todo += found - wanted
            wanted |= found
        kept = []
        for system in self.systems:
            if system.name in systems:
                kept.append(system)
                continue
            used = [models[identity] for identity in wanted if identity[1] == system.name]
            if used:
                data = tuple(d for d in system.data if any(model.data == d for model in used))
                seeds = tuple(s for s in system.train.seeds if any(model.seed == s for model in used))
                train = system.train.model_copy(update={"seeds": seeds})
                teacher = system.teacher if "distilled" in data else None
                on = frozenset(model.task.name for model in used)
                kept.append(replace(system, measured=False, data=data, teacher=teacher, train=train, tasks=on))
        references = tuple(reference for reference in self.references if reference.system in systems)
        return replace(self, systems=tuple(kept), references=references)


def model_id(model: TrainedModel) -> tuple[str, str, str, int]:
    """Return what tells a suite's models apart: task, system, data and seed."""
    return (model.task.name, model.system, model.data, model.seed)


def load_suite(path: Path, overrides: Sequence[str] = ()) -> Suite:
    """Read a suite file and check all of it.

    Args:
        path: The YAML file.
        overrides: Changes as `key.path=value`; see `bench.suite_overrides`.

    Raises:
        SuiteError: the file or an override is not right; one line for each problem, with file and line.
    """
    try:
        document = read_yaml(path)
    except YamlError as error:
        place = f"{path}:{error.line}" if error.line else str(path)
        raise SuiteError([f"{place}: {' '.join(str(error).split())}"]) from error
    problems = Problems(path, document)
    content = document.value
    if not isinstance(content, dict):
        problems.add((), "the file is empty" if content is None else f"must be a mapping, got {show_value(content)}")
        raise problems.error()
    apply_overrides(content, overrides, problems)
    content = {key: value for key, value in content.items() if not key.startswith("x-")}

    file = problems.salvage(SuiteFile, content, ())
    tasks = read_tasks(file.get("tasks", []), problems)
    shared = {section: file.get(section, {}) for section in ("backbone", "decoding")}
    systems = SystemReader(file.get("systems", []), shared, content.get("train"), tasks, problems)
    check_tasks(tasks, systems.drafts, problems)
    references = systems.references(file.get("references"))
    check_search(file.get("search"), systems.drafts, tasks, problems)
    if problems:
        raise problems.error()
    return Suite(
        name=file["name"],
        tasks=tuple(tasks),
        systems=tuple(systems.entries()),
        train=file["train"],
        search=file["search"],
        distill=file["distill"],
        measure=file["measure"],
        gate=file["gate"],
        references=tuple(references),
    )
