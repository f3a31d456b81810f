"""The whole path through the command line: a small suite, undisturbed and killed at every stage."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITE = """
name: small
tasks: [{task: dates, train_sentences: 300, dev_sentences: 20, test_sentences: 40, first_year: 2020, last_year: 2024}]
backbone: {model_dim: 64, num_heads: 2, ffn_dim: 128, dropout: 0.1, encoder_layers: 1, decoder_layers: 1}
train:
  {budget: {target_tokens: 24_000}, batch_tokens: 128, learning_rate: 4.0e-3, evaluations: 3, dev_sentences: 10,
   checkpoint_seconds: 0.2}
distill: {beam: 5, shard_sentences: 30}
systems:
  - {name: ar, family: transformer, settings: [{beam: 1}, {beam: 2}]}
  - {name: nat, family: ctc, teacher: ar, config: {upsampling: 2}}
measure:
  quality: {bootstrap_samples: 50}
  speed: {batch_sizes: [1, 4], sentences: 10, min_seconds: 0, min_runs: 20, threads: 1}
"""
TIMED = {"train_minutes", "train_tokens_per_second", "foreign_cpu", "tokens_per_second", "sentences_per_second"}


def command(folder, out):
    suite = folder / "suite.yaml"
    suite.write_text(SUITE)
    return [sys.executable, "-m", "bench", "run", str(suite), "--out", str(out), "--store", str(folder / "store")]


def records(out):
    with (out / "records.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def repeatable(rows):
    """The records but for what a clock gave; of those only what was measured, and with which status."""
    kept = []
    for original in rows:
        row = dict(original)
        if row["metric"] in TIMED or row["metric"].startswith(("latency", "speedup")) or row["part"]:
            for name in ("value", "ci_low", "ci_high", "n"):
                row.pop(name)
        kept.append(row)
    return kept


STAGES = {
    "training": "partial/train-*/checkpoint.safetensors",
    "distillation": "partial/distill-*/shard-*.json",
    "measurement": "partial/measure-*/rounds.jsonl",
}


@pytest.mark.slow
def test_records_after_kills_equal_those_of_an_undisturbed_run(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command(whole, whole / "out"), check=True, cwd=tmp_path, env=environment, timeout=300)
    expected = records(whole / "out")
    assert {row["status"] for row in expected} == {"ok"}

    for stage, pattern in STAGES.items():
        runner = subprocess.Popen(command(killed, killed / "out"), cwd=tmp_path, env=environment)
        deadline = time.time() + 200
        while not any(file.stat().st_size for file in (killed / "store").glob(pattern)):
            assert runner.poll() is None, f"it ended before it could be killed in {stage}"
            assert time.time() < deadline
            time.sleep(0.01)
        runner.send_signal(signal.SIGKILL)
        runner.wait()
        assert list((killed / "store").glob(pattern)), f"killed too late in {stage}"
        assert not (killed / "out").exists(), "a killed run leaves no results"
        time.sleep(1.0)  # its children die with it
    subprocess.run(command(killed, killed / "out"), check=True, cwd=tmp_path, env=environment, timeout=300)
    assert repeatable(records(killed / "out")) == repeatable(expected)
    hypotheses = [sorted((folder / "out" / "hypotheses").rglob("*.txt")) for folder in (whole, killed)]
    assert len(hypotheses[0]) == 3
    assert [f.read_text() for f in hypotheses[0]] == [f.read_text() for f in hypotheses[1]]

    # Nothing that is finished is done again.
    before = (killed / "out" / "records.csv").read_bytes()
    started = time.perf_counter()
    again = subprocess.run(
        command(killed, killed / "out"), check=True, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert time.perf_counter() - started < 60
    assert "started" not in again.stderr
    assert (killed / "out" / "records.csv").read_bytes() == before


BROKEN = {
    "misspelt key": ("distill:", "distil:", "did you mean 'distill'"),
    "misspelt family": ("family: ctc", "family: cct", "did you mean 'ctc'"),
    "misspelt setting": ("{beam: 1}", "{beem: 1}", "did you mean 'beam'"),
    "wrong type": ("dev_sentences: 20,", "dev_sentences: twenty,", "dev_sentences"),
    "out of range": ("dropout: 0.1", "dropout: 1.5", "dropout"),
    "unknown teacher": ("teacher: ar", "teacher: a", "teacher"),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_mistake_in_a_suite_is_one_line_and_exit_code_3(mistake, tmp_path):
    right, wrong, said = BROKEN[mistake]
    suite = tmp_path / "suite.yaml"
    assert right in SUITE
    suite.write_text(SUITE.replace(right, wrong, 1))
    ended = run_refused(suite, tmp_path)
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith(f"{suite}:")
    assert said in line


FILES = ("train.en", "train.de", "dev.en", "dev.de", "test.en", "test.de")
PARALLEL = """
name: own
tasks: [{{task: parallel_text, vocab_size: 300, train_source: {0}/train.en, train_target: {0}/train.de,
  dev_source: {0}/dev.en, dev_target: {0}/dev.de, test_source: {0}/test.en, test_target: {0}/test.de}}]
train: {{budget: {{target_tokens: 1000}}}}
systems: [{{name: nat, family: ctc}}]
"""
DAMAGE = {
    "missing": (lambda f: f.unlink(), "train.de"),
    "empty": (lambda f: f.write_bytes(b""), "train.de"),
    "unequal": (lambda f: f.write_bytes(f.read_bytes() + b"more\n"), "train.de"),
    "not UTF-8": (lambda f: f.write_bytes(f.read_bytes().replace(b"drei", b"dr\xff", 1)), "train.de:3"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_data_file_is_one_line_and_exit_code_3(damage, tmp_path):
    words = {"en": ["one", "two", "three", "four"], "de": ["eins", "zwei", "drei", "vier"]}
    for name in FILES:
        (tmp_path / name).write_text("\n".join(words[name[-2:]]) + "\n")
    suite = tmp_path / "suite.yaml"
    suite.write_text(PARALLEL.format(tmp_path))
    change, said = DAMAGE[damage]
    change(tmp_path / "train.de")
    ended = run_refused(suite, tmp_path)
    # Beside it only the progress lines of the prepare step, which begin with the time.
    (line,) = [line for line in ended.stderr.strip().splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
    assert said in line


def run_refused(suite, folder):
    """Run a suite that must be refused; nothing may be left of it."""
    ended = subprocess.run(
        [sys.executable, "-m", "bench", "run", str(suite), "--out", "out", "--store", "store"],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 3, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (folder / "out").exists()
    assert not list((folder / "store").rglob("*.jsonl"))
    return ended
