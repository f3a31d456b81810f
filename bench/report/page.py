"""What the report says, gathered from a results folder, and the page that it is put into."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from bench.errors import UserError
from bench.figures import KINDS, draw_svg, file_name, write_figures
from bench.figures.learning import Curve, read_curves
from bench.figures.style import family_style
from bench.protocol import protocol, signatures
from bench.report.examples import Example, find_examples
from bench.report.figure_texts import describe
from bench.report.grid import Grid, grid
from bench.results import TaskResults, quality_metric
from bench.sheets import Notes, task_sheets
from bench.sides import Side
from bench.store import write_atomically

FILE = "report.html"
MAX_SVG = 1 << 20
"""Bytes of the largest figure that is embedded as SVG; a larger one, of thousands of points, as PNG."""
NOT_AGAIN = ("--out", "--store", "--jobs", "--only")
"""Options of a command that say where and how fast it ran, or of what."""


@dataclass(frozen=True)
class Picture:
    """An embedded figure."""

    kind: str
    title: str
    text: str
    """What it shows, for those who do not see it."""
    uri: str


@dataclass(frozen=True)
class SystemPart:
    """A system of a family: how it was made."""

    name: str
    config: list[tuple[str, str]]
    command: str


@dataclass(frozen=True)
class FamilyPart:
    """What there is of one family on one task."""

    name: str
    slug: str
    colour: str
    systems: list[SystemPart]
    learning: Picture | None
    grids: list[Grid]
    examples: list[Example]


@dataclass(frozen=True)
class TaskPart:
    """What there is of one task."""

    name: str
    slug: str
    protocol: list[str]
    signatures: list[tuple[str, str]]
    headline: Grid | None
    grids: list[Grid]
    notes: list[str]
    pictures: list[Picture]
    examples: list[Example]
    families: list[FamilyPart]


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    title: str
    facts: list[tuple[str, str]]
    commands: list[str]
    tasks: list[TaskPart] = field(default_factory=list)


def write_report(folder: Path, redraw: bool = True) -> Path:
    """Write `report.html` into a results folder, and return its path.

    redraw: draw the figures anew; else those that lie in `figures/` are taken.

    Raises:
        UserError: the folder holds no records, or a file of it is damaged.
    """
    side = Side.read(folder)
    try:
        if redraw:
            write_figures(folder)
        curves = read_curves(folder / "curves.csv") if (folder / "curves.csv").is_file() else []
    except ValueError as error:
        raise UserError(str(error)) from error
    path = folder / FILE
    write_atomically(path, render(gather(side, curves)))
    return path


def gather(side: Side, curves: Sequence[Curve] = ()) -> Report:
    """Return what there is to say of a results folder."""
    environment = side.environment
    suites = list(dict.fromkeys(record.suite for record in side.records))
    command = [str(word) for word in environment.get("command", [])]
    systems = {system["name"]: system for system in environment.get("suite", {}).get("systems", [])}
    tasks = [_task(side, task, curves, systems, command) for task in side.tasks.values()]
    commit = environment.get("git", {}).get("commit")
    commands = [f"git checkout {commit}"] if commit else []
    return Report(
        ", ".join(suites) or "nothing", _facts(environment), [*commands, *([shlex.join(command)] if command else [])],
        tasks,
    )  # fmt: skip


def render(report: Report) -> str:
    """Return the page; all text in it is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    script, style, template = (
        resources.files("bench.report").joinpath(name).read_text(encoding="utf-8")
        for name in ("page.js", "page.css", "page.html")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(template).render(report=report, script=script, style=style, script_digest=digest)


def _task(
    side: Side, task: TaskResults, curves: Sequence[Curve], systems: Mapping[str, Any], command: Sequence[str]
) -> TaskPart:
    notes = Notes()
    sheets = task_sheets(task, notes)
    slug = file_name(task.name)
    grids = [grid(sheet) for sheet in sheets]
    examples = find_examples(side, task)
    families = list(dict.fromkeys(cell.family for cell in task.cells))
    return TaskPart(
        name=task.name,
        slug=slug,
        protocol=protocol(task),
        signatures=[
            (", ".join(quality_metric(metric).title for metric in metrics), signature)
            for signature, metrics in signatures(task).items()
        ],
        headline=grids[0] if grids else None,
        grids=grids[1:],
        notes=notes.lines,
        pictures=_pictures(side.folder / "figures", slug, task),
        examples=examples,
        families=[_family(name, task, curves, grids, examples, systems, command) for name in families],
    )


def _family(
    family: str,
    task: TaskResults,
    curves: Sequence[Curve],
    grids: Sequence[Grid],
    examples: Sequence[Example],
    systems: Mapping[str, Any],
    command: Sequence[str],
) -> FamilyPart:
    cells = [cell for cell in task.cells if cell.family == family]
    own = TaskResults([record for record in task.records if record.family == family])
    svg = draw_svg("learning", own, curves)
    learning = None
    if svg is not None and len(svg) <= MAX_SVG:
        learning = Picture("learning", "Learning curves", describe("learning", own), _uri(svg, "svg+xml"))
    return FamilyPart(
        name=family,
        slug=file_name(family),
        colour=family_style(family)[0],
        systems=[_system(name, systems.get(name), command) for name in dict.fromkeys(cell.system for cell in cells)],
        learning=learning,
        grids=[part for part in (each.of_family(family) for each in grids) if part is not None],
        examples=[example.of(family) for example in examples if example.of(family).answers],
    )


def _system(name: str, described: Mapping[str, Any] | None, command: Sequence[str]) -> SystemPart:
    config = [(key, _shown(value)) for key, value in (described or {}).get("config", {}).items()]
    return SystemPart(name, config, again(command, name))


def again(command: Sequence[str], system: str) -> str:
    """Return the command that runs one system of a suite again; empty if `command` ran none."""
    words = list(command)
    if "run" not in words:
        return ""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in NOT_AGAIN:
            skip = True
        elif not any(word.startswith(f"{option}=") for option in NOT_AGAIN):
            kept.append(word)
    return shlex.join([*kept, "--only", system, "--out", "results/again"])


def _pictures(folder: Path, slug: str, task: TaskResults) -> list[Picture]:
    pictures = []
    for kind in KINDS:
        svg, png = (folder / f"{slug}-{kind}.{suffix}" for suffix in ("svg", "png"))
        if not svg.is_file():
            continue
        use_png = svg.stat().st_size > MAX_SVG and png.is_file()
        uri = _uri(png.read_bytes(), "png") if use_png else _uri(_compact(svg.read_bytes()), "svg+xml")
        title = kind.replace("-", " ").replace("rtf", "real-time factor")
        pictures.append(Picture(kind, title[0].upper() + title[1:], describe(kind, task), uri))
    return pictures


def _compact(svg: bytes) -> bytes:
    """Return an SVG without the white space that nobody reads."""
    return re.sub(rb"\n\s*", b"\n", svg)


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _facts(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the results were made with."""
    machine = environment.get("machine", {})
    git = environment.get("git") or {}
    libraries = {**machine.get("libraries", {}), **environment.get("metric_libraries", {})}
    commit = git.get("commit")
    facts = {
        "natbench": environment.get("version"),
        "Commit": f"{commit}{' with changes' if git.get('dirty') else ''}" if commit else None,
        "Run": environment.get("run"),
        "Processor": machine.get("cpu"),
        "Cores": machine.get("cores"),
        "Memory": f"{machine['memory_gib']} GiB" if "memory_gib" in machine else None,
        "Device": machine.get("device_name"),
        "Arithmetic": machine.get("dtype"),
        "Matrix products": machine.get("matrix_products"),
        "Platform": machine.get("platform"),
        "Python": machine.get("python"),
        "Libraries": ", ".join(f"{name} {version}" for name, version in libraries.items() if version),
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
