"""The steps of a suite: what must be done for its cells, and what each step depends on.

    prepare -> train (raw data) -> evaluate -> measure
    prepare -> train (teacher) -> distill -> train (distilled data) -> evaluate -> measure

A step's key hashes its kind, its spec, its parents' keys, the code that does it and the libraries that matter, so all
keys are known before anything runs; but what is timed together depends on which cells have made it that far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bench.cell_needs import modules_of, packages_of
from bench.cell_steps import CellSteps, CompanionStep, Conditions, measure_step
from bench.names import cell_id
from bench.preparation import build_task
from bench.step_keys import make_step, training_time
from bench.steps import Step, role_key
from bench.suite import Cell, Filled, Suite, TaskEntry, TrainedModel, model_id
from models.registry import family_module, load_family

StepId = tuple[str, str]


@dataclass(frozen=True)
class Graph:
    """The steps of a suite."""

    suite: Suite
    conditions: Conditions
    prepares: list[Step]
    """One per task."""
    work: list[Step]
    """Training, distillation and evaluation, each once."""
    models: list[tuple[TrainedModel, Step]]
    cells: list[CellSteps]

    def measures(self, done: Callable[[Step], bool] = lambda step: True) -> dict[str, Step]:
        """Return the timed step of each task by its name: over the cells whose model and evaluation are `done`."""
        steps: dict[str, Step] = {}
        if self.suite.measure.speed is None:
            return steps
        for task in self.suite.tasks:
            cells = [c for c in self.cells if c.cell.model.task == task and done(c.model) and done(c.evaluation)]
            if cells:
                steps[task.name] = measure_step(self.suite, self.conditions, task, cells)
        return steps


def build_graph(suite: Suite, conditions: Conditions) -> Graph:
    """Return the steps of `suite`.

    Raises:
        DataError: a task's input files are missing or unreadable.
    """
    return _Builder(suite, conditions).graph()


class _Builder:
    def __init__(self, suite: Suite, conditions: Conditions) -> None:
        self.suite = suite
        self.conditions = conditions
        self.where = {"device": conditions.device, "dtype": conditions.dtype}
        self.steps: dict[StepId, Step] = {}
        self.prepares = {task.name: self._prepare(task) for task in suite.tasks}
        self.models = suite.models()
        self.by_id = {model_id(model): model for model in self.models}
        self.trained: dict[tuple[str, str, str, int], Step] = {}

    def graph(self) -> Graph:
        trained = [(model, self._train(model)) for model in self.models]
        cells = [self._cell(cell) for cell in self.suite.cells()]
        return Graph(
            self.suite,
            self.conditions,
            list({step.id: step for step in self.prepares.values()}.values()),
            list(self.steps.values()),
            trained,
            cells,
        )

    def _add(self, step: Step) -> Step:
        return self.steps.setdefault(step.id, step)

    def _prepare(self, task: TaskEntry) -> Step:
        fingerprint = build_task(task.task, task.config).fingerprint()
        return make_step(
            "prepare",
            {"task": task.task, "config": task.config, "fingerprint": fingerprint},
            {},
            [_task_module(task)],
            label=f"prepare {task.name}",
        )

    def _train(self, model: TrainedModel) -> Step:
        name = model_id(model)
        if name not in self.trained:
            self.trained[name] = self._add(self._make_train(model))
        return self.trained[name]

    def _make_train(self, model: TrainedModel, trial: str = "") -> Step:
        """Return the training of `model`, or of the `trial` of a search."""
        parents = {"data": self.prepares[model.task.name].id}
        if model.trials:
            choice = self._choose(model)
            parents["choice"] = choice.id
            if (first := model.trials[0]).seed == model.seed and first.train.budget == model.train.budget:
                parents |= choice.parents  # as long as this training: the best of them is it
        if model.teacher is not None:
            parents["targets"] = self._distill(self.by_id[model.task.name, model.teacher, "raw", model.seed]).id
        companions = self._companions(model, model.companions)
        labels = self._label(model, parents, companions)
        if labels is not None:
            parents["labels"] = labels.id
        parents |= {role_key(role): c.step.id for role, c in companions.items()}
        init = None
        if model.init is not None:
            init = self._companions(model, [model.init])["init"]
            parents["init"] = init.step.id
        seconds, limit = training_time(model.train.budget, self.conditions.device)
        if "trial0" in parents:
            seconds = 0
        spec = {
            "family": model.family,
            "config": model.config,
            # The suite's other seeds do not change this run, nor does an init that is not its own.
            "train": {**model.train.model_dump(mode="json"), "seeds": [model.seed], "init": None},
            "seed": model.seed,
            "task": model.task.task,
            "task_config": model.task.config,
            "companions": {role: c.description for role, c in companions.items()},
            "init": None if init is None or model.init is None else {"system": model.init.system, **init.description},
            **({"trial": True} if trial else {}),
            **self.where,
        }
        others = [*companions.values(), *([init] if init is not None else [])]
        return make_step(
            "train",
            spec,
            parents,
            [family_module(model.family), _task_module(model.task), *(c.module for c in others)],
            label=f"{trial or 'train'} {_describe(model)}",
            threads=model.train.threads,
            seconds=seconds,
            time_limit=limit,
        )

    def _choose(self, model: TrainedModel) -> Step:
        """Return the step that chooses the best of a model's trials."""
        count = len(model.trials)
        steps = [
            self._add(self._make_train(trial, f"trial {i} of {count} for")) for i, trial in enumerate(model.trials, 1)
        ]
        return self._add(
            make_step(
                "choose",
                {"trials": [trial.departures for trial in model.trials]},
                {f"trial{i}": step.id for i, step in enumerate(steps)},
                [],
                label=f"choose hyper-parameters of {_describe(model.trials[0])}",
            )
        )

    def _companions(self, model: TrainedModel, filled: Iterable[Filled]) -> dict[str, CompanionStep]:
        """Return who fills the roles `filled` of `model`."""
        found = {}
        for entry in filled:
            other = self.by_id[model.task.name, entry.system, entry.data, model.seed]
            found[entry.role] = CompanionStep(self._train(other), other.family, other.config)
        return found

    def _label(
        self, model: TrainedModel, parents: dict[str, StepId], companions: dict[str, CompanionStep]
    ) -> Step | None:
        """Return the step that labels the training pairs, if the family asks for labels."""
        kind = load_family(model.family).labels
        if kind is None:
            return None
        spec: dict[str, Any] = {"labels": kind, **self.where}
        modules = []
        if kind == "fertility" and model.task.modality == "text":
            spec |= {"max_fertility": model.config["max_fertility"], "seed": model.seed, "device": "cpu"}
        else:
            ctc = companions["ctc"]
            spec |= {"companions": {"ctc": ctc.description}}
            parents = {**parents, role_key("ctc"): ctc.step.id}
            modules = [ctc.module]
        return self._add(
            make_step(
                "label",
                spec,
                dict(parents),
                [*modules, _task_module(model.task)],
                label=f"label ({kind}) for {_describe(model)}",
                threads=model.train.threads,
            )
        )

    def _distill(self, teacher: TrainedModel) -> Step:
        trained = self._train(teacher)
        spec = {
            "family": teacher.family,
            "config": teacher.config,
            "distill": self.suite.distill.model_dump(mode="json"),
            **self.where,
        }
        return self._add(
            make_step(
                "distill",
                spec,
                {"data": trained.parents["data"], "model": trained.id},
                [family_module(teacher.family), _task_module(teacher.task)],
                label=f"distill {_describe(teacher)}",
                threads=teacher.train.threads,
            )
        )

    def _cell(self, cell: Cell) -> CellSteps:
        model = cell.model
        trained = self._train(model)
        companions = self._companions(model, cell.companions)
        spec = {
            "family": model.family,
            "config": model.config,
            "settings": cell.settings,
            "task": model.task.task,
            "task_config": model.task.config,
            "quality": self.suite.measure.quality.model_dump(mode="json"),
            "companions": {role: c.description for role, c in companions.items()},
            **self.where,
        }
        roles = {role_key(role): c.step.id for role, c in companions.items()}
        modules = [family_module(model.family), _task_module(model.task), *modules_of(cell)]
        modules += [companion.module for companion in companions.values()]
        evaluation = self._add(
            make_step(
                "evaluate",
                spec,
                {"data": trained.parents["data"], "model": trained.id, **roles},
                modules,
                packages=packages_of(cell),
                label=f"evaluate {_describe(model, cell.settings_label)}",
                threads=model.train.threads,
            )
        )
        name = cell_id(model.system, model.data, model.seed, cell.settings_label)
        return CellSteps(name, cell, self.prepares[model.task.name], trained, evaluation, companions)


def _task_module(task: TaskEntry) -> str:
    return f"bench.tasks.{task.task}"


def _describe(model: TrainedModel, settings: str = "") -> str:
    system = f"{model.system} [{settings}]" if settings else model.system
    return f"{system} ({model.data}, seed {model.seed}) on {model.task.name}"
