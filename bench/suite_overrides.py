"""Applies `--set key.path=value` to a suite file before it is checked, so that an override obeys the file's rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.suite_problems import Problems, unknown
from bench.yaml_lines import KeyPath, YamlError, parse_yaml

_ONE_OF = {"target_tokens": "minutes", "minutes": "target_tokens"}
"""Keys of a budget of which exactly one is set: setting one takes the other away."""


def apply_overrides(value: dict[str, Any], overrides: Sequence[str], problems: Problems) -> None:
    """Change the suite `value` in place; what cannot be applied is noted in `problems`.

    A path names mapping keys, list indices and, in `systems` and `tasks`, names: `systems.ctc.config.model_dim=64`.
    The value is YAML. Mappings on the way that are missing are made; unknown keys among them are found later, by the
    same checks as for the file.
    """
    for override in overrides:
        argument = f"--set {override}"
        keys, equals, text = override.partition("=")
        parts = keys.strip().split(".")
        if not equals or not all(parts):
            problems.add_override(argument, "must look like key.path=value")
            continue
        try:
            document = parse_yaml(text)
        except YamlError as error:
            problems.add_override(argument, str(error))
            continue
        for _, _, message in document.problems:
            problems.add_override(argument, message)
        _Override(argument, problems).apply(value, parts, document.value)


class _Override:
    def __init__(self, argument: str, problems: Problems) -> None:
        self.argument = argument
        self.problems = problems

    def apply(self, value: Any, parts: list[str], new: Any) -> None:
        path: KeyPath = ()
        for part in parts[:-1]:
            step = self._step(value, part, path)
            if step is None:
                return
            path = (*path, step)
            value = self._open(value, step, path)
        step = self._step(value, parts[-1], path)
        if step is None:
            return
        value[step] = new
        self.problems.override((*path, step), self.argument)
        if path and path[-1] == "budget" and step in _ONE_OF:
            value.pop(_ONE_OF[str(step)], None)

    def _step(self, value: Any, part: str, path: KeyPath) -> str | int | None:
        """Return the key or index that `part` stands for in `value`, or None after noting why there is none."""
        if isinstance(value, dict):
            return part
        place = ".".join(map(str, path))
        if not isinstance(value, list):
            self.problems.add_override(self.argument, f"{place} is neither a mapping nor a list")
            return None
        named = path in {("systems",), ("tasks",)}
        names = [_name_of(item) for item in value] if named else []
        if part in names:
            return names.index(part)
        if part.isdecimal() and int(part) < len(value):
            return int(part)
        if named:
            message = unknown(str(path[0]).removesuffix("s"), part, filter(None, names))
        else:
            message = f"{place} has no item {part!r}; it has {len(value)}, counted from 0"
        self.problems.add_override(self.argument, message)
        return None

    def _open(self, value: Any, step: str | int, path: KeyPath) -> Any:
        """Return what stands at `step`, as a mapping where nothing or a task's bare name stands."""
        inner = value.get(step) if isinstance(value, dict) else value[step]
        if inner is None:
            inner = value[step] = {}
            self.problems.override(path, self.argument)
        elif isinstance(inner, str) and path[:-1] == ("tasks",):
            inner = value[step] = {"task": inner}
        return inner


def _name_of(item: Any) -> str | None:
    """Return the name by which a system or a task of the file can be called."""
    if isinstance(item, dict):
        item = item.get("name", item.get("task"))
    return item if isinstance(item, str) else None
