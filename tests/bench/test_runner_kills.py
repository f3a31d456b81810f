"""The runner when something is killed, hangs or is shared: steps, timed cells, the runner itself, two runners."""

import json
import os
import signal
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from bench.runner import Interrupted
from tests.bench.harness import Harness, alive, start_runner, wait_for


@pytest.fixture
def harness(tmp_path):
    return Harness(tmp_path)


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
    assert "goes on without b at batch 1: killed" in harness.output.getvalue()


def test_a_single_kill_while_timing_costs_nothing(harness):
    step = harness.step("speed", "timing", alone=True, spec={"cells": [["a", 1, "kill once"], ["b", 1, ""]]})
    assert harness.run(step)[0].status == "ok"
    assert json.loads((harness.store.path(*step.id) / "measured.json").read_text()) == []
    assert "starts again where it was" in harness.output.getvalue()


def test_a_hang_while_timing_costs_only_the_cell(harness):
    cells = [["a", 1, "hang"], ["b", 1, ""]]
    step = harness.step("speed", "timing", alone=True, time_limit=1.0, spec={"cells": cells})
    assert harness.run(step)[0].status == "ok"
    (entry,) = json.loads((harness.store.path(*step.id) / "measured.json").read_text())
    assert (entry["cell"], entry["status"]) == ("a", "timeout")


def test_a_cell_is_left_out_only_once(harness):
    (outcome,) = harness.run(harness.step("speed", "stubborn", alone=True))
    assert outcome.status == "oom"
    assert harness.events == ["begin-speed"] * 3  # at first, after one kill, and without the cell


def test_an_interrupted_run_ends_its_steps_and_can_be_resumed(harness):
    handler = signal.getsignal(signal.SIGINT)  # ignored, if the tests run in the background
    quick = harness.step("quick", seconds=9.0)
    endless = harness.step("endless", "forever")
    runner = harness.runner()
    pid_file = harness.store.partial(*endless.id) / "pid"
    with interrupting(lambda: harness.store.has(*quick.id) and pid_file.exists()), pytest.raises(Interrupted):
        runner.run([quick, endless])
    assert not alive(int(pid_file.read_text()))
    assert runner.outcomes[quick.id].status == "ok"
    assert signal.getsignal(signal.SIGINT) is handler
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


def test_no_step_outlives_a_killed_runner(harness):
    step = harness.step("endless", "orphan")
    file = harness.store.partial(*step.id) / "pids"
    with start_runner(harness, step) as runner:
        wait_for(lambda: file.exists() and len(file.read_text().split()) == 2)
        pids = [int(p) for p in file.read_text().split()]
        assert all(map(alive, pids))
        runner.kill()
    wait_for(lambda: not any(map(alive, pids)), seconds=5)


def test_two_runs_share_a_store(harness):
    data = harness.step("data", "sleep", kind="prepare")
    models = [harness.step(str(i), "sleep", data) for i in range(3)]
    with start_runner(harness, data, *models) as first, start_runner(harness, data, *models) as second:
        assert first.wait(60) == second.wait(60) == 0
    assert sorted(harness.events) == sorted(f"{w}-{s.label}" for s in (data, *models) for w in ("begin", "end"))


def test_a_timed_step_waits_for_the_work_of_another_run(harness):
    timed = harness.step("timed", "sleep", alone=True, time_limit=0.8)  # waiting does not count
    with start_runner(harness, harness.step("training", "sleep")) as other:
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
