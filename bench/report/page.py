"""What the report says, gathered from a results folder, and the page that it is put into."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from bench.errors import UserError
from bench.figures import KINDS, draw_svg, file_name, write_figures
from bench.figures.learning import Curve, read_curves
from bench.figures.style import family_style
from bench.protocol import conditions, protocol, signatures, warnings
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
    sections: list[tuple[str, list[tuple[str, str]]]]
    """Options under their titles."""
    command: str


@dataclass(frozen=True)
class FamilyPart:
    """What there is of one family on one task."""

    name: str
    id: str
    colour: str
    systems: list[SystemPart]
    learning: Picture | None
    grids: list[Grid]
    examples: list[Example]


@dataclass(frozen=True)
class TaskPart:
    """What there is of one task."""

    name: str
    id: str
    warnings: list[str]
    protocol: list[str]
    signatures: list[tuple[str, str]]
    headline: Grid | None
    grids: list[Grid]
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
    suites = list(dict.fromkeys(record.suite for record in side.records))
    words = side.environment.get("command")
    command = [str(word) for word in words] if isinstance(words, list) else []
    tasks = [_task(side, task, f"t{i}", curves, command) for i, task in enumerate(side.tasks.values(), 1)]
    commit = side.described("git").get("commit")
    commands = [f"git checkout {commit}", "make check"] if commit else []
    return Report(
        ", ".join(suites) or "nothing", _facts(side), [*commands, *([shlex.join(command)] if command else [])],
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


def _task(side: Side, task: TaskResults, id_: str, curves: Sequence[Curve], command: Sequence[str]) -> TaskPart:
    notes = Notes()
    sheets = task_sheets(task, notes)
    grids = [grid(sheet, notes.lines) for sheet in sheets]
    examples, damaged = find_examples(side, task)
    families = list(dict.fromkeys(cell.family for cell in task.cells))
    beware = warnings(task)
    failed = [f"{cell.name}: {cell.why}" for cell in task.cells if cell.problems]
    return TaskPart(
        name=task.name,
        id=id_,
        warnings=[conditions(task), *beware, *failed, *damaged],
        protocol=[line for line in protocol(task) if line not in (conditions(task), *beware)],
        signatures=[
            (", ".join(quality_metric(metric).title for metric in metrics), signature)
            for signature, metrics in signatures(task).items()
        ],
        headline=grids[0] if grids else None,
        grids=grids[1:],
        pictures=_pictures(side.folder / "figures", task),
        examples=examples,
        families=[
            _family(side, name, f"{id_}-f{i}", task, curves, grids, examples, command)
            for i, name in enumerate(families, 1)
        ],
    )


def _family(
    side: Side,
    family: str,
    id_: str,
    task: TaskResults,
    curves: Sequence[Curve],
    grids: Sequence[Grid],
    examples: Sequence[Example],
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
        id=id_,
        colour=family_style(family)[0],
        systems=[_system(side, task.name, name, command) for name in dict.fromkeys(cell.system for cell in cells)],
        learning=learning,
        grids=[part for part in (each.of_family(family) for each in grids) if part is not None],
        examples=[example.of(family) for example in examples if example.of(family).answers],
    )


def _system(side: Side, task: str, name: str, command: Sequence[str]) -> SystemPart:
    suite = side.described("suite")
    described = next((each for each in _objects(suite.get("systems")) if each.get("name") == name), {})
    entry = next((each for each in _objects(suite.get("tasks")) if each.get("name") == task), {})
    recipe = (described.get("recipes") or {}).get(task) or described.get("train")
    made = {key: described.get(key) for key in ("teacher", "data", "companions") if described.get(key)}
    settings = {each.get("label") or "default": each.get("values") for each in _objects(described.get("settings"))}
    sections = {
        "Model": described.get("config"),
        "Training": {**made, **(recipe if isinstance(recipe, dict) else {})},
        **{f"Settings {label}": values for label, values in settings.items()},
        "Task": entry.get("config"),
    }
    shown = [(title, _options(values)) for title, values in sections.items() if isinstance(values, dict) and values]
    references = [str(each.get("system")) for each in _objects(suite.get("references"))]
    return SystemPart(name, shown, again(command, name, references))


def again(command: Sequence[str], system: str, references: Sequence[str] = ()) -> str:
    """Return the command that runs one system of a suite again, beside those that its speed-ups are over.

    It is empty if `command` ran no suite.
    """
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
    only = ",".join(dict.fromkeys([system, *references]))
    return shlex.join([*kept, "--only", only, "--out", f"results/{file_name(system)}-again"])


def _pictures(folder: Path, task: TaskResults) -> list[Picture]:
    """Return the figures that have something to show, that of quality against speed first."""
    empty = set()
    if not task.references:
        empty.add("quality-speedup")
    if not task.batch_sizes:
        empty |= {"throughput", "latency"}
    first = "quality-rtf" if task.is_speech else "quality-speedup"
    kinds = sorted((kind for kind in KINDS if kind not in empty), key=lambda kind: kind != first)
    pictures = []
    for kind in kinds:
        svg, png = (folder / f"{file_name(task.name)}-{kind}.{suffix}" for suffix in ("svg", "png"))
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


def _facts(side: Side) -> list[tuple[str, str]]:
    """Return what the results were made with."""
    machine, git = side.described("machine"), side.described("git")
    libraries = {**side.described("machine", "libraries"), **side.described("metric_libraries")}
    commit = git.get("commit")
    facts = {
        "natbench": side.environment.get("version"),
        "Commit": f"{commit}{', with changes' if git.get('dirty') else ''}" if commit else None,
        "Run": side.environment.get("run"),
        "Processor": machine.get("cpu"),
        "Cores": machine.get("cores"),
        "Memory": f"{machine['memory_gib']} GiB" if "memory_gib" in machine else None,
        "Device": machine.get("device_name"),
        "Arithmetic": machine.get("dtype"),
        "Matrix products": machine.get("matrix_products"),
        "Kernels in C": machine.get("kernels"),
        "Platform": machine.get("platform"),
        "Python": machine.get("python"),
        "Libraries": ", ".join(f"{name} {version}" for name, version in libraries.items() if version),
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def _objects(found: Any) -> list[dict[str, Any]]:
    """Return the objects of a list; none if it is no list."""
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _options(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Return options as text, those of parts under `part.option`."""
    flat: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat += [(f"{key}.{name}", text) for name, text in _options(value)]
        else:
            flat.append((key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return flat
