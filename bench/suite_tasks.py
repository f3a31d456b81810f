"""The tasks of a suite."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.suite_file import TaskSection
from bench.suite_problems import Problems, show_value, unknown
from bench.tasks import registry
from bench.tasks.base import Task
from bench.yaml_lines import KeyPath


@dataclass(frozen=True)
class TaskEntry:
    """A task of a suite, configured."""

    name: str
    """How the suite calls it; unique in the suite."""
    task: str
    """Which task of the registry."""
    config: dict[str, Any]
    """Its options as JSON values, defaults included; paths stand as they were given."""
    modality: str = "text"
    """What its sources are."""
    train: dict[str, Any] = field(default_factory=dict)
    """Departures from the suite's training recipe, as written."""
    systems: tuple[str, ...] | None = None
    """The systems that it is for; None: all."""
    data: str | None = None
    """`raw` if no model is to be trained on its distilled data; None: no restriction."""
    index: int = 0
    """Its place among the suite's tasks."""

    def has(self, system: str | None) -> bool:
        """Tell whether `system` is trained on it."""
        return self.systems is None or system in self.systems

    def kinds(self, data: Sequence[str]) -> tuple[str, ...]:
        """Return those of `data`, what a system is trained on, that it is for."""
        return tuple(kind for kind in data if self.data in (None, kind))


def read_tasks(items: list[Any], problems: Problems) -> list[TaskEntry]:
    """Return the entries of the suite's `tasks`; those with problems are left out."""
    sections = [_section(item, ("tasks", index), problems) for index, item in enumerate(items)]
    kinds = [section.get("task") for section, _ in sections]
    entries: list[TaskEntry] = []
    taken: dict[str, int] = {}
    for index, (section, options) in enumerate(sections):
        path = ("tasks", index)
        if "task" not in section:
            continue
        task = _find(section["task"], path, problems)
        if task is None:
            continue
        config = problems.check(task.Config, options, path)
        name = section.get("name") or _default_name(section["task"], options, alone=kinds.count(section["task"]) == 1)
        if name in taken:
            problems.add(path, f"name {name!r} is taken by tasks[{taken[name]}]; give this task a name of its own")
        taken.setdefault(name, index)
        if config is not None:
            entries.append(
                TaskEntry(
                    name,
                    section["task"],
                    config.model_dump(mode="json"),
                    task.modality,
                    section.get("train") or {},
                    tuple(section["systems"]) if section.get("systems") else None,
                    section.get("data"),
                    index,
                )
            )
    return entries


def _section(item: Any, path: KeyPath, problems: Problems) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what every task has, and the options of this one."""
    if isinstance(item, str):
        return {"task": item}, {}
    if not isinstance(item, dict):
        problems.add(path, f"must be a task's name or a mapping, got {show_value(item)}")
        return {}, {}
    common = {key: value for key, value in item.items() if key in TaskSection.model_fields}
    options = {key: value for key, value in item.items() if key not in TaskSection.model_fields}
    return problems.salvage(TaskSection, common, path), options


def _find(name: str, path: KeyPath, problems: Problems) -> type[Task] | None:
    try:
        return registry.load_task(name)
    except LookupError:
        problems.add((*path, "task"), unknown("task", name, registry.built_in_tasks()))
        return None


def _default_name(task: str, options: dict[str, Any], alone: bool) -> str:
    """Return `task`, with its options' values appended if the suite has the task more than once: `dates-fr`."""
    if alone:
        return task
    values = [value if isinstance(value, str) else json.dumps(value) for value in options.values()]
    words = (re.sub(r"[^A-Za-z0-9_]+", "-", value).strip("-") for value in values)
    return "-".join([task, *filter(None, words)])
