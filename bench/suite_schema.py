"""What suites may say, for editors (a JSON schema) and for people (descriptions of families and tasks).

The schema is committed as `suites/schema.json`; a suite that begins with
`# yaml-language-server: $schema=schema.json` gets completion and checks in editors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.configs import TrainConfig
from bench.option_fields import FieldDescription, JsonSchema, describe_fields
from bench.suite_file import ReferenceSection, SuiteFile, SystemSection, TaskSection
from bench.tasks import registry as tasks
from models import registry as families
from models.interface import Options, Role

SCHEMA_PATH = Path(__file__).resolve().parents[1] / "suites" / "schema.json"


@dataclass(frozen=True)
class FamilyDescription:
    """A family and what can be set in it."""

    name: str
    title: str
    autoregressive: bool
    config: tuple[FieldDescription, ...]
    settings: tuple[FieldDescription, ...]
    roles: tuple[Role, ...]
    """Places for other systems beside its own network."""


@dataclass(frozen=True)
class TaskDescription:
    """A task and its options."""

    name: str
    title: str
    metrics: tuple[str, ...]
    """The headline first."""
    options: tuple[FieldDescription, ...]


def describe_families() -> tuple[FamilyDescription, ...]:
    """Describe the built-in families, in alphabetical order."""
    return tuple(
        FamilyDescription(
            family.name,
            family.title,
            family.autoregressive,
            describe_fields(family.config),
            describe_fields(family.settings),
            family.roles,
        )
        for family in families.built_in_families().values()
    )


def describe_tasks() -> tuple[TaskDescription, ...]:
    """Describe the built-in tasks, in alphabetical order."""
    return tuple(
        TaskDescription(task.name, task.title, task.metrics, describe_fields(task.Config))
        for task in tasks.built_in_tasks().values()
    )


def suite_json_schema() -> JsonSchema:
    """Return the JSON schema of a suite file, with every built-in family's and task's own fields."""
    defs: dict[str, JsonSchema] = {}
    schema = _schema_of(SuiteFile, "suite", defs)
    properties = schema["properties"]
    defs["train-overrides"] = _partial(_schema_of(TrainConfig, "train-overrides", defs))
    properties["tasks"]["items"] = _task_schema(defs)
    properties["systems"]["items"] = _system_schema(defs)
    properties["references"]["anyOf"][0]["items"] = _schema_of(ReferenceSection, "reference", defs)
    for section, kind in (("backbone", "config"), ("decoding", "settings")):
        options = [getattr(family, kind) for family in families.built_in_families().values()]
        fields = sorted({name for each in options for name in each.model_fields})
        properties[section]["properties"] = {name: _shared_field(name, kind, defs) for name in fields}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "natbench suite",
        **{key: value for key, value in schema.items() if key != "title"},
        "patternProperties": {"^x-": {}},
        "$defs": dict(sorted(defs.items())),
    }


def schema_text() -> str:
    """Return the content of `suites/schema.json`."""
    return json.dumps(suite_json_schema(), indent=1, ensure_ascii=False) + "\n"


def _schema_of(model: type[Options], prefix: str, defs: dict[str, JsonSchema]) -> JsonSchema:
    """Return the schema of `model`; the classes within it go to `defs`, their names after `prefix`."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{prefix}-{{model}}")
    for name, inner in schema.pop("$defs", {}).items():
        defs[f"{prefix}-{name}"] = inner
    return schema


def _partial(schema: JsonSchema) -> JsonSchema:
    """Return `schema` without required keys: they may come from elsewhere in the file."""
    return {key: value for key, value in schema.items() if key != "required"}


def _task_schema(defs: dict[str, JsonSchema]) -> JsonSchema:
    names = list(tasks.built_in_tasks())
    common = _schema_of(TaskSection, "task", defs)
    common["properties"]["task"] |= {"enum": names}
    common["properties"]["train"] = {
        "$ref": "#/$defs/train-overrides",
        "description": TaskSection.model_fields["train"].description,
    }
    del common["additionalProperties"]
    for name, task in tasks.built_in_tasks().items():
        own = _schema_of(task.Config, f"task-{name}", defs)
        own["properties"] = {**{field: {} for field in TaskSection.model_fields}, **own.get("properties", {})}
        defs[f"task-{name}"] = own
    common["allOf"] = _by_value("task", {name: {"$ref": f"#/$defs/task-{name}"} for name in names})
    return {"anyOf": [{"type": "string", "enum": names}, common]}


def _system_schema(defs: dict[str, JsonSchema]) -> JsonSchema:
    schema = _schema_of(SystemSection, "system", defs)
    schema["properties"]["train"] = {
        "$ref": "#/$defs/train-overrides",
        "description": SystemSection.model_fields["train"].description,
    }
    branches: dict[str, JsonSchema] = {}
    for name, family in families.built_in_families().items():
        defs[f"{name}-config"] = _partial(_schema_of(family.config, f"{name}-config", defs))
        defs[f"{name}-settings"] = _schema_of(family.settings, f"{name}-settings", defs)
        config, settings = {"$ref": f"#/$defs/{name}-config"}, {"$ref": f"#/$defs/{name}-settings"}
        companions = {"propertyNames": {"enum": [role.name for role in family.roles]}}
        branches[name] = {"properties": {"config": config, "settings": {"items": settings}, "companions": companions}}
    external = {"type": "string", "pattern": r"\."}
    schema["properties"]["family"]["anyOf"] = [{"type": "string", "enum": list(branches)}, external]
    schema["allOf"] = _by_value("family", branches)
    return schema


def _by_value(key: str, branches: dict[str, JsonSchema]) -> list[JsonSchema]:
    """Return the conditions under which each branch holds: the value of `key` is the branch's name."""
    return [
        {"if": {"properties": {key: {"const": name}}, "required": [key]}, "then": branch}
        for name, branch in branches.items()
    ]


def _shared_field(name: str, of: str, defs: dict[str, JsonSchema]) -> JsonSchema:
    """Return what may be given to all systems as `name`: what any of the families takes that have it.

    of: whether it is a field of their `config` or their `settings`.
    """
    kinds: list[dict[str, Any]] = []
    for family in families.built_in_families():
        field = defs[f"{family}-{of}"]["properties"].get(name)
        if field is not None:
            kind = {key: value for key, value in field.items() if key != "default"}
            if kind not in kinds:
                kinds.append(kind)
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
