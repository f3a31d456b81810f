"""What verbs of the command line share: options, the console, and how a suite becomes its steps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from bench.errors import UserError

if TYPE_CHECKING:
    from bench.graph import Graph

PIPE_WIDTH = 160
"""Columns of tables where output goes to no terminal."""

SuiteArgument = Annotated[Path, typer.Argument(help="Suite file (YAML).")]
ResultsArgument = Annotated[list[Path], typer.Argument(help="Results folders of suites.", metavar="FOLDER...")]
Only = Annotated[
    list[str] | None,
    typer.Option(help="Only these systems: NAME,NAME (their teachers are trained, not measured). May be repeated."),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda; auto takes CUDA where there is one.")]
Dtype = Annotated[str, typer.Option(help="auto, float32 or (on CUDA) bfloat16; auto takes bfloat16 on CUDA.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change the suite: key.path=value. May be repeated.")
]
StoreFolder = Annotated[
    Path | None,
    typer.Option("--store", help="Folder of finished and unfinished work.", show_default="$NATBENCH_STORE"),
]


def make_console() -> Console:
    """Return the console of standard output."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def names_of(only: list[str] | None) -> list[str] | None:
    """Return the systems that `--only` names, once or several times; None if it was not given."""
    return [name.strip() for part in only for name in part.split(",") if name.strip()] if only else None


def load_graph(path: Path, only: list[str] | None, device: str, dtype: str, overrides: list[str] | None) -> Graph:
    """Load a suite and return its steps.

    Raises:
        UserError: a suite or an option that is not right.
    """
    from bench.execution import find_conditions
    from bench.graph import build_graph
    from bench.suite import load_suite

    for name, value, allowed in (("--device", device, ("auto", "cpu", "cuda")),
                                 ("--dtype", dtype, ("auto", "float32", "bfloat16"))):  # fmt: skip
        if value not in allowed:
            raise UserError(f"{name} {value!r}: allowed are {', '.join(allowed)}")
    suite = load_suite(path, overrides or [])
    names = names_of(only)
    if names is not None:
        suite = suite.select(names)
    try:
        conditions = find_conditions(device, dtype)
    except ValueError as error:
        raise UserError(f"--device: {error}") from error
    if conditions.dtype == "bfloat16" and conditions.device == "cpu":
        raise UserError("--dtype bfloat16 is for CUDA; on the CPU decoding is in float32")
    return build_graph(suite, conditions)
