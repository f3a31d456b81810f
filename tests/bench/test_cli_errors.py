"""What the verbs refuse, what they answer to damaged files and bugs, and with which exit codes."""

import sys

import pytest

from bench import execution
from bench.cli import main
from bench.records import Record, read_records, write_records

DATES = """\
name: {name}
tasks: [dates]
train: {{budget: {{target_tokens: 10}}}}
systems: [{{name: a, family: {family}}}]
"""


@pytest.fixture(autouse=True)
def _own_path(monkeypatch):
    """Forget the folders that the verbs put on the path."""
    monkeypatch.setattr(sys, "path", [*sys.path])


def dates_suite(folder, name="s", family="ctc"):
    """A suite of one system that is only looked at."""
    path = folder / "s.yaml"
    path.write_text(DATES.format(name=name, family=family))
    return str(path)


@pytest.fixture
def nothing_runs(monkeypatch):
    """Let every attempt to run a suite fail."""
    monkeypatch.setattr(execution, "execute", lambda *_: pytest.fail("run"))


def test_no_system_at_all_is_not_every_system(tmp_path, capsys):
    for names in ("", " , "):
        assert main(["plan", dates_suite(tmp_path), "--only", names]) == 3
        assert capsys.readouterr().err == "--only: names no system\n"


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_bfloat16_on_the_cpu_is_refused(device, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for verb in (["plan"], ["run", "--out", str(tmp_path / "out")]):
        arguments = [*verb, dates_suite(tmp_path), "--device", device, "--dtype", "bfloat16"]
        assert main(arguments) == 3
        assert capsys.readouterr().err == "--dtype bfloat16 is for CUDA; on the CPU decoding is in float32\n"


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("option", [["--out", "results/s"], []], ids=["out", "default"])
def test_results_of_another_suite_are_not_replaced(option, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "s"
    folder.mkdir(parents=True)
    record = Record("other", "dates", "test", "a", "ctc", "", "raw", 1, "bleu", 50.0, "")
    write_records(folder / "records.csv", [record])
    assert main(["run", dates_suite(tmp_path), *option]) == 3
    assert capsys.readouterr().err == (
        "results/s/records.csv holds results of suite 'other', not of 's': "
        "name another folder with --out, or remove that file\n"
    )
    assert read_records(folder / "records.csv") == [record]


@pytest.mark.usefixtures("nothing_runs")
def test_a_file_that_only_has_the_name_of_records_is_not_replaced(tmp_path, capsys):
    (tmp_path / "records.csv").write_text("my,own\n1,2\n")
    assert main(["run", dates_suite(tmp_path), "--out", str(tmp_path)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "not a table of records" in line
    assert line.endswith("it would be replaced: name another folder with --out, or remove that file")


def test_families_in_the_current_folder_are_found(tmp_path, monkeypatch, capsys):
    """Also by the console script, whose path begins with its own folder."""
    (tmp_path / "house_here").mkdir()
    (tmp_path / "house_here" / "mine.py").write_text("from models.ctc import FAMILY\n")
    suite = dates_suite(tmp_path, family="house_here.mine")
    assert main(["validate", suite]) == 3
    assert "No module named 'house_here'" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["validate", suite]) == 0


def test_the_current_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["schema"])
    main(["schema"])
    assert sys.path[0] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


def test_a_family_that_exits_is_a_problem_of_the_suite(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exiting").mkdir()
    (tmp_path / "exiting" / "family.py").write_text("import sys\nsys.exit('bye')\n")
    assert main(["validate", dates_suite(tmp_path, family="exiting.family")]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("s.yaml:4: systems[0].family: family 'exiting.family' cannot be imported: SystemExit: bye")


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (RuntimeError("a bug"), 2, "Traceback"),
        (ValueError("a bug"), 2, "Traceback"),
        (FileNotFoundError("gone"), 2, "Traceback"),
        (SystemExit("bye"), 2, "bye"),
        (SystemExit(1), 2, ""),
        (SystemExit(None), 0, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=["bug", "value", "file", "text", "one", "none", "ctrl-c"],
)
def test_only_a_regression_has_exit_code_1(error, code, shown, monkeypatch, capsys):
    def fail(name):
        raise error

    monkeypatch.setattr("bench.listing.show", fail)
    assert main(["list"]) == code
    printed = capsys.readouterr().err
    assert shown in printed
    if shown == "Traceback":
        assert printed.rstrip().endswith(str(error))


@pytest.fixture
def results(tmp_path):
    """A results folder."""
    write_records(tmp_path / "records.csv", [Record("s", "dates", "test", "a", "ctc", "", "raw", 1, "bleu", 50.0, "")])
    return tmp_path


@pytest.mark.parametrize("name", ["latencies.csv", "curves.csv"])
@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "\xff"], ids=["empty", "other-columns", "no-text"])
@pytest.mark.parametrize("here", [True, False], ids=["current-folder", "elsewhere"])
def test_damaged_tables_beside_the_records_are_one_line(name, content, here, results, monkeypatch, capsys):
    (results / name).write_text(content, encoding="latin-1")
    monkeypatch.chdir(results)
    assert main(["plot", "." if here else str(results)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}: not a table of" if here else f"{results}/{name}: not a table of")
    assert not (results / "figures").exists()


def test_a_bug_in_a_figure_is_no_damaged_file(results, monkeypatch, capsys):
    def fail(folder):
        raise ValueError("x and y must have same first dimension")

    monkeypatch.setattr("bench.figures.write_figures", fail)
    assert main(["plot", str(results)]) == 2
    assert "Traceback" in capsys.readouterr().err
