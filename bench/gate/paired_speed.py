"""Whether the working tree decodes slower than another state of the code: both are timed in turn, in one job.

Both sides decode the same sentences with the same weights, those that the suite's models were trained to, so that what
differs is the code. A regression must show twice: the second time in processes that were started anew, in the other
order, for where a process happens to lie in memory can make it some percent slower for as long as it lives.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from bench.cell_steps import CellSteps
from bench.errors import UserError
from bench.gate.config import GateConfig
from bench.gate.pairs import Judgement, Pair
from bench.gate.session import BASELINE, CANDIDATE, Session, Timed, TimedPoint
from bench.gate.turns import Checkout, Died, Failure
from bench.gate.verdicts import Finding, Verdict
from bench.graph import Graph
from bench.sides import CellKey
from bench.steps import Step
from bench.store import Store
from models.interface import Options
from models.registry import load_family

METRIC = "sentences_per_second"

Note = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What came of timing a suite."""

    findings: list[Finding]
    foreign: float | None
    """The largest share of a CPU core, in %, that other processes used meanwhile."""


def compare_checkouts(
    graph: Graph, store: Store, baseline: Checkout, candidate: Checkout, config: GateConfig, note: Note, seed: int = 1
) -> Outcome:
    """Time the cells of each task of a suite with the code of both checkouts.

    Args:
        graph: the steps of the suite, whose models must be in the store.
        store: where they are.
        baseline: what to compare with.
        candidate: what to judge.
        config: the suite's thresholds.
        note: is told what is being done.
        seed: of the orders in which points and sides take turns.

    Raises:
        UserError: the suite times nothing, its models are not there, or a side cannot run at all.
    """
    if graph.suite.measure.speed is None:
        raise UserError(f"suite {graph.suite.name!r} times nothing (measure.speed is null)")
    steps = [(cell, step) for cell in graph.cells for step in (cell.evaluation, cell.model)]
    undone = {_key(cell): step for cell, step in steps if not store.has(*step.id)}
    if len(undone) == len(graph.cells):
        raise UserError(
            f"nothing of suite {graph.suite.name!r} is in {store.root}: run it first, with the same --store"
        )
    findings = [Finding(key, "cell", Verdict.FAILED, reason=f"not done: {step.label}") for key, step in undone.items()]
    shares = []
    for name, step in graph.measures(lambda step: store.has(*step.id)).items():
        timing = _TaskTiming(name, step, graph.cells, store, config, note, random.Random(seed))
        findings += timing.run([baseline, candidate])
        shares += [timed.foreign for timed in timing.timed if timed.foreign is not None]
    return Outcome(findings, max(shares, default=None))


class _TaskTiming:
    """The timing of one task's cells."""

    def __init__(
        self,
        name: str,
        step: Step,
        cells: Sequence[CellSteps],
        store: Store,
        config: GateConfig,
        note: Note,
        rng: random.Random,
    ) -> None:
        self.name, self.note = name, note
        speed = step.spec["speed"]
        sizes = config.batch_sizes or sorted({speed["batch_sizes"][0], speed["batch_sizes"][-1]})
        self.description = {
            "cells": [_explained(cell) for cell in step.spec["cells"]],
            "parents": {role: str(store.path(*identity).resolve()) for role, identity in step.parents.items()},
            "batch_sizes": list(sizes),
            "sentences": max(speed["sentences"], sizes[-1]),
            "threads": speed["threads"],
            **{name: step.spec[name] for name in ("split", "device", "dtype")},
        }
        here = {cell["id"] for cell in step.spec["cells"]}
        self.keys = {cell.id: _key(cell) for cell in cells if cell.id in here and cell.cell.model.task.name == name}
        self.points = [TimedPoint(cell, size) for cell in self.keys for size in sizes]
        self.log = store.log("gate", step.key)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)
        self.session = Session(config, rng)
        self.timed: list[Timed] = []

    def run(self, checkouts: Sequence[Checkout]) -> list[Finding]:
        """Time everything, and what has become slower once more, in other processes."""
        judged = self._time(checkouts, self.points, BASELINE).judged
        suspects = [point for point, (judgement, _) in judged.items() if judgement.verdict is Verdict.REGRESSED]
        again = self._time(checkouts, suspects, CANDIDATE).judged if suspects else {}
        for point, (judgement, pairs) in again.items():
            judged[point] = (_confirmed(judged[point][0], judgement), pairs)
        lost = dict.fromkeys(where for timed in self.timed for side in timed.failures for where in side)
        return [
            *(self._lost(*where) for where in lost),
            *(self._finding(point, *found) for point, found in judged.items()),
        ]

    def _time(self, checkouts: Sequence[Checkout], points: Sequence[TimedPoint], first: int) -> Timed:
        cells = len({point.cell for point in points})
        how = "again, in other processes" if self.timed else "on both sides"
        self.note(f"{self.name}: timing {cells} cells {how}")
        try:
            timed = self.session.run(checkouts, self.description, points, self.log, first)
        except Died as death:
            if self.timed:  # what is known already stands
                self.note(f"{self.name}: {death}: not timed again")
                return Timed({}, ({}, {}), None)
            raise UserError(f"{('baseline', 'candidate')[death.side]}: {death} (log: {self.log})") from death
        self.timed.append(timed)
        return timed

    def _lost(self, cell: str, size: int | None) -> Finding:
        """Return the finding for what one of the sides, or both, cannot load or decode."""
        old, new = (self._failure(side, cell, size) for side in (BASELINE, CANDIDATE))
        where = f"at batch {size}: " if size is not None else ""
        if old is not None and new is not None:
            return Finding(self.keys[cell], "cell", Verdict.ADVISORY, reason=f"{where}neither side can: {new.reason}")
        if new is not None:
            return Finding(self.keys[cell], "cell", Verdict.FAILED, reason=where + new.reason)
        assert old is not None, "only what failed is lost"
        # What the baseline decodes wrongly, or does not know, is no measure. What it cannot load is nobody's progress.
        verdict = Verdict.NEW if old.unknown or size is not None else Verdict.DISJOINT
        return Finding(self.keys[cell], "cell", verdict, reason=f"{where}the baseline cannot: {old.reason}")

    def _failure(self, side: int, cell: str, size: int | None) -> Failure | None:
        found = [timed.failures[side][cell, size] for timed in self.timed if (cell, size) in timed.failures[side]]
        return found[0] if found else None

    def _finding(self, point: TimedPoint, judgement: Judgement, pairs: Sequence[Pair]) -> Finding:
        reasons = [f"{judgement.pairs} pairs", judgement.note, "" if all(p.same for p in pairs) else "outputs differ"]
        rate = median(pair.sentences / pair.baseline for pair in pairs)
        # The candidate's rate follows from the paired ratio: rates of their own would not be paired.
        return Finding(
            self.keys[point.cell],
            METRIC,
            judgement.verdict,
            rate,
            rate * judgement.ratio,
            "sentences/s",
            reason="; ".join(filter(None, reasons)),
            batch_size=point.batch_size,
            ratio=(judgement.ratio, judgement.low, judgement.high),
        )


def _confirmed(first: Judgement, again: Judgement) -> Judgement:
    """Return what stands of a regression after other processes were timed."""
    shown = f"{100 * (first.ratio - 1):+.1f} % in the processes before"
    verdict = again.verdict if again.verdict is Verdict.REGRESSED else Verdict.INCONCLUSIVE
    return replace(again, verdict=verdict, note=shown)


def _key(cell: CellSteps) -> CellKey:
    model = cell.cell.model
    return (model.task.name, model.system, model.data, cell.cell.settings_label, model.seed)


def _explained(cell: dict[str, Any]) -> dict[str, Any]:
    """Return a cell with the defaults of its options: another checkout may lack those that are at theirs."""
    family = load_family(cell["family"])
    return {
        "id": cell["id"],
        "family": cell["family"],
        "config": _with_defaults(family.config, cell["config"]),
        "settings": _with_defaults(family.settings, cell["settings"]),
        "companions": {
            role: {**other, "config": _with_defaults(load_family(other["family"]).config, other["config"])}
            for role, other in cell["companions"].items()
        },
    }


def _with_defaults(options: type[Options], values: dict[str, Any]) -> dict[str, Any]:
    fields = options.model_fields.items()
    defaults = {name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()}
    return {"values": values, "defaults": options.model_construct(**defaults).model_dump(mode="json")}
