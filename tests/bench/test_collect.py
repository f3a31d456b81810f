"""From artifacts to the results folder, with artifacts made up by hand."""

import csv
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bench import collect as collect_module
from bench import step_keys
from bench.cell_steps import Conditions
from bench.collect import Collector, git_state, write_results
from bench.execution import Result
from bench.graph import build_graph
from bench.jobs import Outcome
from bench.names import escape, unescape
from bench.records import read_records
from bench.steps import write_json
from bench.store import Store
from bench.suite import load_suite

SUITE = """
name: small
tasks: [dates]
train: {budget: {target_tokens: 1000}}
systems:
  - {name: base, family: transformer, settings: [{beam: 1}, {beam: 5}]}
  - {name: nat, family: ctc, teacher: base, settings: [{beam: 1}]}
"""
CONDITIONS = Conditions("cpu", "float32", 2, "this machine")
COMMAND = ["python", "-m", "bench", "run", "small.yaml"]


class Results:
    """A suite whose steps are all done."""

    subsets = ()
    """The subsets that scores are over, beside all."""

    def __init__(self, folder, suite_path):
        self.store = Store(folder / "store")
        self.folder = folder / "results"
        self.graph = build_graph(load_suite(suite_path), CONDITIONS)
        self.outcomes = {step.id: Outcome("ok") for step in (*self.graph.prepares, *self.graph.work)}
        for step in self.graph.prepares:
            train = {"read": 9, "dropped": {"too_long": 2}, "dropped_utterances": [{"id": "a"}, {"id": "b"}]}
            self.put(step, "data.json", {"vocabulary_size": 40, "splits": {"train": train}})
            rows = [{"id": i, "source": f"{i}?", "references": [f"{i}!"], "target": ""} for i in ("1", "0", "2")]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (self.store.path(*step.id) / "test.jsonl").write_text(text)
        for cell in self.graph.cells:
            if not self.store.has(*cell.model.id):
                point = {"step": 7, "tokens": 900, "seconds": 30.0, "loss": 1.5, "score": -20.0}
                report = {
                    "records": [row("parameters", 1000), row("train_minutes", 0.5)],
                    "curve": [point],
                    "selection": {"metric": "exact_match"},
                }
                self.put(cell.model, "training.json", report)
            bleu = row("bleu", 50.0, ci_low=49.0, ci_high=51.0, n=2, signature="v1")
            scores = [bleu, row("perplexity", None)] + [{**bleu, "subset": name} for name in self.subsets]
            self.put(cell.evaluation, "scores.json", scores)
            lines = [{"id": "0", "hypothesis": cell.id}, {"id": "1", "hypothesis": "a\\ b\nc"}]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (self.store.path(*cell.evaluation.id) / "hypotheses.jsonl").write_text(text)
        self.measure()

    def put(self, step, name, value):
        self.store.path(*step.id).mkdir(parents=True, exist_ok=True)
        write_json(self.store.path(*step.id) / name, value)

    def measure(self):
        """Make up the measurement of the cells that are done."""
        self.measures = self.graph.measures(lambda step: self.outcomes[step.id].status == "ok")
        for step in self.measures.values():
            self.outcomes[step.id] = Outcome("ok")
            ids = [cell["id"] for cell in step.spec["cells"]]
            rows = [{"cell": i, **row("tokens_per_second", 9.0, batch_size=8, part="decode")} for i in ids]
            self.put(step, "measurements.json", {"measurements": rows, "environment": {"bandwidth": 7}})
            lines = ["cell,sentence,round,milliseconds,tokens", *(f"{i},4,0,1.5,11" for i in ids)]
            (self.store.path(*step.id) / "latencies.csv").write_text("\n".join(lines) + "\n")

    def fail(self, step, status, reason):
        """Let a step fail, skip what depends on it and measure the rest."""
        self.outcomes[step.id] = Outcome(status, reason)
        for later in self.graph.work:
            if any(self.outcomes[parent].status != "ok" for parent in later.parents.values()):
                self.outcomes[later.id] = Outcome("skipped", f"{step.kind} {status}: {reason}")
        for measure in self.measures.values():
            del self.outcomes[measure.id]
        self.measure()

    def write(self):
        collector = Collector(self.graph, self.outcomes, self.measures, self.store)
        return write_results(collector, self.folder, COMMAND)


def row(metric, value, unit="", **more):
    return {"metric": metric, "value": value, "unit": unit, **more}


@pytest.fixture
def presented(monkeypatch):
    """Stand in for tables, figures and report; the list of what was asked of them, and of the files they found."""
    calls = []

    def found(name):
        return lambda folder: calls.append((name, (folder / "records.csv").exists()))

    monkeypatch.setitem(sys.modules, "bench.tables", SimpleNamespace(write_tables=found("tables")))
    monkeypatch.setitem(sys.modules, "bench.figures", SimpleNamespace(write_figures=found("figures")))
    # The figures have just been drawn.
    report = SimpleNamespace(write_report=lambda folder, redraw: found("report")(folder) if not redraw else None)
    monkeypatch.setitem(sys.modules, "bench.report", report)
    return calls


@pytest.fixture
def results(tmp_path, monkeypatch, presented):
    monkeypatch.setattr(step_keys, "code_fingerprint", lambda modules: "")
    (tmp_path / "small.yaml").write_text(SUITE)
    return Results(tmp_path, tmp_path / "small.yaml")


def test_the_records_of_all_artifacts_are_written(results, presented):
    records = results.write()
    assert read_records(results.folder / "records.csv") == records
    # 2 models x 2 values, 3 cells x (2 scores + 1 time)
    assert len(records) == 2 * 2 + 3 * 3
    assert [(r.settings, r.metric) for r in records[:8]] == [
        ("", "parameters"),
        ("", "train_minutes"),
        ("beam=1", "bleu"),
        ("beam=1", "perplexity"),
        ("beam=1", "tokens_per_second"),
        ("beam=5", "bleu"),
        ("beam=5", "perplexity"),
        ("beam=5", "tokens_per_second"),
    ]
    bleu = records[2]
    assert (bleu.value, bleu.ci_low, bleu.ci_high, bleu.n, bleu.signature) == (50.0, 49.0, 51.0, 2, "v1")
    assert (bleu.suite, bleu.task, bleu.split, bleu.system, bleu.family) == (
        "small", "dates", "test", "base", "transformer",
    )  # fmt: skip
    assert (bleu.data, bleu.seed, bleu.dtype, bleu.threads, bleu.status) == ("raw", 1, "float32", 1, "ok")
    assert bleu.device.startswith("cpu: ")
    speed = records[4]
    assert (speed.batch_size, speed.part, speed.threads) == (8, "decode", 2)
    assert {r.data for r in records if r.system == "nat"} == {"distilled"}
    assert len({r.run for r in records}) == 1
    assert presented == [("tables", True), ("figures", True), ("report", True)]
    assert Result(records, []).good


def test_scores_of_subsets_are_records_of_subsets(tmp_path, monkeypatch, presented):
    monkeypatch.setattr(step_keys, "code_fingerprint", lambda modules: "")
    monkeypatch.setattr(Results, "subsets", ("snr_db=-5..0", "snr_db=0..5"))
    (tmp_path / "small.yaml").write_text(SUITE)
    results = Results(tmp_path, tmp_path / "small.yaml")
    records = results.write()
    assert read_records(results.folder / "records.csv") == records
    found = [(r.system, r.settings, r.subset, r.ci_low) for r in records if r.metric == "bleu"]
    assert found == [
        (system, beam, subset, 49.0)
        for system, beam in (("base", "beam=1"), ("base", "beam=5"), ("nat", "beam=1"))
        for subset in ("", "snr_db=-5..0", "snr_db=0..5")
    ]
    assert {r.subset for r in records if r.metric != "bleu"} == {""}


def test_hypotheses_are_one_line_a_sentence(results):
    results.write()
    files = sorted(path.relative_to(results.folder).as_posix() for path in results.folder.rglob("*.txt"))
    assert files == [
        "hypotheses/dates/base-raw-s1-beam=1.txt",
        "hypotheses/dates/base-raw-s1-beam=5.txt",
        "hypotheses/dates/nat-distilled-s1-beam=1.txt",
    ]
    text = (results.folder / files[0]).read_text()
    assert text == "base-raw-s1-beam=1\na\\\\ b\\nc\n"
    assert escape("a\r\n") == "a\\r\\n"
    assert unescape(escape("a\\n\r\n\\")) == "a\\n\r\n\\"


def test_the_sentences_stand_beside_the_outputs_line_by_line(results):
    results.write()
    lines = (results.folder / "hypotheses" / "dates" / "sentences.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": i, "source": f"{i}?", "references": [f"{i}!"]} for i in ("0", "1")
    ]


def test_hypotheses_of_a_former_run_go_away(results):
    results.write()
    texts = results.folder / "hypotheses" / "dates"
    (texts / "notes.txt").write_text("not ours")
    results.fail(results.graph.cells[2].evaluation, "failed", "x")
    results.write()
    assert sorted(path.name for path in texts.iterdir()) == [
        "base-raw-s1-beam=1.txt", "base-raw-s1-beam=5.txt", "notes.txt", "sentences.jsonl",
    ]  # fmt: skip


def test_a_folder_of_hypotheses_that_is_empty_goes_away(results):
    results.write()
    for cell in results.graph.cells:
        results.fail(cell.evaluation, "failed", "x")
    results.write()
    assert not (results.folder / "hypotheses" / "dates").exists()


def test_without_former_records_no_file_is_taken_for_ours(results):
    own = results.folder / "hypotheses" / "dates" / "ctc-raw-s1.txt"
    own.parent.mkdir(parents=True)
    own.write_text("not ours")
    for content in (None, "damaged"):
        if content is not None:
            (results.folder / "records.csv").write_text(content)
        results.write()
        assert own.read_text() == "not ours"


def test_latencies_say_which_cell_they_belong_to(results):
    results.write()
    with (results.folder / "latencies.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert rows[2] == {
        "task": "dates", "system": "nat", "data": "distilled", "settings": "beam=1", "seed": "1",
        "sentence": "4", "round": "0", "milliseconds": "1.5", "tokens": "11",
    }  # fmt: skip


def test_learning_curves_have_a_row_for_each_evaluation_of_a_model(results):
    results.write()
    with (results.folder / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["system"], row["data"]) for row in rows] == [("base", "raw"), ("nat", "distilled")]
    assert rows[1] == {
        "task": "dates", "system": "nat", "data": "distilled", "seed": "1", "metric": "exact_match",
        "step": "7", "tokens": "900", "seconds": "30.0", "loss": "1.5", "score": "-20.0",
    }  # fmt: skip


def test_the_environment_says_how_the_results_came_about(results):
    results.write()
    environment = json.loads((results.folder / "environment.json").read_text())
    assert environment["command"] == COMMAND
    assert environment["suite"]["train"]["budget"] == {"target_tokens": 1000, "minutes": None}
    assert environment["suite"]["systems"][1]["name"] == "nat"
    assert environment["machine"]["threads"] == 2
    assert {"cpu", "cores", "python", "platform", "torch", "matrix_products"} <= environment["machine"].keys()
    assert environment["metric_libraries"]["sacrebleu"]
    described = {"vocabulary_size": 40, "splits": {"train": {"read": 9, "dropped": {"too_long": 2}}}}
    assert environment["data"] == {"dates": described}, "counts, but no lists of single examples"
    assert environment["measurements"] == {"dates": {"bandwidth": 7}}
    assert len(environment["artifacts"]) == len(results.outcomes)


def test_a_failed_training_is_one_record_per_cell_with_status_and_reason(results):
    model = next(c.model for c in results.graph.cells if c.cell.model.system == "nat")
    results.fail(model, "failed", "loss is nan at step 3")
    records = results.write()
    (bad,) = [r for r in records if r.system == "nat"]
    assert (bad.metric, bad.value, bad.settings, bad.status) == ("cell", None, "beam=1", "failed")
    assert bad.reason == "train: loss is nan at step 3"
    assert sum(r.metric == "tokens_per_second" for r in records) == 2
    assert not (results.folder / "hypotheses" / "dates" / "nat-distilled-s1-beam=1.txt").exists()
    assert not Result(records, []).good


def test_a_failed_teacher_takes_its_students_along(results):
    results.fail(results.graph.cells[0].model, "oom", "killed")
    cells = [(r.system, r.settings, r.status, r.reason) for r in results.write()]
    assert cells == [
        ("base", "beam=1", "oom", "train: killed"),
        ("base", "beam=5", "oom", "train: killed"),
        ("nat", "beam=1", "skipped", "train oom: killed"),
    ]
    assert not (results.folder / "latencies.csv").exists()


def test_a_failed_measurement_keeps_the_quality(results):
    (measure,) = results.measures.values()
    results.outcomes[measure.id] = Outcome("timeout", "not done within 5 s")
    records = results.write()
    assert sum(r.metric == "bleu" for r in records) == 3
    bad = [r for r in records if r.metric == "cell"]
    assert [(r.status, r.reason) for r in bad] == [("timeout", "measure: not done within 5 s")] * 3
    assert not Result(records, []).good


def test_a_batch_that_does_not_fit_is_a_result_and_a_crash_is_not(results):
    (measure,) = results.measures.values()
    path = results.store.path(*measure.id) / "measurements.json"
    content = json.loads(path.read_text())
    for status, good in (("oom", True), ("failed", False)):
        content["measurements"][0] |= {"value": None, "status": status, "reason": "why"}
        write_json(path, content)
        records = results.write()
        assert [r.reason for r in records if r.status == status] == ["why"]
        assert Result(records, []).good == good


def test_the_run_is_named_after_its_artifacts(results):
    before = results.write()[0].run
    assert results.write()[0].run == before
    results.fail(results.graph.cells[1].evaluation, "failed", "x")
    assert results.write()[0].run != before


def test_an_interrupted_write_leaves_the_old_records(results, monkeypatch):
    results.write()
    old = (results.folder / "records.csv").read_text()
    results.fail(results.graph.cells[1].evaluation, "failed", "x")
    monkeypatch.setattr(collect_module, "write_records", lambda *_: pytest.fail("stopped here"))
    with pytest.raises(pytest.fail.Exception):
        results.write()
    assert (results.folder / "records.csv").read_text() == old


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_state_of_the_checkout_is_told(tmp_path):
    assert git_state(tmp_path) is None

    def git(*arguments):
        options = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *options, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("1")
    assert git_state(tmp_path) is None  # somebody else's checkout
    git("add", "file")
    git("commit", "-m", "one", "--no-verify")
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40
    assert not state["dirty"]
    (tmp_path / "file").write_text("2")
    assert git_state(tmp_path) == {"commit": state["commit"], "dirty": True}
    git("checkout", "file")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "new").write_text("")
    assert not git_state(tmp_path)["dirty"], "results of a run are no change of the code"


def test_odd_line_breaks_in_texts_and_a_page_that_fails_do_not_lose_a_run(results, monkeypatch, capsys):
    for cell in results.graph.cells:
        path = results.store.path(*cell.evaluation.id) / "hypotheses.jsonl"
        odd = [{"id": "0", "hypothesis": "a\u2028b"}, {"id": "1", "hypothesis": "c\x85d"}]
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in odd), encoding="utf-8")
    report = SimpleNamespace(write_report=lambda folder, redraw: 1 / 0)
    monkeypatch.setitem(sys.modules, "bench.report", report)
    results.write()
    assert "ZeroDivisionError" in capsys.readouterr().err
    [first, *_] = (results.folder / "hypotheses").rglob("*beam=1.txt")
    assert first.read_text(encoding="utf-8").split("\n") == ["a\u2028b", "c\x85d", ""]
