"""Finds the tasks: every module of `bench.tasks` that defines TASK."""

import importlib
import pkgutil
from functools import cache

import bench.tasks
from bench.tasks.base import Task


@cache
def built_in_tasks() -> dict[str, type[Task]]:
    """Return the tasks by name, in alphabetical order."""
    found: dict[str, type[Task]] = {}
    for info in sorted(pkgutil.iter_modules(bench.tasks.__path__), key=lambda info: info.name):
        task = getattr(importlib.import_module(f"bench.tasks.{info.name}"), "TASK", None)
        if isinstance(task, type) and issubclass(task, Task):
            found[task.name] = task
    return found


def load_task(name: str) -> type[Task]:
    """Return the task called `name`.

    Raises:
        LookupError: no such task, with the names there are.
    """
    tasks = built_in_tasks()
    if name not in tasks:
        raise LookupError(f"unknown task {name!r}; there are: {', '.join(tasks)}")
    return tasks[name]
