"""How tables and figures call the settings that a system decodes with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.interface import Options


def settings_labels(entries: Sequence[Options], given: Mapping[str, Any] | None = None) -> list[str]:
    """Return the canonical short form of each of a system's settings, all different.

    It has the fields that were set or that differ from their default, in their order; if that is none, the fields in
    which the entries differ. What is as `given` for all systems of the suite goes without saying.
    """
    given = given or {}
    values = [entry.model_dump(mode="json") for entry in entries]
    labels = []
    for entry, own in zip(entries, values, strict=True):
        fields = type(entry).model_fields
        # Settings that differ do so in a field that is not at its default in one of them, so that one shows it.
        shown = [name for name in fields if name in entry.model_fields_set or _departs(entry, name)]
        shown = [name for name in shown if name not in given or given[name] != own[name]]
        shown = shown or [name for name in fields if any(other[name] != own[name] for other in values)]
        labels.append(" ".join(f"{name}={_show(own[name])}" for name in shown))
    return labels


def _departs(entry: Options, name: str) -> bool:
    default = type(entry).model_fields[name].get_default(call_default_factory=True)
    return bool(getattr(entry, name) != default)


def _show(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case float():
            short = f"{value:g}"
            return short if float(short) == value else repr(value)
        case list():
            return ",".join(map(_show, value))
        case dict():
            return "{" + ",".join(f"{key}:{_show(inner)}" for key, inner in value.items()) + "}"
    return str(value)
