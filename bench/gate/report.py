"""How the gate's findings are shown: a table for people, Markdown for a pull request, JUnit XML for a job page."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.gate.verdicts import BROKEN, FAILURES, GOOD, INCOMPARABLE, REGRESSION, Finding, Verdict, exit_code
from bench.results import quality_metric
from bench.sheets import significant

HEADER = ("Verdict", "Cell", "Value", "Baseline", "Candidate", "Change", "p", "Reason")
STYLES = {
    Verdict.REGRESSED: "bold red",
    Verdict.FAILED: "bold red",
    Verdict.MISSING: "bold red",
    Verdict.DISJOINT: "bold red",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.IMPROVED: "green",
}
SUMMARIES = {
    GOOD: "Nothing is shown to have become worse.",
    REGRESSION: "Something has become worse.",
    BROKEN: "Nothing that could be compared is shown to have become worse, but not everything could.",
    INCOMPARABLE: "Nothing could be compared.",
}
ORDER = list(Verdict)


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings, the worst verdicts first, otherwise in their order."""
    return sorted(findings, key=lambda finding: ORDER.index(finding.verdict))


def summary(findings: Sequence[Finding]) -> str:
    """Return what the exit code means, and how often there was each verdict."""
    counts = Counter(finding.verdict for finding in findings)
    numbers = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict])
    return f"{SUMMARIES[exit_code(findings)]}{f' {numbers}.' if numbers else ''}"


def print_findings(findings: Sequence[Finding], console: Console, notes: Sequence[str] = ()) -> None:
    """Print the table, what to know of it, and a line that sums it up."""
    table = Table(*HEADER, show_edge=False)
    for finding in ordered(findings):
        verdict, *others = _row(finding)
        table.add_row(Text(verdict, style=STYLES.get(finding.verdict, "")), *map(Text, others))
    console.print(table)
    for line in (*notes, summary(findings)):
        console.print(line, markup=False, soft_wrap=True)


def markdown(findings: Sequence[Finding], notes: Sequence[str] = ()) -> str:
    """Return the table in Markdown, the summary above it and what to know below."""
    lines = [summary(findings), "", "| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    for finding in ordered(findings):
        lines.append("| " + " | ".join(_escaped(cell) for cell in _row(finding)) + " |")
    for note in notes:
        lines += ["", note]
    return "\n".join(lines) + "\n"


def junit(findings: Sequence[Finding], notes: Sequence[str] = ()) -> str:
    """Return JUnit XML: a test case for each finding, which fails if the gate does because of it, and the notes."""
    failing = [f for f in findings if f.verdict is Verdict.REGRESSED or f.verdict in FAILURES]
    idle = [f for f in findings if f.verdict in (Verdict.ADVISORY, Verdict.INCONCLUSIVE, Verdict.NEW)]
    numbers = {"tests": len(findings), "failures": len(failing), "skipped": len(idle)}
    suite = ET.Element("testsuite", {"name": "bench gate", **{k: str(v) for k, v in numbers.items()}})
    for finding in findings:
        case = ET.SubElement(suite, "testcase", {"classname": _printable(finding.cell), "name": _value(finding)})
        if finding in failing or finding in idle:
            kind = "failure" if finding in failing else "skipped"
            verdict, _, _, *rest = _row(finding)
            ET.SubElement(case, kind, {"message": _printable("; ".join(filter(None, [verdict, *rest])))})
    if notes:
        ET.SubElement(suite, "system-out").text = _printable(" ".join(notes))
    ET.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suite, encoding="unicode") + "\n"


def _row(finding: Finding) -> list[str]:
    p = "" if finding.p_value is None else f"{finding.p_value:.2g}"
    return [
        finding.verdict.value,
        finding.cell,
        _value(finding),
        "" if finding.baseline is None else significant(finding.baseline),
        "" if finding.candidate is None else significant(finding.candidate),
        _change(finding),
        p,
        finding.reason,
    ]


def _value(finding: Finding) -> str:
    if finding.batch_size is not None:
        return f"{finding.unit.capitalize()}, batch {finding.batch_size}"
    return quality_metric(finding.metric).title if finding.metric not in ("", "cell") else "Cell"


def _change(finding: Finding) -> str:
    """Return the change: of speed in %, with an interval if it was timed in pairs; of quality in points."""
    if finding.ratio is not None:
        ratio, low, high = (f"{100 * (value - 1):+.1f}" for value in finding.ratio)
        return f"{ratio} [{low}, {high}] %"
    if finding.change is None:
        return ""
    if finding.batch_size is not None and finding.baseline:
        return f"{100 * finding.change / finding.baseline:+.1f} %"
    return f"{finding.change:+.2f}"


def _escaped(text: str) -> str:
    """Return `text` for a cell of a Markdown table: nothing in it is markup."""
    for character in "\\`*_{}[]<>|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def _printable(text: str) -> str:
    """Return `text` without what XML cannot hold."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
