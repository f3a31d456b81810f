"""The runner with made-up steps: order, side by side, failures and what depends on them."""

import json
from dataclasses import replace

import pytest

from bench.jobs import environment
from bench.runner import chain_seconds
from tests.bench.harness import Harness


@pytest.fixture
def harness(tmp_path):
    return Harness(tmp_path)


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
        ("raise", "failed", "ValueError: first line"),
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


def test_steps_know_their_threads_and_keep_freed_memory(harness, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    step = harness.step("a", "environment", threads=2)
    harness.run(step)
    variables = json.loads((harness.store.path(*step.id) / "environment.json").read_text())
    expected = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONHASHSEED": "0"}
    assert expected.items() <= variables.items()
    assert int(variables["MALLOC_TRIM_THRESHOLD_"]) > int(variables["MALLOC_MMAP_THRESHOLD_"]) >= 32 << 20
    assert "CUDA_VISIBLE_DEVICES" not in environment(1, None, base={})


def test_threads_of_timed_steps_wait_as_the_user_says():
    assert "OMP_WAIT_POLICY" not in environment(2, None, alone=True, base={})
    assert environment(2, None, alone=True, base={"OMP_WAIT_POLICY": "ACTIVE"})["OMP_WAIT_POLICY"] == "ACTIVE"
    assert environment(2, None, base={"OMP_WAIT_POLICY": "ACTIVE"})["OMP_WAIT_POLICY"] == "PASSIVE"


def test_progress_is_printed_plainly_where_there_is_no_terminal(harness):
    harness.run(harness.step("train ctc on dates"), harness.step("broken", "step failure"))
    lines = [line.split(" ", 1)[1] for line in harness.output.getvalue().splitlines()]
    assert lines[:2] == ["train ctc on dates: started", "broken: started"]
    assert "broken: failed: loss is nan at step 3" in lines
    assert "train ctc on dates: done in 0:00" in [line[:-1] + "0" for line in lines]
