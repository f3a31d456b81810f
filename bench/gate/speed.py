"""Whether stored throughput has fallen; a judgement only if both sides were timed on one machine.

Stored times of two runs share no rounds, so that their intervals are set against each other: what was measured has
fallen if even the most favourable ratio that they allow is below the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.gate.config import GateConfig
from bench.gate.verdicts import Finding, Verdict
from bench.results import Estimate
from bench.sides import CellKey, Side

METRIC = "tokens_per_second"


def compare_speed(baseline: Side, candidate: Side, config: GateConfig) -> list[Finding]:
    """Return what became of the throughput of the cells that both sides have, at each batch size."""
    return [
        finding
        for key in baseline.cells
        if key in candidate.cells
        for finding in _compare(baseline, candidate, key, 1 - config.stored_slowdown / 100)
    ]


def _compare(baseline: Side, candidate: Side, key: CellKey, least: float) -> Iterator[Finding]:
    task = key[0]
    machines = (baseline.fingerprint(task), candidate.fingerprint(task))
    other = "" if machines[0] is not None and machines[0] == machines[1] else "timed on another machine"
    for size in baseline.tasks[task].batch_sizes:
        old, new = (side.cells[key].get(METRIC, size) for side in (baseline, candidate))
        if not old.value:
            continue
        if new.value is None:
            reason = new.reason or "not measured any more"
            verdict = Verdict.FAILED if new.status != "ok" else Verdict.MISSING
            yield Finding(key, METRIC, verdict, old.value, None, "tokens/s", reason=reason, batch_size=size)
            continue
        verdict = Verdict.ADVISORY if other else _judge(old, new, least)
        yield Finding(key, METRIC, verdict, old.value, new.value, "tokens/s", reason=other, batch_size=size)


def _judge(old: Estimate, new: Estimate, least: float) -> Verdict:
    (old_low, old_high), (new_low, new_high) = (e.bounds or (e.value or 0.0, e.value or 0.0) for e in (old, new))
    if new_high < least * old_low:
        return Verdict.REGRESSED
    return Verdict.OK if new_low >= least * old_high else Verdict.INCONCLUSIVE
