"""Collects what is wrong with a suite file, one line for each problem, and says where it stands."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from bench.errors import UserError, nearest
from bench.option_fields import allowed_values, known_keys
from bench.yaml_lines import Document, KeyPath
from models.interface import Options

M = TypeVar("M", bound=Options)

_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "text",
    "path_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "none_required": "null",
}
_OUT_OF_RANGE = {
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
    "multiple_of",
    "too_short",
    "too_long",
    "string_too_short",
    "string_too_long",
    "string_pattern_mismatch",
}


class SuiteError(UserError):
    """A suite file or an override is not right; the message has one line for each problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class Problems:
    """The problems of one suite file, found so far."""

    def __init__(self, file: Path, document: Document) -> None:
        self.file = file
        self.document = document
        self.overridden: dict[KeyPath, str] = {}
        """What was set from outside, and by which argument."""
        self._lines: dict[str, tuple[int, str]] = {}
        for path, line, message in document.problems:
            self._add(path, message, line, f"{file}:{line}")

    def add(self, path: KeyPath, message: str, of_key: bool = False) -> None:
        """Note a problem with the value at `path`, or with its key."""
        for length in range(len(path), 0, -1):
            if argument := self.overridden.get(path[:length]):
                self._add(path, message, sys.maxsize, argument)
                return
        line = self.document.line(path, of_key)
        within = [argument for known, argument in self.overridden.items() if path and known[: len(path)] == path]
        self._add(path, message + "".join(f" (with {argument})" for argument in within), line, f"{self.file}:{line}")

    def override(self, path: KeyPath, argument: str) -> None:
        """Note that the value at `path` was set by the command-line `argument`."""
        self.overridden = {known: by for known, by in self.overridden.items() if known[: len(path)] != path}
        self.overridden[path] = argument

    def add_override(self, argument: str, message: str) -> None:
        """Note a problem with an override that cannot be applied."""
        self._add((), message, sys.maxsize, argument)

    def _add(self, path: KeyPath, message: str, order: int, place: str) -> None:
        """Note a problem once, also if several systems inherit it."""
        text = " ".join((f"{show_path(path)}: {message}" if path else message).split())
        identity = text if path else f"{place} {text}"
        self._lines.setdefault(identity, (order, f"{' '.join(place.split())}: {text}"))

    def __bool__(self) -> bool:
        return bool(self._lines)

    def error(self) -> SuiteError:
        """Return all problems as one error, in the order of the file."""
        return SuiteError([text for _, text in sorted(self._lines.values(), key=lambda entry: entry[0])])

    def check(self, model: type[M], value: Any, path: KeyPath, homes: Mapping[str, KeyPath] | None = None) -> M | None:
        """Return `value`, found at `path`, as a `model`; without conversions, "128" is no integer.

        Args:
            model: The class that says what is allowed.
            value: Plain values, as YAML gives them.
            path: Where `value` stands in the file.
            homes: Where keys of `value` stand that were brought together from elsewhere in the file.
        """
        checked, found = _validate(model, value)
        self._note(found, path, homes or {})
        return checked

    def salvage(self, model: type[Options], value: Any, path: KeyPath) -> dict[str, Any]:
        """Note what is wrong with `value` and return the fields that are right, defaults included."""
        checked, found = _validate(model, value)
        self._note(found, path, {})
        if checked is not None:
            return dict(checked)
        if not isinstance(value, dict):
            return {}
        wrong = {finding.path[0] for finding in found if finding.path}
        defaults = {
            name: field.get_default(call_default_factory=True)
            for name, field in model.model_fields.items()
            if not field.is_required()
        }
        fields = defaults | {name: value[name] for name in model.model_fields if name in value}
        return {name: field for name, field in fields.items() if name not in wrong}

    def _note(self, found: list[_Finding], path: KeyPath, homes: Mapping[str, KeyPath]) -> None:
        for finding in found:
            home = homes.get(str(finding.path[0])) if finding.path else None
            where = (*path, *finding.path) if home is None else (*home, *finding.path[1:])
            self.add(where, finding.message, finding.of_key)


def show_path(path: KeyPath) -> str:
    """Return `path` as people write it: `systems[1].settings[0].beam`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for a name that is none of `known`, with the nearest of them."""
    names = list(known)
    return f"unknown {kind} {name!r}{nearest(name, names) or ';'} there are: {', '.join(names) or 'none'}"


def show_value(value: Any) -> str:
    """Return `value` so that text cannot be taken for a number."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None:
        return "nothing"
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else shown[:57] + "..."


@dataclass(frozen=True)
class _Finding:
    path: KeyPath
    message: str
    of_key: bool


def _validate(model: type[M], data: Any) -> tuple[M | None, list[_Finding]]:
    try:
        # JSON, because lists become tuples and text becomes paths there, and nothing else is converted.
        return model.model_validate_json(json.dumps(data), strict=True), []
    except ValidationError as error:
        return None, _explain(error, model, data)
    except UserError as error:  # raised by a validator; unlike a ValueError it passes through pydantic
        return None, [_Finding((), str(error), False)]


def _explain(error: ValidationError, model: type[Options], data: Any) -> list[_Finding]:
    found: dict[KeyPath, list[Any]] = {}
    for detail in error.errors(include_url=False):
        path = _path_in(data, detail["loc"], detail["type"] == "missing")
        found.setdefault(path, []).append(detail)
    findings = []
    for path, details in found.items():
        if any(other[: len(path)] == path and other != path for other in found if path):
            continue  # a list was tried as the scalar of a union; what is wrong within the list says more
        # Of the alternatives of a union, those of another type say nothing about the value.
        relevant = [detail for detail in details if detail["type"] not in _EXPECTED] or details
        if relevant[0]["type"] in _EXPECTED:
            expected = dict.fromkeys(_EXPECTED[detail["type"]] for detail in relevant)
            message = f"must be {' or '.join(expected)}, got {show_value(relevant[0]['input'])}"
        else:
            message = "; ".join(dict.fromkeys(_message(detail, path, model) for detail in relevant))
        findings.append(_Finding(path, message, relevant[0]["type"] == "extra_forbidden"))
    return findings


def _path_in(data: Any, location: tuple[str | int, ...], missing: bool) -> KeyPath:
    """Return pydantic's `location` without the names of union members, which are no keys of `data`."""
    path: list[str | int] = []
    for index, part in enumerate(location):
        in_mapping = isinstance(data, dict) and part in data
        in_list = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if in_mapping or in_list:
            data = data[part]
            path.append(part)
        elif missing and index == len(location) - 1:
            path.append(part)
    return tuple(path)


def _message(detail: Any, path: KeyPath, model: type[Options]) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "missing":
        return "required key is missing"
    if kind == "extra_forbidden":
        keys = known_keys(model, path[:-1])
        near = nearest(str(path[-1]), keys)
        return f"unknown key{near or ';'} allowed: {', '.join(keys) if keys else 'none'}"
    if kind == "literal_error":
        names = re.findall(r"'([^']*)'", context["expected"])
        near = nearest(value, names) if isinstance(value, str) else ""
        allowed = ", ".join(names) if names else context["expected"]
        return f"{show_value(value)} is not one of the choices{near or ';'} allowed: {allowed}"
    if kind in _OUT_OF_RANGE:
        shown = f"a list of {len(value)}" if isinstance(value, list) else show_value(value)
        return f"{shown} is out of range; allowed: {allowed_values(model, path) or detail['msg']}"
    if kind in ("value_error", "assertion_error"):
        return str(context["error"])
    return f"{detail['msg']}, got {show_value(value)}"
