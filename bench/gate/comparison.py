"""The whole comparison of two results folders."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError

from bench.errors import UserError, reason_of
from bench.gate.config import GateConfig
from bench.gate.quality import compare_quality, unlike
from bench.gate.speed import compare_speed
from bench.gate.verdicts import Finding
from bench.sides import Side


def compare(
    baseline: Path,
    candidate: Path,
    speed: bool = True,
    only: Collection[str] | None = None,
    identical: bool = False,
) -> list[Finding]:
    """Return what became of each cell of the baseline: its quality, then its speed unless that is not wanted.

    only: systems to look at; None: all. identical: any output that differs is a regression, or is not there any more.

    The thresholds are those of the suite that the baseline was made with.

    Raises:
        UserError: a folder holds no records, a damaged file, or another suite; or outputs cannot be identical.
    """
    before, after = Side.read(baseline), Side.read(candidate)
    suites = [sorted({record.suite for record in side.records}) for side in (before, after)]
    if suites[0] != suites[1]:
        names = [", ".join(suite) for suite in suites]
        raise UserError(f"{baseline} holds results of suite {names[0]}, and {candidate} of {names[1]}")
    if identical and unlike(before, after):
        raise UserError(
            f"--identical: the models of {baseline} and {candidate} were trained on machines that round differently "
            f"({before.arithmetic}, {after.arithmetic}), so that their outputs differ in any case"
        )
    config = gate_config(before)
    findings = compare_quality(before, after, config, identical) + (
        compare_speed(before, after, config) if speed else []
    )
    return [finding for finding in findings if only is None or finding.key[1] in only]


def gate_config(side: Side) -> GateConfig:
    """Return the thresholds of the suite whose results `side` holds; the defaults if it says nothing of them.

    Raises:
        UserError: they are no thresholds.
    """
    section = side.described("suite", "gate")
    try:
        return GateConfig(**section)
    except (ValidationError, TypeError) as error:
        raise UserError(f"{side.folder / 'environment.json'}: suite.gate: {reason_of(error)}") from error
