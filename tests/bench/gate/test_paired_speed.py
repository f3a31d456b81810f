"""What the gate makes of the times of two checkouts; the processes that take them are made up."""

from pathlib import Path

import pytest

from bench.cell_steps import Conditions
from bench.errors import UserError
from bench.gate import paired_speed
from bench.gate.config import GateConfig
from bench.gate.paired_speed import compare_checkouts
from bench.gate.pairs import Pair, judge
from bench.gate.session import BASELINE, CANDIDATE, Timed, TimedPoint
from bench.gate.turns import Checkout, Died, Failure
from bench.gate.verdicts import Verdict, exit_code
from bench.graph import build_graph
from bench.store import Store
from bench.suite import load_suite

SUITE = """
name: small
tasks: [{task: random_text}]
backbone: {model_dim: 32, num_heads: 2, ffn_dim: 32}
train: {budget: {target_tokens: 0}}
systems:
  - {name: ar, family: transformer, settings: [{beam: 1}, {beam: 5, alpha: 0.5}]}
  - {name: nat, family: imputer, companions: {ctc: ctc}, config: {upsampling: 2}}
  - {name: ctc, family: ctc, config: {upsampling: 2}}
measure: {speed: {batch_sizes: [1, 8, 32], sentences: 16}}
"""
SIDES = [Checkout(Path("old"), Path("python")), Checkout(Path("new"), Path("python"))]
CONFIG = GateConfig()


@pytest.fixture
def graph(tmp_path):
    (tmp_path / "suite.yaml").write_text(SUITE)
    return build_graph(load_suite(tmp_path / "suite.yaml"), Conditions("cpu", "float32", 2, "machine"))


@pytest.fixture
def store(tmp_path, graph):
    made = Store(tmp_path / "store")
    for step in (*graph.prepares, *graph.work):
        made.build(*step.id, lambda folder: None)
    return made


class Scripted:
    """Stands in for `Session`: ratios by cell for each session in turn; 1 where nothing is said."""

    def __init__(self, *sessions, failures=({}, {}), foreign=3.0):
        self.sessions, self.failures, self.foreign = list(sessions), failures, foreign
        self.calls = []

    def __call__(self, config, rng):
        return self

    def run(self, checkouts, description, points, log, first):
        self.calls.append((description, points, first))
        ratios = self.sessions.pop(0) if self.sessions else {}
        if isinstance(ratios, Died):
            raise ratios
        lost = {cell for side in self.failures for cell, _ in side}
        judged = {}
        for point in points:
            if point.cell not in lost:
                pairs = [Pair(1.0, 1 / ratios.get(point.cell, 1.0), 4)] * 20
                judged[point] = (judge(pairs, CONFIG.slowdown), pairs)
        return Timed(judged, self.failures, self.foreign)


def compare(monkeypatch, graph, store, scripted, config=CONFIG):
    monkeypatch.setattr(paired_speed, "Session", scripted)
    return compare_checkouts(graph, store, *SIDES, config, lambda text: None)


def found(outcome):
    return {(f.key[1], f.key[3], f.batch_size): f for f in outcome.findings}


def test_each_cell_is_timed_at_the_smallest_and_the_largest_batch(monkeypatch, graph, store):
    scripted = Scripted()
    outcome = compare(monkeypatch, graph, store, scripted)
    [(description, points, first)] = scripted.calls
    assert first == BASELINE
    assert {point.batch_size for point in points} == {1, 32}
    assert description["sentences"] == 32, "enough for a whole batch"
    assert {finding.verdict for finding in outcome.findings} == {Verdict.OK}
    assert len(outcome.findings) == 2 * 4
    assert (exit_code(outcome.findings), outcome.foreign) == (0, 3.0)


def test_the_sizes_of_the_gate_win(monkeypatch, graph, store):
    scripted = Scripted()
    compare(monkeypatch, graph, store, scripted, GateConfig(batch_sizes=(4,)))
    assert {point.batch_size for point in scripted.calls[0][1]} == {4}


def test_options_are_sent_with_their_defaults(monkeypatch, graph, store):
    scripted = Scripted()
    compare(monkeypatch, graph, store, scripted)
    cells = {cell["id"]: cell for cell in scripted.calls[0][0]["cells"]}
    greedy, beam, nat, _ = cells.values()
    # What the suite says is sent though it be the default here: it may not be there.
    assert (greedy["settings"]["values"]["beam"], greedy["settings"]["defaults"]["beam"]) == (1, 1)
    assert (beam["settings"]["values"]["beam"], beam["settings"]["values"]["alpha"]) == (5, 0.5)
    assert greedy["config"]["values"]["model_dim"] == 32
    assert greedy["config"]["values"].keys() == greedy["config"]["defaults"].keys()
    assert nat["companions"] == {}, "decoding needs none"
    assert scripted.calls[0][0]["parents"]["model0"] == str(store.path(*graph.cells[0].model.id))


def test_a_regression_must_show_in_other_processes_too(monkeypatch, graph, store):
    slow = {cell.id: 0.7 for cell in graph.cells[:2]}
    confirmed, passing = graph.cells[0], graph.cells[1]
    scripted = Scripted(slow, {confirmed.id: 0.8})
    findings = found(compare(monkeypatch, graph, store, scripted))
    _, points, first = scripted.calls[1]
    assert points == [TimedPoint(cell.id, size) for cell in (confirmed, passing) for size in (1, 32)]
    assert first == CANDIDATE
    stands, stands_not = findings["ar", "beam=1", 1], findings["ar", "beam=5 alpha=0.5", 1]
    assert stands.verdict is Verdict.REGRESSED
    assert stands.ratio[0] == pytest.approx(0.8)
    assert stands.candidate == pytest.approx(0.8 * stands.baseline)
    assert stands_not.verdict is Verdict.INCONCLUSIVE
    assert "-30.0 % in the processes before" in stands_not.reason


def test_what_a_side_cannot_load_or_decode(monkeypatch, graph, store):
    ids = [cell.id for cell in graph.cells]
    failures = (
        {(ids[0], None): Failure("no family", unknown=True), (ids[1], None): Failure("weights do not fit"),
         (ids[3], 32): Failure("as ever"), (ids[3], 1): Failure("mended since")},
        {(ids[2], None): Failure("it died"), (ids[3], 32): Failure("as ever")},
    )  # fmt: skip
    outcome = compare(monkeypatch, graph, store, Scripted(failures=failures))
    verdicts = {(f.key[1], f.key[3], f.reason): f.verdict for f in outcome.findings if f.metric == "cell"}
    assert verdicts == {
        ("ar", "beam=1", "the baseline cannot: no family"): Verdict.NEW,
        ("ar", "beam=5 alpha=0.5", "the baseline cannot: weights do not fit"): Verdict.DISJOINT,
        ("ctc", "", "at batch 32: neither side can: as ever"): Verdict.ADVISORY,
        ("ctc", "", "at batch 1: the baseline cannot: mended since"): Verdict.NEW,
        ("nat", "", "it died"): Verdict.FAILED,
    }
    assert exit_code(outcome.findings) == 2


def test_tasks_with_the_same_data_keep_their_names(monkeypatch, tmp_path):
    twin = "tasks: [{task: random_text}, {task: random_text, name: twin}]"
    (tmp_path / "twins.yaml").write_text(SUITE.replace("tasks: [{task: random_text}]", twin))
    both = build_graph(load_suite(tmp_path / "twins.yaml"), Conditions("cpu", "float32", 2, "machine"))
    made = Store(tmp_path / "store")
    for step in (*both.prepares, *both.work):
        made.build(*step.id, lambda folder: None)
    outcome = compare(monkeypatch, both, made, Scripted())
    assert [sum(f.key[0] == name for f in outcome.findings) for name in ("random_text", "twin")] == [8, 8]


def test_a_regression_stands_if_it_cannot_be_timed_again(monkeypatch, graph, store):
    slow = {graph.cells[0].id: 0.7}
    findings = found(compare(monkeypatch, graph, store, Scripted(slow, Died("no memory"))))
    assert findings["ar", "beam=1", 1].verdict is Verdict.REGRESSED


def test_what_the_suite_could_not_do_has_failed(monkeypatch, graph, tmp_path):
    store = Store(tmp_path / "other")
    with pytest.raises(UserError, match="run it first"):
        compare(monkeypatch, graph, store, Scripted())
    for step in (*graph.prepares, *graph.work):
        if "nat" not in step.label:
            store.build(*step.id, lambda folder: None)
    findings = found(compare(monkeypatch, graph, store, Scripted()))
    assert findings["nat", "", None].verdict is Verdict.FAILED
    assert findings["nat", "", None].reason == "not done: train nat (raw, seed 1) on random_text"
    assert ("nat", "", 1) not in findings


def test_a_side_that_does_not_start_is_named(monkeypatch, graph, store):
    death = Died("ended with code 1: no module")
    death.side = BASELINE
    with pytest.raises(UserError, match=r"baseline: ended with code 1: no module \(log: "):
        compare(monkeypatch, graph, store, Scripted(death))


def test_a_suite_that_times_nothing_is_refused(monkeypatch, store, tmp_path):
    path = tmp_path / "untimed.yaml"
    path.write_text(
        SUITE.replace("measure: {speed: {batch_sizes: [1, 8, 32], sentences: 16}}", "measure: {speed: null}")
    )
    untimed = build_graph(load_suite(path), Conditions("cpu", "float32", 2, "machine"))
    with pytest.raises(UserError, match="times nothing"):
        compare(monkeypatch, untimed, store, Scripted())
