"""The runner with small made-up steps: order, side by side, failures, kills, time limits, interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from bench.jobs import environment
from bench.progress import PlainDisplay
from bench.runner import Interrupted, Resources, Runner, chain_seconds
from bench.steps import Step
from bench.store import Store

STEPS_MODULE = '''
import json, os, signal, subprocess, sys, time
from pathlib import Path
from bench.errors import DataError
from bench.steps import StepFailure, write_json


def run(spec, folder, parents, progress):
    events = Path(spec["events"])
    note = lambda what: (events / f"{time.monotonic_ns()}-{what}").touch()
    note(f"begin-{spec['name']}")
    for role, parent in parents.items():
        assert (parent / "value.txt").exists(), f"no parent {role}"
    progress(done=0.5, loss=1.25)
    ACTIONS[spec.get("do", "nothing")](spec, folder)
    (folder / "value.txt").write_text(spec["name"])
    note(f"end-{spec['name']}")


def raise_(error):
    raise error


def forever(spec, folder):
    (folder / "pid").write_text(str(os.getpid()))
    while True:
        time.sleep(0.05)


def orphan(spec, folder):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    (folder / "pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(120)


class OutOfMemoryError(RuntimeError):
    pass


def count(spec, folder):
    """Count to five, one a visit, killed at each: resumes where it was."""
    path = folder / "count.txt"
    done = int(path.read_text()) if path.exists() else 0
    path.write_text(str(done + 1))
    if done + 1 < 5:
        os.kill(os.getpid(), signal.SIGKILL)


def timing(spec, folder):
    """Time every cell; some kill the process, as the system does when memory runs out."""
    excluded = folder / "excluded.json"
    left_out = json.loads(excluded.read_text()) if excluded.exists() else []
    pairs = {(e["cell"], e["batch_size"]) for e in left_out}
    for cell, batch_size, deadly in spec["cells"]:
        if (cell, batch_size) in pairs:
            continue
        write_json(folder / "current.json", {"cell": cell, "batch_size": batch_size})
        if deadly == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if deadly == "hang":
            time.sleep(60)
    write_json(folder / "measured.json", left_out)


def stubborn(spec, folder):
    """Dies in a cell that it was told to leave out."""
    write_json(folder / "current.json", {"cell": "a", "batch_size": 1})
    os.kill(os.getpid(), signal.SIGKILL)


ACTIONS = {
    "nothing": lambda spec, folder: None,
    "sleep": lambda spec, folder: time.sleep(0.3),
    "forever": forever,
    "orphan": orphan,
    "raise": lambda spec, folder: raise_(ValueError("first line\\nlast line")),
    "step failure": lambda spec, folder: raise_(StepFailure("loss is nan at step 3")),
    "data error": lambda spec, folder: raise_(DataError("train.de: line 3 is empty")),
    "memory error": lambda spec, folder: raise_(MemoryError()),
    "torch oom": lambda spec, folder: raise_(OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
    "cpu oom": lambda spec, folder: raise_(RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes")),
    "kill": lambda spec, folder: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda spec, folder: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda spec, folder: os._exit(7),
    "print": lambda spec, folder: print("not a message", flush=True),
    "count": count,
    "timing": timing,
    "stubborn": stubborn,
    "environment": lambda spec, folder: write_json(folder / "environment.json", dict(os.environ)),
}
'''
MODULES = dict.fromkeys(("prepare", "train", "distill", "evaluate", "measure"), "fake_steps")


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


@pytest.fixture
def harness(tmp_path, monkeypatch):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "fake_steps.py").write_text(STEPS_MODULE)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    return Harness(tmp_path)


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


def test_steps_run_after_their_parents_and_give_artifacts(harness):
    data = harness.step("data", kind="prepare")
    model = harness.step("model", "print", data)
    scores = harness.step("scores", "nothing", data, model, kind="evaluate")
    assert [o.status for o in harness.run(scores, model, data)] == ["ok"] * 3
    assert harness.events == [f"{w}-{name}" for name in ("data", "model", "scores") for w in ("begin", "end")]
    made_by = json.loads((harness.store.path("evaluate", "key-scores") / "step.json").read_text())
    assert made_by["parents"] == {"parent0": ["prepare", "key-data"], "parent1": ["train", "key-model"]}


def test_a_second_run_does_nothing(harness):
    steps = [harness.step("data"), harness.step("other")]
    harness.run(*steps)
    before = harness.events
    runner = harness.runner()
    assert {o.status for o in runner.run(steps).values()} == {"ok"}
    assert harness.events == before
    assert runner.executed == set()


def test_equal_steps_run_once(harness):
    twice = harness.step("teacher")
    harness.run(twice, replace(twice, label="the same for another cell"))
    assert harness.events == ["begin-teacher", "end-teacher"]


def test_steps_run_side_by_side_within_the_cores(harness):
    harness.run(*(harness.step(str(i), "sleep") for i in range(4)), cores=2)
    assert harness.most_at_a_time() == 2


def test_steps_with_several_threads_take_several_cores(harness):
    wide = [harness.step(str(i), "sleep", threads=2) for i in range(2)]
    huge = harness.step("huge", threads=64)  # more than there are: still runs, by itself
    assert {o.status for o in harness.run(*wide, huge, cores=3)} == {"ok"}
    assert harness.most_at_a_time() == 1


def test_jobs_limit_the_steps(harness):
    harness.run(*(harness.step(str(i), "sleep") for i in range(2)), cores=8, jobs=1)
    assert harness.most_at_a_time() == 1


@pytest.mark.parametrize(("jobs", "expected"), [(None, ["0", "1"]), (4, ["0", "0", "1", "1"])])
def test_steps_on_cuda_spread_over_the_gpus(harness, jobs, expected):
    runner = harness.runner(cores=8, gpus=("0", "1"), jobs=jobs)
    steps = [harness.step(str(i), "environment", spec={"device": "cuda"}) for i in range(4)]
    runner.run(steps)
    seen = []
    for step in steps:
        variables = json.loads((harness.store.path(*step.id) / "environment.json").read_text())
        seen.append(variables["CUDA_VISIBLE_DEVICES"])
    assert sorted(set(seen)) == ["0", "1"]
    if jobs:
        assert sorted(seen) == expected


def test_without_jobs_each_gpu_has_one_step(harness):
    harness.run(*(harness.step(str(i), "sleep", spec={"device": "cuda"}) for i in range(3)), cores=8, gpus=("0",))
    assert harness.most_at_a_time() == 1


def test_the_longest_chain_starts_first(harness):
    short = harness.step("short", seconds=5.0)
    teacher = harness.step("teacher", seconds=4.0)
    student = harness.step("student", "nothing", teacher, seconds=4.0)
    assert chain_seconds([short, teacher, student]) == {short.id: 5.0, teacher.id: 8.0, student.id: 4.0}
    harness.run(short, student, teacher, cores=1)
    assert [e for e in harness.events if e.startswith("begin")] == ["begin-teacher", "begin-short", "begin-student"]


def test_timed_steps_run_last_and_alone(harness):
    timed = [harness.step(f"timed{i}", "sleep", alone=True, seconds=100.0) for i in range(2)]
    others = [harness.step(f"other{i}", "sleep") for i in range(2)]
    harness.run(*timed, *others, cores=8)
    order = harness.events
    assert max(order.index(f"end-other{i}") for i in range(2)) < order.index("begin-timed0")
    assert order.index("end-timed0") < order.index("begin-timed1")


@pytest.mark.parametrize(
    ("do", "status", "reason"),
    [
        ("raise", "failed", "ValueError: last line"),
        ("step failure", "failed", "loss is nan at step 3"),
        ("data error", "failed", "train.de: line 3 is empty"),
        ("memory error", "oom", "MemoryError"),
        ("torch oom", "oom", "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"),
        ("cpu oom", "oom", "RuntimeError: DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        ("kill", "oom", "killed by signal 9, most likely for lack of memory"),
        ("segfault", "failed", "killed by signal 11 (SIGSEGV)"),
        ("exit", "failed", "exited with code 7 without a result"),
    ],
)
def test_a_failure_has_a_status_and_a_reason(harness, do, status, reason):
    (outcome,) = harness.run(harness.step("a", do))
    assert (outcome.status, outcome.reason) == (status, reason)
    assert outcome.user_error == (do == "data error")
    assert not harness.store.has("train", "key-a")
    if do == "raise":
        assert 'raise_(ValueError("first line' in outcome.log.read_text()


def test_what_depends_on_a_failure_is_skipped_and_the_rest_goes_on(harness):
    teacher = harness.step("teacher", "step failure")
    targets = harness.step("targets", "nothing", teacher, kind="distill")
    student = harness.step("student", "nothing", targets)
    other = harness.step("other")
    outcomes = harness.run(teacher, targets, student, other)
    assert [o.status for o in outcomes] == ["failed", "skipped", "skipped", "ok"]
    assert outcomes[1].reason == outcomes[2].reason == "train failed: loss is nan at step 3"
    assert "begin-student" not in harness.events


def test_a_failure_is_tried_again_by_the_next_run(harness):
    (first,) = harness.run(harness.step("a", "exit"))
    again = replace(harness.step("a"), spec=harness.step("a").spec)
    (second,) = harness.run(again)
    assert (first.status, second.status) == ("failed", "ok")


def test_a_killed_step_resumes(harness):
    step = harness.step("counter", "count")
    statuses = [harness.run(step)[0].status for _ in range(5)]
    assert statuses == ["oom"] * 4 + ["ok"]
    assert (harness.store.path(*step.id) / "count.txt").read_text() == "5"


def test_a_step_past_its_time_is_killed_with_all_it_started(harness):
    step = harness.step("a", "orphan", time_limit=1.5)
    began = time.monotonic()
    (outcome,) = harness.run(step)
    assert (outcome.status, outcome.reason) == ("timeout", "not done within 1.5 s")
    assert time.monotonic() - began < 10
    pids = [int(p) for p in (harness.store.partial(*step.id) / "pids").read_text().split()]
    wait_for(lambda: not any(map(alive, pids)))


def test_a_crash_while_timing_costs_only_the_cell(harness):
    cells = [["a", 1, ""], ["b", 1, "kill"], ["b", 8, "kill"], ["c", 1, ""]]
    step = harness.step("speed", "timing", alone=True, spec={"cells": cells})
    (outcome,) = harness.run(step)
    assert outcome.status == "ok"
    folder = harness.store.path(*step.id)
    reason = "killed by signal 9, most likely for lack of memory"
    assert json.loads((folder / "measured.json").read_text()) == [
        {"cell": "b", "batch_size": 1, "status": "oom", "reason": reason},
        {"cell": "b", "batch_size": 8, "status": "oom", "reason": reason},
    ]
    assert not (folder / "current.json").exists()
    assert "goes on without b at batch 1" in harness.output.getvalue()


def test_a_hang_while_timing_costs_only_the_cell(harness):
    cells = [["a", 1, "hang"], ["b", 1, ""]]
    step = harness.step("speed", "timing", alone=True, time_limit=1.0, spec={"cells": cells})
    assert harness.run(step)[0].status == "ok"
    (entry,) = json.loads((harness.store.path(*step.id) / "measured.json").read_text())
    assert (entry["cell"], entry["status"]) == ("a", "timeout")


def test_a_cell_is_left_out_only_once(harness):
    (outcome,) = harness.run(harness.step("speed", "stubborn", alone=True))
    assert outcome.status == "oom"
    assert sum(event == "begin-speed" for event in harness.events) == 2


def test_steps_know_their_threads_and_keep_freed_memory(harness, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    step = harness.step("a", "environment", threads=2)
    harness.run(step)
    variables = json.loads((harness.store.path(*step.id) / "environment.json").read_text())
    expected = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONHASHSEED": "0"}
    assert expected.items() <= variables.items()
    assert int(variables["MALLOC_TRIM_THRESHOLD_"]) > int(variables["MALLOC_MMAP_THRESHOLD_"]) >= 32 << 20
    assert "CUDA_VISIBLE_DEVICES" not in environment(1, None, base={})


def test_an_interrupted_run_ends_its_steps_and_can_be_resumed(harness):
    quick = harness.step("quick", seconds=9.0)
    endless = harness.step("endless", "forever")
    runner = harness.runner()
    pid_file = harness.store.partial(*endless.id) / "pid"
    with interrupting(lambda: harness.store.has(*quick.id) and pid_file.exists()), pytest.raises(Interrupted):
        runner.run([quick, endless])
    assert not alive(int(pid_file.read_text()))
    assert runner.outcomes[quick.id].status == "ok"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert harness.run(quick, replace(endless, spec=harness.step("endless").spec))[1].status == "ok"


@contextmanager
def interrupting(condition):
    """Send this process a Ctrl-C, from a process of its own, once `condition` holds."""
    pid = os.fork()
    if pid == 0:
        try:
            wait_for(condition)
            os.kill(os.getppid(), signal.SIGINT)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.waitpid(pid, 0)


def _start_runner(harness, *steps: Step) -> subprocess.Popen:
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


def test_no_step_outlives_a_killed_runner(harness):
    step = harness.step("endless", "orphan")
    file = harness.store.partial(*step.id) / "pids"
    with _start_runner(harness, step) as runner:
        wait_for(lambda: file.exists() and len(file.read_text().split()) == 2)
        pids = [int(p) for p in file.read_text().split()]
        assert all(map(alive, pids))
        runner.kill()
    wait_for(lambda: not any(map(alive, pids)), seconds=5)


def test_two_runs_share_a_store(harness):
    data = harness.step("data", "sleep", kind="prepare")
    models = [harness.step(str(i), "sleep", data) for i in range(3)]
    with _start_runner(harness, data, *models) as first, _start_runner(harness, data, *models) as second:
        assert first.wait(60) == second.wait(60) == 0
    assert sorted(harness.events) == sorted(f"{w}-{s.label}" for s in (data, *models) for w in ("begin", "end"))


def test_a_timed_step_waits_for_the_work_of_another_run(harness):
    timed = harness.step("timed", "sleep", alone=True, time_limit=0.8)  # waiting does not count
    with _start_runner(harness, harness.step("training", "sleep")) as other:
        wait_for(lambda: "begin-training" in harness.events)
        (outcome,) = harness.run(timed)
        assert other.wait(60) == 0
    assert outcome.status == "ok"
    assert harness.events == ["begin-training", "end-training", "begin-timed", "end-timed"]


def test_watching_a_step_takes_no_cpu(harness):
    step = harness.step("a", "orphan", time_limit=2.0)
    before = time.process_time()
    harness.run(step)
    assert time.process_time() - before < 0.1  # a poll every millisecond would take more


def test_progress_is_printed_plainly_where_there_is_no_terminal(harness):
    harness.run(harness.step("train ctc on dates"), harness.step("broken", "step failure"))
    lines = [line.split(" ", 1)[1] for line in harness.output.getvalue().splitlines()]
    assert lines[:2] == ["train ctc on dates: started", "broken: started"]
    assert "broken: failed: loss is nan at step 3" in lines
    assert "train ctc on dates: done in 0:00" in [line[:-1] + "0" for line in lines]
