"""Whether outputs have become worse: paired approximate randomisation over sentences, beyond a margin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.gate.config import GateConfig
from bench.gate.verdicts import Finding, Verdict
from bench.metrics import MEASURES, Evidence
from bench.quality import METRICS
from bench.results import DIAGNOSTIC, Cell, TaskResults
from bench.sides import CellKey, Sentence, Side
from bench.stats import holm, paired_randomisation


def compare_quality(baseline: Side, candidate: Side, config: GateConfig, identical: bool = False) -> list[Finding]:
    """Return what became of the quality of every cell of the baseline, then the cells that it does not have.

    identical: an output that differs is a regression, be it better or worse.
    """
    findings: list[Finding] = []
    excused = unlike(baseline, candidate)
    for key, cell in baseline.cells.items():
        metrics = gated_metrics(baseline.tasks[key[0]], config)
        if any(cell.get(metric).value is not None for metric in metrics):
            found = _compare(baseline, candidate, key, metrics, config, identical)
            findings += [_excused(finding, config) for finding in found] if excused else found
    suspects = [i for i, finding in enumerate(findings) if finding.p_value is not None]
    for i, p in zip(suspects, holm([findings[i].p_value or 0.0 for i in suspects]), strict=True):
        sure = p < config.alpha
        findings[i] = replace(
            findings[i],
            p_value=p,
            verdict=findings[i].verdict if sure else Verdict.OK,
        )
        if not sure:
            findings[i] = _noted(findings[i], "perhaps by chance")
    new = [key for key in candidate.cells if key not in baseline.cells]
    return findings + [Finding(key, "", Verdict.NEW) for key in new]


def unlike(baseline: Side, candidate: Side) -> bool:
    """Return whether the sides' models are known to have been trained on machines that round differently."""
    return None not in (baseline.arithmetic, candidate.arithmetic) and baseline.arithmetic != candidate.arithmetic


def gated_metrics(task: TaskResults, config: GateConfig) -> list[str]:
    """Return the quality metrics of `task` that are gated: those of the config, or the first that ranks systems."""
    there = [metric for metric in task.quality if metric in MEASURES]
    if config.metrics is not None:
        return [metric for metric in there if metric in config.metrics]
    return [metric for metric in there if metric not in DIAGNOSTIC][:1]


def _compare(
    baseline: Side, candidate: Side, key: CellKey, metrics: Sequence[str], config: GateConfig, identical: bool
) -> list[Finding]:
    """Compare a cell of the baseline; of what is worse or better by more than the margin, p is not adjusted yet."""
    name = metrics[0]
    there = candidate.cells.get(key)
    if there is None:
        return [Finding(key, name, Verdict.MISSING, reason=f"{candidate.folder} does not have it")]
    before, after = baseline.outputs(key), candidate.outputs(key)
    if after is None and there.problems:
        return [Finding(key, name, Verdict.FAILED, reason=there.why)]
    if before is None or after is None:
        side = baseline if before is None else candidate
        what = "outputs of it" if side.sentences(key[0]) else "sentences beside its outputs: run the suite anew"
        return [Finding(key, name, Verdict.DISJOINT, reason=f"{side.folder} has no {what}")]
    theirs = {sentence.id: sentence.references for sentence in candidate.sentences(key[0])}
    shared = [each for each in baseline.sentences(key[0]) if theirs.get(each.id) == each.references]
    if not shared:
        return [Finding(key, name, Verdict.DISJOINT, reason="no sentence is in both")]
    findings = [
        _judge(key, metric, [before[each.id] for each in shared], [after[each.id] for each in shared], shared, config)
        for metric in metrics
    ]
    changed = sum(before[each.id] != after[each.id] for each in shared)
    if changed:
        note = f"{changed} of {len(shared)} outputs differ"
        findings = [_noted(f, note) for f in findings]
        if identical:
            findings = [replace(f, verdict=Verdict.REGRESSED, p_value=None) for f in findings]
    if len(shared) < len(before):
        share = f"over {len(shared)} of {len(before)} sentences"
        findings = [_noted(f, share) for f in findings]
        if identical:
            findings = [replace(f, verdict=Verdict.DISJOINT, p_value=None) for f in findings]
    return findings + _lost(key, baseline.cells[key], there)


def _judge(
    key: CellKey,
    metric: str,
    before: Sequence[str],
    after: Sequence[str],
    sentences: Sequence[Sentence],
    config: GateConfig,
) -> Finding:
    examples: Any = sentences  # references are all that metrics look at
    old: Evidence = MEASURES[metric](before, examples)
    new: Evidence = MEASURES[metric](after, examples)
    finding = Finding(key, metric, Verdict.OK, old.value(), new.value(), METRICS[metric].unit)
    if list(before) == list(after):
        return replace(finding, reason="the same outputs")
    if math.isnan(new.value()) and not math.isnan(old.value()):
        return replace(finding, candidate=None, verdict=Verdict.FAILED, reason="undefined for these outputs")
    higher = METRICS[metric].higher_is_better
    change = finding.change or 0.0
    if higher is None or not abs(change) > config.margin_of(metric):
        return finding
    p = paired_randomisation(old.rows, new.rows, old.statistic, samples=config.samples)
    return replace(finding, verdict=Verdict.IMPROVED if (change > 0) == higher else Verdict.REGRESSED, p_value=p)


def _noted(finding: Finding, note: str) -> Finding:
    """Return the finding with one more reason."""
    return replace(finding, reason="; ".join(filter(None, [finding.reason, note])))


def _excused(finding: Finding, config: GateConfig) -> Finding:
    """Return what to say of a finding if the two sides' models were trained on machines that round differently."""
    changed = finding.verdict in (Verdict.REGRESSED, Verdict.IMPROVED)
    if not changed or abs(finding.change or 0.0) > config.unlike_margin:
        return finding
    return _noted(replace(finding, verdict=Verdict.ADVISORY), "trained on another kind of machine")


def _lost(key: CellKey, before: Cell, after: Cell) -> list[Finding]:
    """Return a finding for a failure that the baseline does not have, such as a batch size that no longer fits."""
    known = {(problem.status, problem.where) for problem in before.problems}
    new = [problem for problem in after.problems if (problem.status, problem.where) not in known]
    return [Finding(key, "cell", Verdict.FAILED, reason=after.why)] if new else []
