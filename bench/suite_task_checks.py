"""What must hold between the tasks of a suite and its systems, once both are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bench.suite_problems import Problems, unknown
from bench.suite_tasks import TaskEntry
from models.interface import Options
from models.layers import BackboneConfig

if TYPE_CHECKING:
    from bench.suite_systems import Draft


def init_data(available: Sequence[str]) -> str:
    """Return the data of the model whose encoder others start from; `available` is what it is trained on."""
    return "raw" if "raw" in available else available[0]


def check_tasks(tasks: Sequence[TaskEntry], drafts: Sequence[Draft], problems: Problems) -> None:
    """Note what does not fit: systems that a task does not have or that cannot read it, and circles."""
    by_name = {draft.name: draft for draft in drafts if draft.name is not None}
    for task in tasks:
        path = ("tasks", task.index)
        if "seeds" in task.train:
            problems.add((*path, "train", "seeds"), "seeds are the same for all tasks; set them in the suite's train")
        for name in task.systems or ():
            if name not in by_name:
                problems.add((*path, "systems"), unknown("system", name, by_name))
        for draft in by_name.values():
            if task.has(draft.name):
                for message in _misfits(task, draft, by_name):
                    problems.add(path, message)
    for draft in by_name.values():
        if tasks and not any(task.has(draft.name) for task in tasks):
            problems.add(draft.path, f"no task has {draft.name!r}: add it to the systems of one, or leave it out")
    if not problems:  # else a circle may be the shadow of another mistake
        _check_circles(tasks, by_name, problems)


def _misfits(task: TaskEntry, draft: Draft, systems: dict[str, Draft]) -> Iterator[str]:
    """Yield what keeps a system from being trained on a task."""
    family = draft.family
    if family is not None and task.modality not in family.modalities:
        kinds = " and ".join(family.modalities)
        yield (
            f"{task.name!r} is {task.modality}, and {draft.name!r} of family {family.name} reads {kinds}: "
            f"leave it out with systems: [...]"
        )
    for settings in draft.settings:
        if (reason := settings.unfit(task.modality)) is not None:
            yield f"{task.name!r} is {task.modality}, and in settings of {draft.name!r} {reason}"
    if draft.data is not None and not task.kinds(draft.data):
        kind = draft.data[0]
        yield f"{draft.name!r} is trained on {kind} data, which data: {task.data} leaves out; leave it out with systems"
    init = _init(task, draft)
    if init is not None and init not in systems:
        yield f"train.init: {unknown('system', init, systems)}"
    elif init is not None and draft.config is not None and (other := systems[init].config) is not None:
        reason = draft.config.differing(other, _encoder_fields(draft.config))
        if reason is not None:
            yield f"{draft.name!r} cannot start from the encoder of {init!r}: {reason}"
        if seeds := draft.seeds_missing_in(systems[init]):
            yield f"{draft.name!r} cannot start from {init!r}, which is not trained with seed {seeds}"
    for name, role, data in _used(task, draft):
        if name in systems and not task.has(name):
            yield f"{draft.name!r} uses {name!r} as {role}, which systems leaves out"
        elif data is not None and not task.kinds((data,)):
            yield f"{draft.name!r} uses {name!r} on {data} data as {role}, which data: {task.data} leaves out"


def _encoder_fields(config: Options) -> tuple[str, ...]:
    """Return the fields in which a system must agree with the one whose encoder it starts from."""
    if getattr(config, "encoder", "transformer") == "recurrent":
        return ("model_dim", "subsampling")  # only the front end fits
    return BackboneConfig.ENCODER


def _init(task: TaskEntry, draft: Draft) -> str | None:
    recipe = draft.recipes.get(task.name, draft.train)
    return None if recipe is None or recipe.init == draft.name else recipe.init


def _used(task: TaskEntry, draft: Draft) -> Iterator[tuple[str, str, str | None]]:
    """Yield the systems that a system needs on a task, what for, and the data of their model if it must be that."""
    distilled = draft.data is not None and "distilled" in task.kinds(draft.data)
    if distilled and isinstance(draft.section.get("teacher"), str):
        yield draft.section["teacher"], "teacher", "raw"
    if draft.config is not None:
        options = [draft.config, *draft.settings]
        needed = frozenset().union(*(o.needs(task.modality) for o in options))
        yield from ((c.system, c.role, c.data) for c in draft.companions if c.role in needed)
    init = _init(task, draft)
    if init is not None:
        yield init, "init", None


Node = tuple[str, str]
"""A system and what it is trained on."""


def _check_circles(tasks: Sequence[TaskEntry], systems: dict[str, Draft], problems: Problems) -> None:
    """Note systems that wait for their own training: through teachers, inits and companions that training needs."""
    for task in tasks:
        edges = {
            (name, data): set(_before(task, draft, data, systems))
            for name, draft in systems.items()
            if task.has(name)
            for data in task.kinds(draft.data or ())
        }
        noted = set()
        for node, first in edges.items():
            if node[0] not in noted and node in _reached(first, edges):
                noted.add(node[0])
                problems.add(
                    systems[node[0]].path,
                    f"the training of {node[0]!r} waits for itself, through teachers, companions or init",
                )
        if noted:
            return  # the other tasks have the same circle


def _before(task: TaskEntry, draft: Draft, data: str, systems: dict[str, Draft]) -> Iterator[Node]:
    """Yield what must be trained before a system is trained on `data`."""
    if data == "distilled":
        yield draft.section["teacher"], "raw"
    assert draft.config is not None
    needed = draft.config.needs(task.modality)
    for companion in draft.companions:
        if companion.role in needed:
            yield companion.system, companion.data_for(data, task.kinds(systems[companion.system].data or ()))
    init = _init(task, draft)
    if init is not None:
        yield init, init_data(task.kinds(systems[init].data or ("raw",)))


def _reached(first: set[Node], edges: dict[Node, set[Node]]) -> set[Node]:
    seen: set[Node] = set()
    todo = list(first)
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += edges.get(node, ())
    return seen
