"""Stored throughput: what has fallen, what cannot be told, and what another machine says."""

import pytest

from bench.gate.comparison import compare
from bench.gate.verdicts import BROKEN, GOOD, REGRESSION, Verdict, exit_code
from tests.bench.gate_runs import damaged, sentences, write_side

TEST = sentences(20)
OUTPUTS = {"a": damaged(TEST, 0.1)}


def judge(tmp_path, before, after, **options):
    baseline = write_side(tmp_path / "baseline", OUTPUTS, TEST, rates={"a": before}, gate={"stored_slowdown": 10.0})
    candidate = write_side(tmp_path / "candidate", OUTPUTS, TEST, rates={"a": after}, **options)
    findings = compare(baseline, candidate)
    return {f.batch_size: f for f in findings if f.batch_size}, exit_code(findings)


@pytest.mark.parametrize(
    ("after", "verdict", "code"),
    [
        ((78, 80, 82), Verdict.REGRESSED, REGRESSION),
        ((98, 100, 102), Verdict.OK, GOOD),
        ((150, 160, 170), Verdict.OK, GOOD),
        ((85, 92, 99), Verdict.INCONCLUSIVE, GOOD),
    ],
)
def test_intervals_decide(tmp_path, after, verdict, code):
    findings, found = judge(tmp_path, {1: (99, 100, 101)}, {1: after})
    assert (findings[1].verdict, found) == (verdict, code)


def test_another_machine_is_advisory(tmp_path):
    findings, code = judge(tmp_path, {1: (99, 100, 101)}, {1: (49, 50, 51)}, fingerprint="other")
    assert findings[1].verdict is Verdict.ADVISORY
    assert "another machine" in findings[1].reason
    assert code == GOOD, "its outputs were compared all the same"


def test_a_batch_size_that_is_gone_fails(tmp_path):
    findings, code = judge(tmp_path, {1: (99, 100, 101), 8: (99, 100, 101)}, {1: (99, 100, 101)})
    assert (findings[8].verdict, code) == (Verdict.MISSING, BROKEN)
