"""What an `Options` class has to offer: names, types, defaults and allowed values of its fields, for people to read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from models.interface import Options

_TYPES = {
    "integer": "int",
    "number": "float",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}
_BOUNDS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
    "pattern": "matching {}",
    "minLength": "{} or more characters",
    "maxLength": "{} or fewer characters",
    "minItems": "{} or more items",
    "maxItems": "{} or fewer items",
}

JsonSchema = dict[str, Any]


@dataclass(frozen=True)
class FieldDescription:
    """One field of a `Config` or a `Settings`."""

    name: str
    type: str
    """Such as `int`, `int or null`, `list of int`, `choice`."""
    default: str
    """As a suite file would write it; empty if the field is required."""
    doc: str
    allowed: str
    """Range or choices, `>= 0 and < 1` or `gnmt, power`; empty if any value of the type is."""


def describe_fields(model: type[Options]) -> tuple[FieldDescription, ...]:
    """Describe the fields of `model` in their order; those of a nested class stand as `outer.inner`."""
    schema = model.model_json_schema()
    return tuple(_describe(schema, schema, ""))


def _describe(node: JsonSchema, root: JsonSchema, prefix: str) -> list[FieldDescription]:
    described = []
    for name, field in node.get("properties", {}).items():
        default = json.dumps(field["default"], ensure_ascii=False) if "default" in field else ""
        doc = " ".join(field.get("description", "").split())
        described.append(
            FieldDescription(
                prefix + name, _type_of(field, root), default, doc, _allowed_in(_alternatives(field, root))
            )
        )
        for alternative in _alternatives(field, root):
            described += _describe(alternative, root, f"{prefix}{name}.")
    return described


def known_keys(model: type[Options], path: tuple[str | int, ...]) -> list[str]:
    """Return, in alphabetical order, the keys that the mapping at `path` within a `model` may have."""
    return sorted({key for node in _nodes_at(model, path)[0] for key in node.get("properties", {})})


def allowed_values(model: type[Options], path: tuple[str | int, ...]) -> str:
    """Return the range or the choices of the value at `path` within a `model`; empty if there are no limits."""
    return _allowed_in(_nodes_at(model, path)[0])


def _nodes_at(model: type[Options], path: tuple[str | int, ...]) -> tuple[list[JsonSchema], JsonSchema]:
    root = model.model_json_schema()
    nodes = _alternatives(root, root)
    for part in path:
        children = []
        for node in nodes:
            child = node.get("items")
            if isinstance(part, str):  # a field, or the key of a mapping that takes any
                child = node.get("properties", {}).get(part, node.get("additionalProperties"))
            children += _alternatives(child, root) if isinstance(child, dict) else []
        nodes = children
    return nodes, root


def _alternatives(node: JsonSchema, root: JsonSchema) -> list[JsonSchema]:
    """Return what `node` may be, with references and unions resolved."""
    if "$ref" in node:
        return _alternatives(root["$defs"][node["$ref"].rsplit("/", 1)[1]], root)
    if "anyOf" in node:
        return [found for option in node["anyOf"] for found in _alternatives(option, root)]
    return [node]


def _type_of(node: JsonSchema, root: JsonSchema) -> str:
    names = []
    for option in _alternatives(node, root):
        if "enum" in option or "const" in option:
            names.append("choice")
        elif option.get("type") == "array":
            names.append(f"list of {_type_of(option['items'], root)}" if option.get("items") else "list")
        else:
            names.append(_TYPES.get(option.get("type", ""), "any"))
    return " or ".join(dict.fromkeys(names))


def _allowed_in(options: list[JsonSchema]) -> str:
    found = []
    for option in options:
        choices = option.get("enum", [option["const"]] if "const" in option else [])
        limits = [text.format(_number(option[name])) for name, text in _BOUNDS.items() if name in option]
        items = option.get("items")
        if isinstance(items, dict) and (inner := _allowed_in([items])):
            limits.append(f"each {inner}")
        found += [str(choice) for choice in choices] or ([" and ".join(limits)] if limits else [])
    return ", ".join(dict.fromkeys(found))


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
