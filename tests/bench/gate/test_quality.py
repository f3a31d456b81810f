"""Planted faults are found in outputs, chance is not taken for a fault, and nothing passes uncompared."""

import pytest

from bench.errors import UserError
from bench.gate.comparison import compare
from bench.gate.verdicts import BROKEN, GOOD, INCOMPARABLE, REGRESSION, Verdict, exit_code
from bench.metrics import MEASURES
from bench.stats import paired_randomisation
from tests.bench.gate_runs import damaged, sentences, write_side

TEST = sentences()
GOOD_OUTPUTS = damaged(TEST, 0.1)


@pytest.fixture
def judged(tmp_path):
    """Compare a baseline with a candidate of other outputs; return the findings by system, and the exit code."""

    def judge(before, after, **options):
        shared = {key: options.pop(key) for key in ("metrics", "gate") if key in options}
        test = options.pop("candidate_test", TEST)
        here, there = options.pop("arithmetic", (None, None))
        identical = options.pop("identical", False)
        baseline = write_side(tmp_path / "baseline", before, TEST, **shared, arithmetic=here)
        candidate = write_side(tmp_path / "candidate", after, test, **shared, **options, arithmetic=there)
        findings = compare(baseline, candidate, identical=identical)
        return {(f.key[1], f.metric): f for f in findings}, exit_code(findings)

    return judge


def test_equal_outputs_never_alarm(judged):
    findings, code = judged({"a": GOOD_OUTPUTS}, {"a": GOOD_OUTPUTS})
    finding = findings["a", "bleu"]
    assert (finding.verdict, finding.p_value, finding.reason, code) == (Verdict.OK, None, "the same outputs", GOOD)
    assert finding.baseline == finding.candidate


def test_a_dropped_last_word_is_a_regression_of_that_cell_alone(judged):
    cut = [" ".join(output.split()[:-1]) for output in GOOD_OUTPUTS]
    findings, code = judged({"a": GOOD_OUTPUTS, "b": GOOD_OUTPUTS}, {"a": cut, "b": GOOD_OUTPUTS})
    assert code == REGRESSION
    assert findings["a", "bleu"].verdict is Verdict.REGRESSED
    assert findings["a", "bleu"].p_value < 0.01
    assert findings["a", "bleu"].change < -5
    assert findings["b", "bleu"].verdict is Verdict.OK


@pytest.mark.parametrize("better", [False, True])
@pytest.mark.parametrize(
    ("options", "verdict", "expected"),
    [
        ({}, Verdict.OK, GOOD),
        ({"identical": True}, Verdict.REGRESSED, REGRESSION),
        ({"identical": True, "arithmetic": ("avx2", "avx2")}, Verdict.REGRESSED, REGRESSION),
    ],
    ids=str,
)
def test_where_nothing_was_to_change_one_other_output_is_a_regression(judged, better, options, verdict, expected):
    """Too little to fall beyond the margin, and not even a fall."""
    place = next(i for i, sentence in enumerate(TEST) if sentence.references[0] != GOOD_OUTPUTS[i])
    after = [*GOOD_OUTPUTS]
    after[place] = TEST[place].references[0] if better else f"{after[place]} more"
    findings, code = judged({"a": GOOD_OUTPUTS, "b": GOOD_OUTPUTS}, {"a": after, "b": GOOD_OUTPUTS}, **options)
    assert findings["a", "bleu"].reason.startswith("1 of 200 outputs differ")
    assert (findings["a", "bleu"].verdict, findings["b", "bleu"].verdict, code) == (verdict, Verdict.OK, expected)


def test_outputs_that_cannot_be_identical_are_refused(judged):
    with pytest.raises(UserError, match=r"avx2.*avx512.*their outputs differ in any case"):
        judged({"a": GOOD_OUTPUTS}, {"a": GOOD_OUTPUTS}, identical=True, arithmetic=("avx2", "avx512"))


def test_better_is_no_alarm(judged):
    findings, code = judged({"a": damaged(TEST, 0.3)}, {"a": GOOD_OUTPUTS})
    assert (findings["a", "bleu"].verdict, code) == (Verdict.IMPROVED, GOOD)


@pytest.mark.parametrize(
    ("arithmetic", "share", "verdict", "expected"),
    [
        (("avx2", "avx2"), 0.1, Verdict.REGRESSED, REGRESSION),
        (("avx2", "avx512"), 0.1, Verdict.ADVISORY, GOOD),
        (("avx2", "avx512"), 0.9, Verdict.REGRESSED, REGRESSION),  # more than other rounding does
        ((None, "avx512"), 0.1, Verdict.REGRESSED, REGRESSION),  # nobody said that it differs
    ],
)
def test_models_from_another_kind_of_machine_may_differ_by_more(judged, arithmetic, share, verdict, expected):
    before = {"a": damaged(TEST, 0.01), "same": GOOD_OUTPUTS}
    findings, code = judged(before, {"a": damaged(TEST, share), "same": GOOD_OUTPUTS}, arithmetic=arithmetic)
    assert (findings["a", "bleu"].verdict, code) == (verdict, expected)
    assert ("another kind of machine" in findings["a", "bleu"].reason) == (verdict is Verdict.ADVISORY)
    assert findings["same", "bleu"].verdict is Verdict.OK


def test_a_rate_of_errors_gets_worse_upwards(judged):
    findings, code = judged({"a": GOOD_OUTPUTS}, {"a": damaged(TEST, 0.2)}, metrics=("wer",))
    assert findings["a", "wer"].change > 5
    assert (findings["a", "wer"].verdict, code) == (Verdict.REGRESSED, REGRESSION)


def test_what_chance_explains_is_no_regression(judged):
    # As many errors, elsewhere: the metric moves, and a test over sentences does not mind.
    findings, code = judged({"a": damaged(TEST, 0.1)}, {"a": damaged(TEST, 0.1, seed=9)}, gate={"margin": 0.0})
    finding = findings["a", "bleu"]
    assert finding.change
    assert (finding.verdict, code) == (Verdict.OK, GOOD)
    assert finding.p_value > 0.01


def test_within_the_margin_nothing_is_a_regression(judged):
    worse = [*damaged(TEST[:20], 0.3), *GOOD_OUTPUTS[20:]]
    before, after = {"a": GOOD_OUTPUTS}, {"a": worse}
    findings, code = judged(before, after, gate={"margins": {"bleu": 50.0}})
    assert findings["a", "bleu"].change < 0
    assert (findings["a", "bleu"].verdict, findings["a", "bleu"].p_value, code) == (Verdict.OK, None, GOOD)


def test_many_tests_are_paid_for(judged):
    """Three cells that fell alike: each p is three times what it is alone, and then no longer below the level."""
    fallen = [*damaged(TEST[:12], 0.5), *GOOD_OUTPUTS[12:]]
    old, new = (MEASURES["bleu"](outputs, TEST) for outputs in (GOOD_OUTPUTS, fallen))
    alone = paired_randomisation(old.rows, new.rows, old.statistic)
    assert alone < 0.3
    gate = {"margin": 0.0, "alpha": 2 * alone}
    findings, code = judged(dict.fromkeys("abc", GOOD_OUTPUTS), dict.fromkeys("abc", fallen), gate=gate)
    assert [findings[system, "bleu"].p_value for system in "abc"] == pytest.approx([3 * alone] * 3)
    assert code == GOOD
    assert "perhaps by chance" in findings["a", "bleu"].reason


@pytest.mark.parametrize(
    ("identical", "verdict", "expected"), [(False, Verdict.OK, GOOD), (True, Verdict.DISJOINT, BROKEN)]
)
def test_only_shared_sentences_are_compared(judged, identical, verdict, expected):
    # The second half has other references: it says nothing of the outputs for the first.
    half = [*TEST[:100], *sentences(seed=5)[100:]]
    before, after = {"a": GOOD_OUTPUTS}, {"a": [*GOOD_OUTPUTS[:100], *["wrong"] * 100]}
    findings, code = judged(before, after, candidate_test=half, identical=identical)
    assert (findings["a", "bleu"].verdict, code) == (verdict, expected)
    assert findings["a", "bleu"].reason == "the same outputs; over 100 of 200 sentences"


def test_no_shared_sentence_fails(judged):
    findings, code = judged({"a": GOOD_OUTPUTS}, {"a": GOOD_OUTPUTS}, candidate_test=sentences(seed=5))
    assert (findings["a", "bleu"].verdict, code) == (Verdict.DISJOINT, BROKEN)
    assert "no sentence is in both" in findings["a", "bleu"].reason


def test_a_vanished_cell_fails_and_a_new_one_is_listed(judged):
    findings, code = judged({"a": GOOD_OUTPUTS, "gone": GOOD_OUTPUTS}, {"a": GOOD_OUTPUTS, "new": GOOD_OUTPUTS})
    assert code == BROKEN
    assert findings["gone", "bleu"].verdict is Verdict.MISSING
    assert findings["new", ""].verdict is Verdict.NEW


def test_a_failed_cell_fails(judged):
    findings, code = judged(
        {"a": GOOD_OUTPUTS, "b": GOOD_OUTPUTS}, {"a": GOOD_OUTPUTS}, failures={"b": ("failed", "loss is NaN")}
    )
    assert (findings["b", "bleu"].verdict, code) == (Verdict.FAILED, BROKEN)
    assert "loss is NaN" in findings["b", "bleu"].reason


def test_a_failure_that_is_new_fails_beside_good_outputs(judged):
    findings, code = judged({"a": GOOD_OUTPUTS}, {"a": GOOD_OUTPUTS}, failures={"a": ("oom", "no room at batch 32")})
    assert findings["a", "bleu"].verdict is Verdict.OK
    assert (findings["a", "cell"].verdict, code) == (Verdict.FAILED, BROKEN)


def test_a_regression_counts_more_than_a_lost_cell(judged):
    cut = [" ".join(output.split()[:-1]) for output in GOOD_OUTPUTS]
    _, code = judged({"a": GOOD_OUTPUTS, "b": GOOD_OUTPUTS}, {"a": cut})
    assert code == REGRESSION


def test_a_baseline_without_outputs_compares_nothing(tmp_path):
    baseline = write_side(tmp_path / "baseline", {"a": GOOD_OUTPUTS}, TEST)
    candidate = write_side(tmp_path / "candidate", {"a": GOOD_OUTPUTS}, TEST)
    for file in (baseline / "hypotheses" / "toy").iterdir():
        file.unlink()
    findings = compare(baseline, candidate)
    assert exit_code(findings) == BROKEN
    assert [f.verdict for f in findings] == [Verdict.DISJOINT]
    assert exit_code([]) == INCOMPARABLE


def test_damaged_folders_are_refused(tmp_path):
    good = write_side(tmp_path / "good", {"a": GOOD_OUTPUTS}, TEST)
    with pytest.raises(UserError, match=r"no records\.csv here"):
        compare(good, tmp_path / "nothing")
    half = write_side(tmp_path / "half", {"a": GOOD_OUTPUTS}, TEST)
    text = (half / "records.csv").read_text()
    (half / "records.csv").write_text(text[: len(text) - 20])
    with pytest.raises(UserError, match=r"half/records\.csv:\d+: .*the middle of a row"):
        compare(good, half)
    short = write_side(tmp_path / "short", {"a": GOOD_OUTPUTS}, TEST)
    file = next((short / "hypotheses" / "toy").glob("*.txt"))
    file.write_text("".join(f"{line}\n" for line in file.read_text().splitlines()[:-1]))
    with pytest.raises(UserError, match="199 whole lines for 200 sentences"):
        compare(good, short)
    other = write_side(tmp_path / "other", {"a": GOOD_OUTPUTS}, TEST, suite="large")
    with pytest.raises(UserError, match=r"results of suite small, and .* of large"):
        compare(good, other)
    odd = write_side(tmp_path / "odd", {"a": GOOD_OUTPUTS}, TEST, gate={"margin": -1})
    with pytest.raises(UserError, match=r"suite\.gate: .*margin"):
        compare(odd, good)
