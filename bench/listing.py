"""What `bench list` shows: the families, tasks and suites that there are, and the fields of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bench.errors import UserError, nearest
from bench.option_fields import FieldDescription
from bench.suite import FamilyDescription, TaskDescription, describe_families, describe_tasks

SUITES = Path(__file__).resolve().parents[1] / "suites"
SECTIONS = ("families", "tasks", "suites")


def show(name: str | None) -> RenderableType:
    """Return what there is to say about a section, a family or a task; about everything, in short, if `name` is None.

    Raises:
        UserError: there is nothing of that name.
    """
    families = {family.name: family for family in describe_families()}
    tasks = {task.name: task for task in describe_tasks()}
    overview = {
        "families": _overview("family", [(f.name, f.title, _kind(f)) for f in families.values()]),
        "tasks": _overview("task", [(t.name, t.title, " ".join(t.metrics)) for t in tasks.values()]),
        "suites": _overview("suite", [(path.stem, str(path), "") for path in sorted(SUITES.glob("*.yaml"))]),
    }
    if name is None:
        return Group(*(part for section in SECTIONS for part in (overview[section], Text())))
    if name in overview:
        return overview[name]
    if name in families:
        return _family(families[name])
    if name in tasks:
        return _task(tasks[name])
    known = [*SECTIONS, *families, *tasks]
    raise UserError(f"nothing is called {name!r}{nearest(name, known)}; there are: {', '.join(known)}")


def _kind(family: FamilyDescription) -> str:
    return "autoregressive" if family.autoregressive else "non-autoregressive"


def _overview(kind: str, rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(kind, "", "", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _family(family: FamilyDescription) -> RenderableType:
    head = Text(f"{family.name}: {family.title} ({_kind(family)})")
    parts = [_fields("config", family.config), _fields("settings", family.settings)]
    if family.roles:
        table = Table("companion", "", box=None, pad_edge=False, header_style="bold")
        for role in family.roles:
            table.add_row(escape(role.name), escape(role.description))
        parts.append(table)
    return Group(head, *(line for part in parts for line in (Text(), part)))


def _task(task: TaskDescription) -> RenderableType:
    head = Text(f"{task.name}: {task.title}\nmetrics: {', '.join(task.metrics)}")
    return Group(head, Text(), _fields("option", task.options))


def _fields(title: str, fields: Sequence[FieldDescription]) -> Table:
    table = Table(title, "type", "default", "allowed", "", box=None, pad_edge=False, header_style="bold")
    table.columns[0].no_wrap = True
    for field in fields:
        table.add_row(*map(escape, (field.name, field.type, field.default or "required", field.allowed, field.doc)))
    return table
