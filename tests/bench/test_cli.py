"""The verbs as a user calls them: output, exit codes, interruption. The work itself is made up."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from bench import plan as plan_module
from bench.cli import main
from bench.graph import build_graph
from bench.plan import count_parameters, make_plan
from bench.records import read_records, write_records
from bench.steps import MODULES
from bench.store import Store
from bench.suite import load_suite
from models.interface import DataSpec

SUITE = """
name: small
tasks:
  - {{task: parallel_text, name: text, vocab_size: 400, {files}}}
train: {{budget: {{target_tokens: 1000}}}}
systems:
  - {{name: base, family: transformer, config: {{model_dim: 64}}, settings: [{{beam: 1}}, {{beam: 5}}]}}
  - {{name: nat, family: ctc, config: {{model_dim: 64}}, teacher: base}}
"""

WORK = '''
"""Made-up work for all kinds of steps."""
import json, os, time
from pathlib import Path
from bench.errors import DataError
from bench.steps import StepFailure, write_json

def row(metric, value):
    return {"metric": metric, "value": value, "unit": ""}

def run(spec, folder, parents, progress):
    behaviour = os.environ.get("BEHAVIOUR", "")
    if "fingerprint" in spec and behaviour == "bad data":
        raise DataError("train.source:3: not UTF-8")
    if "fingerprint" in spec:
        (folder / "test.jsonl").write_text(json.dumps({"id": "0", "source": "b", "references": ["a"]}) + "\\n")
    if "train" in spec:
        if behaviour == "diverge" and spec["family"] == "ctc":
            raise StepFailure("loss is nan at step 3")
        if behaviour == "sleep" and spec["family"] == "ctc":
            (folder / "checkpoint").touch()
            time.sleep(60)
        report = {"records": [row("parameters", 1000)], "curve": [], "selection": {"metric": "bleu"}}
        write_json(folder / "training.json", report)
    elif "quality" in spec:
        write_json(folder / "scores.json", [row("bleu", 50.0)])
        (folder / "hypotheses.jsonl").write_text(json.dumps({"id": "0", "hypothesis": "a"}) + "\\n")
    elif "speed" in spec:
        rows = [{"cell": c["id"], **row("tokens_per_second", 9.0), "batch_size": 8} for c in spec["cells"]]
        write_json(folder / "measurements.json", {"measurements": rows, "environment": {}})
        (folder / "latencies.csv").write_text("cell,sentence,round,milliseconds,tokens\\n")
'''
DRIVER = """
import sys
from types import SimpleNamespace
from bench.steps import MODULES
MODULES.update(dict.fromkeys(MODULES, "made_up_work"))
shown = lambda records, console: console.print(f"a table of {len(records)} records")
sys.modules["bench.tables"] = SimpleNamespace(write_tables=lambda folder: None, print_table=shown)
sys.modules["bench.figures"] = SimpleNamespace(write_figures=lambda folder: None)
sys.modules["bench.report"] = SimpleNamespace(write_report=lambda folder, redraw: None)
from bench.cli import main
sys.exit(main())
"""


@pytest.fixture(autouse=True)
def _own_path(monkeypatch):
    """Forget the folders that the verbs put on the path."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def suite(tmp_path, monkeypatch):
    files = []
    for split in ("train", "dev", "test"):
        for side in ("source", "target"):
            (tmp_path / f"{split}.{side}").write_text("a b\nb c\n")
            files.append(f"{split}_{side}: {tmp_path / split}.{side}")
    path = tmp_path / "small.yaml"
    path.write_text(SUITE.format(files=", ".join(files)))
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "made_up_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("NATBENCH_STORE", str(tmp_path / "store"))
    return path


@pytest.fixture
def made_up(suite, monkeypatch):
    """Let the verbs do made-up work in this process."""
    for kind in MODULES:
        monkeypatch.setitem(MODULES, kind, "made_up_work")
    tables = SimpleNamespace(
        write_tables=lambda folder: (folder / "table.md").write_text("table"),
        print_table=lambda records, console: console.print(f"a table of {len(records)} records"),
    )
    monkeypatch.setitem(sys.modules, "bench.tables", tables)
    figures = SimpleNamespace(write_figures=lambda folder: (folder / "figure.svg").write_text("figure"))
    monkeypatch.setitem(sys.modules, "bench.figures", figures)
    report = SimpleNamespace(write_report=lambda folder, redraw: (folder / "report.html").write_text("report"))
    monkeypatch.setitem(sys.modules, "bench.report", report)
    return suite


def run(suite, *options):
    return main(["run", str(suite), "--out", str(suite.parent / "out"), "--device", "cpu", *options])


def test_a_run_writes_results_and_does_nothing_twice(made_up, capsys):
    assert run(made_up) == 0
    first = capsys.readouterr()
    out = made_up.parent / "out"
    records = read_records(out / "records.csv")
    assert {r.metric for r in records} == {"parameters", "bleu", "tokens_per_second"}
    assert f"a table of {len(records)} records" in first.out
    assert "train base (raw, seed 1) on text: done" in first.err
    assert {"environment.json", "hypotheses", "table.md", "figure.svg", "report.html"} <= {
        p.name for p in out.iterdir()
    }
    assert run(made_up) == 0
    assert "started" not in capsys.readouterr().err
    assert read_records(out / "records.csv") == records


def test_a_failed_cell_gives_exit_2_and_the_others_are_there(made_up, monkeypatch, capsys):
    monkeypatch.setenv("BEHAVIOUR", "diverge")
    assert run(made_up) == 2
    printed = capsys.readouterr()
    assert "train nat (distilled, seed 1) on text: failed: loss is nan at step 3 (log: " in printed.err
    records = read_records(made_up.parent / "out" / "records.csv")
    assert [(r.metric, r.status) for r in records if r.system == "nat"] == [("cell", "failed")]
    assert sum(r.metric == "bleu" for r in records) == 2
    monkeypatch.delenv("BEHAVIOUR")
    assert run(made_up) == 0  # failures are tried again


def test_unusable_data_gives_exit_3_and_nothing_is_trained(made_up, monkeypatch, capsys):
    monkeypatch.setenv("BEHAVIOUR", "bad data")
    assert run(made_up) == 3
    printed = capsys.readouterr().err
    assert printed.splitlines()[-1] == "train.source:3: not UTF-8"
    assert "train base" not in printed
    assert not (made_up.parent / "out").exists()


def test_missing_data_gives_exit_3_before_anything_runs(made_up, capsys):
    (made_up.parent / "dev.source").unlink()
    assert run(made_up) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "dev.source" in line


def test_only_some_systems(made_up, capsys):
    assert run(made_up, "--only", "nat") == 0
    assert {r.system for r in read_records(made_up.parent / "out" / "records.csv")} == {"nat"}
    assert "distill base" in capsys.readouterr().err
    assert run(made_up, "--only", "nat", "--only", "base") == 0
    assert {r.system for r in read_records(made_up.parent / "out" / "records.csv")} == {"nat", "base"}
    assert run(made_up, "--only", "nta") == 3
    assert "did you mean 'nat'" in capsys.readouterr().err


def test_overrides_reach_the_suite(made_up, capsys):
    assert run(made_up, "--set", "measure.speed=null", "--set", "systems.base.settings=[{beam: 2}]") == 0
    records = read_records(made_up.parent / "out" / "records.csv")
    assert {r.settings for r in records if r.system == "base"} == {"", "beam=2"}
    assert not any(r.metric == "tokens_per_second" for r in records)
    assert run(made_up, "--set", "measure.sped=null") == 3


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(suite, tmp_path):
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [sys.executable, str(tmp_path / "driver.py"), "run", str(suite), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "BEHAVIOUR": "sleep", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not list((tmp_path / "store").glob("partial/*/checkpoint")):
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    # prepare, train base, distill, train nat, 3 evaluations, measure; how many are done when the signal comes differs
    assert "of 8 steps are done and kept" in errors
    assert errors.splitlines()[-1].startswith("Go on with the same command: python -m bench run")
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "store").glob("partial/*/checkpoint"))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["run"],
        ["run", "no such.yaml"],
        ["run", "SUITE", "--jobs", "0"],
        ["run", "SUITE", "--device", "tpu"],
        ["run", "SUITE", "--dtype", "float16"],
        ["run", "SUITE", "--only", ""],
        ["run", "SUITE", "--only", " , "],
        ["plan", "SUITE", "--only", ""],
        ["run", "SUITE", "--no-such-option"],
        ["plan", "no such.yaml"],
        ["list", "no such family"],
        ["table", "no such folder"],
        ["plot", "no such folder"],
    ],
)
def test_usage_errors_give_exit_3_without_a_traceback(suite, capsys, arguments):
    assert main([str(suite) if a == "SUITE" else a for a in arguments]) == 3
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert printed.err.strip() or not arguments


def test_validate_checks_all_suites(suite, tmp_path, capsys):
    assert main(["validate", str(suite)]) == 0
    assert capsys.readouterr().out == f"{suite}: ok, 2 models, 3 cells\n"
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(suite.read_text().replace("beam: 5", "baem: 5"))
    assert main(["validate", str(wrong), str(suite)]) == 3
    printed = capsys.readouterr()
    assert "did you mean 'beam'" in printed.err
    assert f"{wrong}:7" in printed.err
    assert str(suite) in printed.out


def test_list_shows_everything_and_each(capsys):
    assert main(["list"]) == 0
    overview = capsys.readouterr().out
    assert all(name in overview for name in ("transformer", "ctc", "dates", "autoregressive"))
    assert main(["list", "ctc"]) == 0
    assert "upsampling" in capsys.readouterr().out
    assert main(["list", "dates"]) == 0
    assert "exact_match" in capsys.readouterr().out
    assert main(["list", "families"]) == 0
    assert "dates" not in capsys.readouterr().out


def test_plan_shows_the_steps_and_runs_none(made_up, capsys, tmp_path):
    assert main(["plan", str(made_up), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "0 of 8 steps done" in printed
    assert "distill base (raw, seed 1) on text" in printed
    assert "evaluate base [beam=5] (raw, seed 1) on text" in printed
    assert not (tmp_path / "store").exists()


def test_a_plan_tells_what_is_done_and_how_large_the_models_are(made_up, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "PreparedData", lambda folder: SimpleNamespace(data_spec=DataSpec(50, 20, 20)))
    from bench.execution import find_conditions

    graph = build_graph(load_suite(made_up), find_conditions("cpu", "auto"))
    store = Store(tmp_path / "store")
    (prepare,) = graph.prepares
    train = graph.work[0]
    assert {entry.parameters for entry in make_plan(graph, store)} == {None}  # the vocabulary is not known yet
    store.path(*prepare.id).mkdir(parents=True)
    store.partial(*train.id).mkdir(parents=True)
    plan = {entry.step.id: entry for entry in make_plan(graph, store)}
    assert plan[prepare.id].state == "done"
    assert plan[train.id].state == "partial"
    assert plan[graph.work[-1].id].state == "to do"
    model, _ = graph.models[0]
    count = plan[train.id].parameters
    assert count == count_parameters(model, SimpleNamespace(data_spec=DataSpec(50, 20, 20)))
    assert count > 50 * 64  # the embedding alone
    larger = count_parameters(model, SimpleNamespace(data_spec=DataSpec(51, 20, 20)))
    assert larger - count in (64, 64 + 1, 128, 128 + 1)  # a row of the embedding, with or without an output's own


def test_table_and_plot_work_from_records_alone(made_up, capsys):
    run(made_up)
    out = made_up.parent / "out"
    (out / "table.md").unlink()
    (out / "figure.svg").unlink()
    capsys.readouterr()
    assert main(["table", str(out)]) == 0
    assert "a table of" in capsys.readouterr().out
    assert (out / "table.md").exists()
    assert main(["plot", str(out)]) == 0
    assert (out / "figure.svg").exists()
    (out / "records.csv").write_text("not,records\n")
    assert main(["table", str(out)]) == 3
    assert "not a table of records" in capsys.readouterr().err


def test_table_and_plot_do_not_import_torch():
    code = "import sys; from bench.cli import main; main(['plot', 'nowhere']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0


def test_schema_is_json(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "natbench suite"


def test_part_of_a_suite_never_replaces_the_results_of_the_whole(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "name: s\ntasks: [dates]\ntrain: {budget: {target_tokens: 10}}\n"
        "systems: [{name: a, family: ctc}, {name: b, family: ctc}]\n"
    )
    (tmp_path / "results" / "s").mkdir(parents=True)
    (tmp_path / "results" / "s" / "records.csv").write_text("kept")
    for part in (["--only", "a"], ["--set", "train.budget.target_tokens=5"]):
        assert main(["run", str(suite), *part]) == 3
        assert "--out" in capsys.readouterr().err
    assert (tmp_path / "results" / "s" / "records.csv").read_text() == "kept"


@pytest.mark.parametrize("option", ["--out", "--store"])
def test_a_place_that_is_no_folder_is_refused_before_anything_runs(option, tmp_path, capsys):
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "name: s\ntasks: [dates]\ntrain: {budget: {target_tokens: 10}}\nsystems: [{name: a, family: ctc}]\n"
    )
    (tmp_path / "file").write_text("")
    places = {"--out": tmp_path / "out", "--store": tmp_path / "store"} | {option: tmp_path / "file" / "below"}
    assert main(["run", str(suite), *(str(x) for pair in places.items() for x in pair)]) == 3
    assert capsys.readouterr().err.strip() == f"{option} {tmp_path}/file/below: {tmp_path}/file is not a folder"
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "store").exists()


def test_records_without_a_row_are_refused(tmp_path, capsys):
    write_records(tmp_path / "records.csv", [])
    assert main(["plot", str(tmp_path)]) == 3
    assert "no records" in capsys.readouterr().err
