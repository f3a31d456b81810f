"""The Makefile: when it sets up `.venv`, and what it removes. A stand-in for Python makes this instant and visible."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# `-m venv DIR` puts the stand-in itself at DIR/bin/python; version checks go to the real interpreter; every other call
# only leaves its arguments in calls.log. `-m pip` fails if a file named `broken` lies there, `-m bench run` with the
# code that a file named `bench-run` holds.
STAND_IN = f"""#!/bin/sh
case "$1 $2" in
  "-c "*) exec "{sys.executable}" "$@" ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip") test ! -e broken || exit 1 ;;
  "-m bench") test ! -e "bench-$3" || {{ echo "$@" >> calls.log; exit $(cat "bench-$3"); }} ;;
esac
echo "$@" >> calls.log
"""


class Checkout:
    """A folder with the project's Makefile and the files that it depends on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(ROOT / "Makefile", folder)
        for name in ("constraints.txt", "pyproject.toml"):
            (folder / name).write_text("")
        self.python = folder / "stand-in"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # Variables given to the `make` that runs these tests must not reach the one under test.
        own = ("MAKE", "MFLAGS", "ARGS", "SUITE", "RESULTS", "PYTHON", "AGAINST", "IDENTICAL", "BASELINE", "CANDIDATE")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(own)}
        command = ["make", f"PYTHON={self.python}", *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def calls(self) -> list[str]:
        """Return what Python was asked to do since the last time."""
        log = self.folder / "calls.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [re.sub(r"^-m (pip install|venv).*", r"\1", line) for line in lines]

    def change(self, name: str) -> None:
        """Make a file newer than the environment, and all else as old as that."""
        past = time.time() - 100
        for file in ("constraints.txt", "pyproject.toml", ".venv/.ready"):
            os.utime(self.folder / file, (past, past))
        (self.folder / name).touch()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


BENCH = "-m bench run suites/quick.yaml"


def test_the_environment_is_set_up_once(checkout: Checkout):
    assert checkout.make("bench").returncode == 0
    assert checkout.calls() == ["venv", "pip install", BENCH]
    assert checkout.make("bench").returncode == 0
    assert checkout.calls() == [BENCH]


@pytest.mark.parametrize("changed", ["constraints.txt", "pyproject.toml"])
def test_a_changed_file_makes_the_environment_anew(checkout: Checkout, changed: str):
    checkout.make("bench")
    checkout.calls()
    (checkout.folder / ".venv" / "leftover").touch()
    checkout.change(changed)
    checkout.make("bench")
    assert checkout.calls() == ["venv", "pip install", BENCH]
    assert not (checkout.folder / ".venv" / "leftover").exists()


def test_a_set_up_that_failed_is_started_over(checkout: Checkout):
    (checkout.folder / "broken").touch()
    assert checkout.make("bench").returncode != 0
    assert BENCH not in checkout.calls()
    (checkout.folder / "broken").unlink()
    (checkout.folder / ".venv" / "leftover").touch()
    assert checkout.make("bench").returncode == 0
    assert checkout.calls() == ["venv", "pip install", BENCH]
    assert not (checkout.folder / ".venv" / "leftover").exists()


def test_an_unsuitable_python_is_named_and_nothing_is_removed(checkout: Checkout):
    (checkout.folder / ".venv").mkdir()
    checkout.python.write_text('#!/bin/sh\ntest "$1" = --version && echo Python 3.10.2\nexit 1\n')
    result = checkout.make("bench")
    assert result.returncode != 0
    assert "natbench needs Python 3.11 to 3.13" in result.stderr
    assert "Python 3.10.2" in result.stderr
    assert (checkout.folder / ".venv").is_dir()


def test_suite_and_arguments_are_passed_on(checkout: Checkout):
    checkout.make("bench", "SUITE=suites/mine.yaml", "ARGS=--only ctc")
    assert checkout.calls()[-1] == "-m bench run suites/mine.yaml --only ctc"


def test_the_gate_runs_the_suite_and_then_judges(checkout: Checkout):
    assert checkout.make("gate", "SUITE=suites/mine.yaml").returncode == 0
    run, judge = checkout.calls()[-2:]
    assert run == "-m bench run suites/mine.yaml --set measure.speed=null --out build/gate/mine"
    assert judge.startswith(
        "-m bench gate --baseline results/mine --candidate build/gate/mine --quality-only --markdown"
    )
    checkout.make("gate", "AGAINST=HEAD^", "ARGS=--only ctc")
    judge = checkout.calls()[-1]
    assert "--candidate build/gate/quick --against HEAD^ --suite suites/quick.yaml" in judge
    assert judge.endswith("gate.xml --only ctc")
    checkout.make("gate", "IDENTICAL=1")
    assert "--quality-only --identical" in checkout.calls()[-1]
    checkout.make("gate", "IDENTICAL=0")
    assert "--identical" not in checkout.calls()[-1]


@pytest.mark.parametrize(("code", "judged"), [(2, True), (3, False), (130, False)])
def test_the_gate_judges_runs_with_failed_cells_and_no_others(checkout: Checkout, code: int, judged: bool):
    (checkout.folder / "bench-run").write_text(str(code))
    assert (checkout.make("gate").returncode == 0) == judged
    assert checkout.calls()[-1].startswith("-m bench gate" if judged else "-m bench run")


@pytest.mark.parametrize("code", [1, 2, 3])
def test_what_the_gate_finds_fails_make(checkout: Checkout, code: int):
    (checkout.folder / "bench-gate").write_text(str(code))
    assert checkout.make("gate").returncode


def test_plots_and_tables_are_made_for_every_folder_with_records(checkout: Checkout):
    for name in ("first", "second", "unfinished"):
        (checkout.folder / "results" / name).mkdir(parents=True)
    for name in ("first", "second"):
        (checkout.folder / "results" / name / "records.csv").touch()
    assert checkout.make("plots", "table").returncode == 0
    verbs = [f"-m bench {verb} results/first results/second" for verb in ("plot", "table")]
    assert checkout.calls()[2:] == verbs
    checkout.make("plots", "RESULTS=results/second")
    assert checkout.calls() == ["-m bench plot results/second"]


def test_plots_without_records_say_what_to_do(checkout: Checkout):
    result = checkout.make("plots")
    assert result.returncode != 0
    assert "run 'make bench' first" in result.stderr


def test_clean_keeps_results_and_the_store(checkout: Checkout):
    kept = [checkout.folder / name for name in ("results/quick/records.csv", "store/train/key/model.safetensors")]
    removed = [checkout.folder / name for name in (".venv/.ready", "bench/__pycache__/cli.pyc", "build/x", "dist/x")]
    for file in [*kept, *removed]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    for folder in ("models", "tests"):
        (checkout.folder / folder).mkdir()
    assert checkout.make("clean").returncode == 0
    assert [file for file in kept if not file.exists()] == []
    assert [file for file in removed if file.exists()] == []


def test_help_is_the_default_and_lists_every_target(checkout: Checkout):
    shown = checkout.make().stdout
    assert shown == checkout.make("help").stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert set(re.findall(r"^  make ([a-z]+)", shown, re.MULTILINE)) == set(phony[1].split())
    assert checkout.calls() == []
