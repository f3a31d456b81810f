"""The verbs of `python -m bench`: arguments in, exit codes out; the work is done elsewhere.

Exit codes: 0 good, 1 a regression (`gate`), 2 a cell or the program itself failed, 3 usage error or bad input, 130
interrupted. Modules that need torch are imported by the verbs that need them, so that `table`, `plot` and `gate` start
at once and run where torch is not installed.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.cli_options import Device, Dtype, Only, Overrides, StoreFolder, SuiteArgument, load_graph, make_console
from bench.errors import UserError
from bench.records import read_records
from bench.results_verbs import VERBS, Judged
from bench.store import Store, default_root

GOOD, FAILED, USAGE, INTERRUPTED = 0, 2, 3, 130

app = typer.Typer(
    help="Measure autoregressive and non-autoregressive sequence decoders on equal terms.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class CellsFailed(Exception):
    """The run came to its end, but not for every cell."""


class Stopped(Exception):
    """The run was interrupted; the message says how to go on."""


@app.command()
def validate(suites: Annotated[list[Path], typer.Argument(help="Suite files (YAML).")]) -> None:
    """Check suite files; say what is wrong with each, with file and line."""
    from bench.suite import SuiteError, load_suite

    problems = []
    for path in suites:
        try:
            suite = load_suite(path)
        except SuiteError as error:
            problems.append(str(error))
        else:
            make_console().print(
                f"{path}: ok, {len(suite.models())} models, {len(suite.cells())} cells", markup=False, soft_wrap=True
            )
    if problems:
        raise UserError("\n".join(problems))


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="families, tasks, suites, or the name of one.")] = None,
) -> None:
    """Show families, tasks and suites, or all fields of one."""
    from bench.listing import show

    make_console().print(show(name))


@app.command()
def plan(
    suite: SuiteArgument,
    only: Only = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    set_: Overrides = None,
    store: StoreFolder = None,
) -> None:
    """Show every step of a suite, whether it is done, the size of models and rough times; run nothing."""
    from bench.plan import make_plan, plan_table

    graph = load_graph(suite, only, device, dtype, set_)
    make_console().print(plan_table(make_plan(graph, Store(store or default_root()))))


@app.command()
def run(
    suite: SuiteArgument,
    only: Only = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the results.", show_default="results/NAME")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Steps at a time.", show_default="as cores allow; on CUDA one per GPU"),
    ] = None,
    set_: Overrides = None,
    store: StoreFolder = None,
) -> None:
    """Train, decode, score and time every cell of a suite; what is finished already is not done again."""
    from bench.execution import execute
    from bench.progress import make_display
    from bench.runner import Interrupted

    graph = load_graph(suite, only, device, dtype, set_)
    from bench.tables import print_table

    folder = out or Path("results") / graph.suite.name
    if out is None and (only or set_) and (folder / "records.csv").exists():
        raise UserError(f"{folder} holds results of the whole suite; name another folder for these with --out")
    _check_results_of(graph.suite.name, folder)
    artifacts = Store(store or default_root())
    for name, place in (("--out", folder), ("--store", artifacts.root)):
        _check_writable(name, place)
    errors = Console(stderr=True, highlight=False)
    command = ["python", "-m", "bench", *sys.argv[1:]]
    try:
        result = execute(graph, artifacts, make_display(errors), folder, command, jobs)
    except Interrupted:
        steps = [*graph.prepares, *graph.work, *graph.measures().values()]
        done = sum(artifacts.has(*step.id) for step in steps)
        raise Stopped(
            f"Interrupted: {done} of {len(steps)} steps are done and kept; {folder} is as it was.\n"
            f"Go on with the same command: {shlex.join(command)}"
        ) from None
    print_table(result.records, make_console())
    make_console().print(f"Results: {folder}", markup=False, soft_wrap=True)
    for step, outcome in result.failed:
        errors.print(
            f"{step.label}: {outcome.status}: {outcome.reason} (log: {outcome.log})", markup=False, soft_wrap=True
        )
    if not result.good:
        raise CellsFailed


for verb in VERBS:
    app.command()(verb)


@app.command()
def schema() -> None:
    """Print the JSON schema of suite files, for editors."""
    from bench.suite import suite_json_schema

    sys.stdout.write(json.dumps(suite_json_schema(), indent=1, ensure_ascii=False) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code."""
    try:
        # `python -m bench` finds families that lie in the current folder; so must `natbench`.
        here = str(Path.cwd())
        if sys.path[:1] != [here]:
            sys.path.insert(0, here)
        app(None if arguments is None else list(arguments), prog_name="bench")
    except SystemExit as end:
        return _exit_code(end.code)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return USAGE
    except (PermissionError, NotADirectoryError, IsADirectoryError) as error:
        sys.stderr.write(f"{error.filename}: {error.strerror}\n")
        return USAGE
    except CellsFailed:
        return FAILED
    except Judged as judged:
        return judged.code
    except Stopped as stopped:
        sys.stderr.write(f"{stopped}\n")
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return FAILED
    return GOOD


def _exit_code(given: str | int | None) -> int:
    """Return the exit code for that of a `SystemExit`, which came from Typer or from a user's module."""
    if isinstance(given, str):
        sys.stderr.write(f"{given}\n")
        return FAILED
    # Typer's own code for usage errors is 2. Its 1 is a closed pipe or input, and here 1 is for regressions alone.
    return {2: USAGE, 1: FAILED}.get(given or GOOD, given or GOOD)


def _check_writable(option: str, folder: Path) -> None:
    """Refuse a folder that nothing could be written into, before any work is done for it."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise UserError(f"{option} {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{option} {folder}: {existing} is not writable")


def _check_results_of(suite: str, folder: Path) -> None:
    """Refuse a results folder that holds those of another suite, or records that are not ours."""
    file = folder / "records.csv"
    if not file.is_file():
        return
    how = "name another folder with --out, or remove that file"
    try:
        others = sorted({record.suite for record in read_records(file)} - {suite})
    except ValueError as error:
        raise UserError(f"{error}; it would be replaced: {how}") from error
    if others:
        raise UserError(f"{file} holds results of suite {others[0]!r}, not of {suite!r}: {how}")
