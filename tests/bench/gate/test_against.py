"""The gate times the working tree against a commit, from the command line, in a repository of its own."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.errors import UserError
from bench.gate import checkouts
from bench.gate.checkouts import checkout_of

ROOT = Path(__file__).parents[3]
SUITE = """
name: small
tasks: [{task: random_text, vocab_size: 50, lengths: [6], sentences: 16}]
decoding: {output_length: source}
backbone: {model_dim: 32, num_heads: 2, ffn_dim: 32, encoder_layers: 1, decoder_layers: 1}
train: {budget: {target_tokens: 0}}
systems:
  - {name: ar, family: transformer}
  - {name: nat, family: ctc, config: {upsampling: 2}}
  - {name: added, family: insertion, settings: [{mode: parallel}]}
measure:
  quality: {bootstrap_samples: 0}
  speed: {batch_sizes: [1, 8], sentences: 16, threads: 1}
# Margins for a machine that has much else to do: what is planted is larger.
gate: {slowdown: 60, pairs: [12, 30, 60], milliseconds: 4}
"""
PLANTED = """
_decode = CTC.decode
def _slow(self, *arguments):
    import time
    begun = time.perf_counter()
    decoded = _decode(self, *arguments)
    time.sleep(9 * (time.perf_counter() - begun))
    return decoded
CTC.decode = _slow
"""


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    """A repository with this code, and a suite that trains nothing."""
    root = tmp_path / "repository"
    for name in ("bench", "models"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    (root / "suite.yaml").write_text(SUITE)
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "before")
    return root


def bench(root, *arguments):
    command = [sys.executable, "-m", "bench", *arguments, "--store", str(root.parent / "store")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_slow_family_is_caught_a_new_one_listed_and_the_rest_let_be(repository):
    (repository / "models" / "insertion.py").unlink()
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "without insertion")
    git(repository, "revert", "--no-edit", "HEAD")
    code = (repository / "models" / "ctc.py").read_text()
    (repository / "models" / "ctc.py").write_text(code + PLANTED)

    gate = ("gate", "--against", "HEAD^", "--suite", "suite.yaml", "--markdown", "gate.md")
    early = bench(repository, *gate)
    assert early.returncode == 3
    assert "run it first" in early.stderr

    assert bench(repository, "run", "suite.yaml", "--set", "measure.speed=null").returncode == 0
    judged = bench(repository, *gate)
    assert judged.returncode == 1, judged.stderr
    rows = [line for line in (repository / "gate.md").read_text().splitlines() if line.startswith("| ")][2:]
    found = [line.strip("| ").split(" | ")[:3] for line in rows]
    assert found[:2] == [["REGRESSED", "random\\_text: nat, seed 1", f"Sentences/s, batch {size}"] for size in (1, 8)]
    assert sorted(row[1] for row in found[2:4]) == ["random\\_text: ar, seed 1"] * 2
    assert not {row[0] for row in found[2:4]} & {"REGRESSED", "FAILED", "NOT COMPARABLE"}
    assert [row[:2] for row in found[4:]] == [["NEW", "random\\_text: added \\[mode=parallel\\], seed 1"]]
    assert "HEAD^ (" in (repository / "gate.md").read_text()
    worktrees = subprocess.run(["git", "worktree", "list"], cwd=repository, capture_output=True, text=True, check=True)
    assert len(worktrees.stdout.splitlines()) == 1


def test_what_is_no_commit_or_no_repository_is_refused(repository, tmp_path):
    with (
        pytest.raises(UserError, match="--against nowhere: no such commit"),
        checkout_of("nowhere", tmp_path, repository),
    ):
        pass
    with pytest.raises(UserError, match="not a git repository"), checkout_of("HEAD", tmp_path, tmp_path):
        pass


def test_a_checkout_with_other_libraries_gets_a_python_of_its_own(repository, tmp_path, monkeypatch):
    with checkout_of("HEAD", tmp_path / "environments", repository) as same:
        assert same.interpreter == Path(sys.executable)
        assert (same.root / "models" / "ctc.py").is_file()
    assert not same.root.exists()

    (repository / "constraints.txt").write_text("torch==2.11.0\n")
    commands = []

    def pretend(command, **options):
        if command[0] == "git":
            return run(command, **options)
        commands.append([str(part) for part in command])
        Path(command[-1] if "venv" in command else command[0]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "environments").mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, 1 if failing and "install" in command else 0, "", "no such version")

    run = subprocess.run
    monkeypatch.setattr(checkouts.subprocess, "run", pretend)
    failing = True
    with (
        pytest.raises(UserError, match="libraries cannot be installed: no such version"),
        checkout_of("HEAD", tmp_path / "environments", repository),
    ):
        pass
    failing = False
    for _ in range(2):
        with checkout_of("HEAD", tmp_path / "environments", repository) as other:
            assert other.interpreter.parent.parent.parent == tmp_path / "environments"
    assert len([command for command in commands if "venv" in command]) == 2, "what is ready is used again"


def test_two_gates_make_one_environment(repository, tmp_path, monkeypatch):
    """The second waits for the first, and finds it ready."""
    (repository / "constraints.txt").write_text("torch==2.11.0\n")
    running, most, commands = 0, 0, []
    run = subprocess.run

    def pretend(command, **options):
        nonlocal running, most
        if command[0] == "git":
            return run(command, **options)
        running += 1
        most = max(most, running)
        commands.append(command)
        time.sleep(0.05)
        Path(command[-1] if "venv" in command else command[0]).parent.mkdir(parents=True, exist_ok=True)
        running -= 1
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(checkouts.subprocess, "run", pretend)

    def enter():
        with checkout_of("HEAD", tmp_path / "environments", repository) as checkout:
            return checkout.interpreter

    with ThreadPoolExecutor(2) as pool:
        first, second = (future.result() for future in [pool.submit(enter), pool.submit(enter)])
    assert first == second
    assert most == 1
    assert len([command for command in commands if "venv" in command]) == 1
