"""The verbs that read results: tables, figures, the report and the gate. They load no torch until they must."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from bench.cli_options import (
    Device,
    Dtype,
    Only,
    Overrides,
    ResultsArgument,
    StoreFolder,
    load_graph,
    make_console,
    names_of,
)
from bench.errors import UserError
from bench.records import read_results
from bench.store import Store, default_root

if TYPE_CHECKING:
    from bench.gate.verdicts import Finding


class Judged(Exception):
    """The gate has come to a judgement."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def table(folders: ResultsArgument) -> None:
    """Write the tables of results folders from their records, and show them."""
    records = {folder: read_results(folder) for folder in folders}
    from bench.tables import print_table, write_tables

    for folder in folders:
        write_tables(folder)
        print_table(records[folder], make_console())


def plot(folders: ResultsArgument) -> None:
    """Draw the figures of results folders from their records."""
    for folder in folders:
        read_results(folder)
    from bench.figures import write_figures

    for folder in folders:
        try:
            write_figures(folder)
        except ValueError as error:
            if not any(str(error).startswith(str(file)) for file in folder.glob("*.csv")):
                raise  # no message of a reader: those begin with the file that is damaged
            raise UserError(str(error)) from error


def report(folders: ResultsArgument) -> None:
    """Write report.html into results folders, from their records: one page with tables, figures and examples."""
    from bench.report import write_report

    for folder in folders:
        make_console().print(f"Report: {write_report(folder)}", markup=False, soft_wrap=True)


def compare(
    first: Annotated[Path, typer.Argument(help="Results folder.", metavar="FIRST")],
    second: Annotated[Path, typer.Argument(help="Another one.", metavar="SECOND")],
    metric: Annotated[str | None, typer.Option(help="Quality metric; by default the first of each task.")] = None,
    sentences: Annotated[int, typer.Option(min=0, help="Sentences to show, those that changed most.")] = 5,
) -> None:
    """Show two results folders side by side: quality, speed, and the sentences that changed most."""
    from bench.side_by_side import print_comparison
    from bench.sides import Side

    print_comparison(Side.read(first), Side.read(second), make_console(), metric, sentences)


def gate(
    baseline: Annotated[Path | None, typer.Option(help="Results folder to compare with.", metavar="FOLDER")] = None,
    candidate: Annotated[Path | None, typer.Option(help="Results folder to judge.", metavar="FOLDER")] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Time this commit and the working tree in turn; stored times count no more.", metavar="COMMIT"
        ),
    ] = None,
    suite: Annotated[
        Path | None, typer.Option(help="With --against: the suite to time, which must have been run.", metavar="FILE")
    ] = None,
    quality_only: Annotated[bool, typer.Option("--quality-only", help="Leave stored times out.")] = False,
    identical: Annotated[
        bool, typer.Option("--identical", help="Any output that differs is a regression: nothing was to change.")
    ] = False,
    only: Only = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    set_: Overrides = None,
    store: StoreFolder = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the table as Markdown.", metavar="FILE")] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML.", metavar="FILE")] = None,
) -> None:
    """Say whether anything has become worse: exit 0 no, 1 a regression, 2 a lost or failed cell, 3 not comparable."""
    from bench.gate import report
    from bench.gate.comparison import compare as compare_folders
    from bench.gate.verdicts import exit_code

    if (baseline is None) != (candidate is None):
        raise UserError("--baseline and --candidate: name both folders, or neither with --against")
    if identical and baseline is None:
        raise UserError("--identical compares outputs: name --baseline and --candidate")
    if (against is None) != (suite is None):
        raise UserError("--against and --suite: name both, or neither")
    if baseline is None and against is None:
        raise UserError("nothing to compare: name --baseline and --candidate, or --against and --suite, or all four")
    for path in (markdown, junit):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    findings: list[Finding] = []
    if baseline is not None and candidate is not None:
        speed = against is None and not quality_only
        findings += compare_folders(baseline, candidate, speed, names_of(only), identical)
    notes: list[str] = []
    if against is not None and suite is not None:
        from bench.gate.against import time_against

        graph = load_graph(suite, only, device, dtype, set_)
        timed, note = time_against(against, graph, Store(store or default_root()), Console(stderr=True).print)
        findings += timed
        notes.append(note)
    report.print_findings(findings, make_console(), notes)
    for path, write in ((markdown, report.markdown), (junit, report.junit)):
        if path is not None:
            path.write_text(write(findings, notes), encoding="utf-8")
    raise Judged(exit_code(findings))


VERBS = (table, plot, report, compare, gate)
