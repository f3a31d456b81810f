"""A store and a runner for made-up steps, and a record of what happened to them."""

import os
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import psutil
from rich.console import Console

from bench.progress import PlainDisplay
from bench.runner import Resources, Runner
from bench.steps import Step
from bench.store import Store

MODULES = dict.fromkeys(("prepare", "train", "distill", "evaluate", "measure"), "tests.bench.fake_steps")


class Harness:
    """A store, made-up steps, and what happened to them."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root / "store")
        self.events_folder = root / "events"
        self.events_folder.mkdir()
        self.output = StringIO()

    def step(self, name: str, do: str = "nothing", *parents: Step, kind: str = "train", **options) -> Step:
        spec = {"name": name, "do": do, "events": str(self.events_folder), **options.pop("spec", {})}
        roles = {f"parent{i}": parent.id for i, parent in enumerate(parents)}
        return Step(kind, f"key-{name}", spec, roles, label=name, **options)

    def runner(self, cores: int = 2, **resources) -> Runner:
        display = PlainDisplay(Console(file=self.output, width=200))
        return Runner(self.store, Resources(cores, **resources), display, MODULES)

    def run(self, *steps: Step, **resources):
        outcomes = self.runner(**resources).run(steps)
        return [outcomes[step.id] for step in steps]

    @property
    def events(self) -> list[str]:
        return [p.name.split("-", 1)[1] for p in sorted(self.events_folder.iterdir())]

    def most_at_a_time(self) -> int:
        running = most = 0
        for event in self.events:
            running += 1 if event.startswith("begin") else -1
            most = max(most, running)
        return most


def wait_for(condition, seconds: float = 20.0):
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return value


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start_runner(harness, *steps: Step) -> subprocess.Popen:
    """Run `steps` by a runner in a process of its own."""
    code = (
        "import sys; from pathlib import Path; from rich.console import Console\n"
        "from bench.progress import PlainDisplay; from bench.steps import Step; from bench.store import Store\n"
        "from bench.runner import Resources, Runner\n"
        f"store = Store(Path({str(harness.store.root)!r}))\n"
        f"runner = Runner(store, Resources(2), PlainDisplay(Console()), {MODULES!r})\n"
        f"outcomes = runner.run({list(steps)!r})\n"
        "sys.exit(any(o.status != 'ok' for o in outcomes.values()))\n"
    )
    path = os.pathsep.join(sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL
    )
