"""What the gate finds of a cell, and what follows for the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from bench.sides import CellKey, name_of


class Verdict(Enum):
    """What became of a value; the order is that of importance."""

    REGRESSED = "REGRESSED"
    """Worse by more than the margin, and not by chance."""
    FAILED = "FAILED"
    """The cell has no value any more."""
    MISSING = "MISSING"
    """The cell is not there any more."""
    DISJOINT = "NOT COMPARABLE"
    """Nothing that both sides have can be compared."""
    INCONCLUSIVE = "INCONCLUSIVE"
    """Too uncertain to say."""
    ADVISORY = "ADVISORY"
    """Compared, but on unlike machines, so that nothing follows."""
    IMPROVED = "IMPROVED"
    """Better by more than the margin, and not by chance."""
    OK = "OK"
    NEW = "NEW"
    """The baseline does not have it."""


FAILURES = (Verdict.FAILED, Verdict.MISSING, Verdict.DISJOINT)
COMPARED = (Verdict.REGRESSED, Verdict.IMPROVED, Verdict.OK)

GOOD, REGRESSION, BROKEN, INCOMPARABLE = 0, 1, 2, 3
"""Exit codes."""


@dataclass(frozen=True)
class Finding:
    """One compared value."""

    key: CellKey
    metric: str
    verdict: Verdict
    baseline: float | None = None
    candidate: float | None = None
    unit: str = ""
    p_value: float | None = None
    """Of a paired test, adjusted for all tests of the gate."""
    reason: str = ""
    batch_size: int | None = None
    ratio: tuple[float, float, float] | None = None
    """Of speeds that were timed in pairs: the candidate's over the baseline's, and the interval of that."""

    @property
    def cell(self) -> str:
        """`dates: ctc (distilled) [beam=5], seed 1`."""
        return f"{self.key[0]}: {name_of(self.key)}"

    @property
    def change(self) -> float | None:
        """The candidate's value minus the baseline's."""
        return None if self.baseline is None or self.candidate is None else self.candidate - self.baseline


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 1 after a regression, else 2 if a cell is lost or failed, else 3 if nothing could be told, else 0."""
    found = {finding.verdict for finding in findings}
    if Verdict.REGRESSED in found:
        return REGRESSION
    if found & set(FAILURES):
        return BROKEN
    return GOOD if found & set(COMPARED) else INCOMPARABLE
