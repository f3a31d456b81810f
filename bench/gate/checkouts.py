"""Another state of the code beside the working tree: a git worktree, if need be with an environment of its own."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import bench
from bench.errors import UserError
from bench.gate.turns import Checkout
from bench.store import Store

SOURCE = Path(bench.__file__).resolve().parents[1]
"""The folder that holds the code that runs."""


@contextmanager
def checkout_of(ref: str, environments: Path, here: Path | None = None) -> Iterator[Checkout]:
    """Check out the commit `ref` of the repository that holds `here` (the code that runs), for as long as it is used.

    It runs with this Python if it asks for the same libraries, else with one of its own, which is kept in
    `environments`.

    Raises:
        UserError: no repository, no such commit, or its libraries cannot be installed.
    """
    top = Path(_git(here or SOURCE, "rev-parse", "--show-toplevel"))
    _git(top, "worktree", "prune")
    commit = _git(top, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", why=f"--against {ref}: no such commit")
    with tempfile.TemporaryDirectory(prefix="natbench-gate-") as folder:
        root = Path(folder) / "checkout"
        _git(top, "worktree", "add", "--quiet", "--detach", str(root), commit)
        try:
            same = _requirements(top) == _requirements(root)
            yield Checkout(root, Path(sys.executable) if same else _environment(root, environments), commit)
        finally:
            with suppress(UserError):  # an error on the way is what counts
                _git(top, "worktree", "remove", "--force", str(root))


def working_tree() -> Checkout:
    """Return the code that runs now."""
    return Checkout(SOURCE, Path(sys.executable))


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Have SIGTERM, which CI sends to what takes too long, end this process as an interrupt does: nothing stays behind.

    Raises:
        SystemExit: it has come.
    """

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _git(folder: Path, *arguments: str, why: str = "") -> str:
    try:
        # A hook of git sets variables that would point elsewhere.
        variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        done = subprocess.run(
            ["git", *arguments], cwd=folder, env=variables, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise UserError("--against needs git, which is not installed") from error
    if done.returncode:
        raise UserError(why or f"--against: git {arguments[0]}: {' '.join(done.stderr.split())}")
    return done.stdout.strip()


def _requirements(root: Path) -> tuple[str, Any]:
    """Return what a checkout asks to have installed."""
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return (root / "constraints.txt").read_text(encoding="utf-8"), (
            project.get("dependencies"),
            project.get("optional-dependencies"),
        )
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"--against: {root.name} is no checkout of natbench ({error})") from error


def _environment(root: Path, environments: Path) -> Path:
    """Return the Python of an environment with what the checkout at `root` asks for.

    Two gates never make one at a time.
    """
    wanted = hashlib.sha256(repr((_requirements(root), sys.version_info[:2])).encode()).hexdigest()[:16]
    folder = environments / wanted
    python, ready = folder / "bin" / "python", folder / ".ready"
    with Store(environments).lock(wanted):
        if ready.exists():
            return python
        constraints = ["-c", "constraints.txt"]
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *constraints, ".[dev]"],
            # The code itself comes from the checkout; what would lie here is a copy of one of many.
            [str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "natbench"],
        ):
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
                raise UserError(f"--against: its libraries cannot be installed: {last}")
        ready.touch()
        return python
