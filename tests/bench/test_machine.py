import json
import os
import subprocess
import sys
import time

import pytest
import torch

from bench import machine
from bench.machine import CpuSample


def test_busy_time_leaves_out_idle_and_waiting(tmp_path):
    stat = tmp_path / "stat"
    #                   user nice system idle iowait irq softirq steal guest guest_nice
    stat.write_text("cpu 100 20 30 5000 700 4 5 6 50 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    ticks = 100 + 20 + 30 + 4 + 5 + 6  # guest time is part of user time already
    assert machine.busy_seconds(stat) == ticks / os.sysconf("SC_CLK_TCK")


def test_a_system_that_does_not_tell_gives_none(tmp_path):
    assert machine.busy_seconds(tmp_path / "none") is None
    (tmp_path / "stat").write_text("")
    assert machine.busy_seconds(tmp_path / "stat") is None
    earlier = CpuSample(busy=1.0, own=0.0, wall=0.0)
    assert CpuSample(busy=None, own=1.0, wall=1.0).foreign_since(earlier) is None


def test_foreign_time_is_what_others_used():
    earlier = CpuSample(busy=100.0, own=10.0, wall=0.0)
    # All cores were busy for 7 s, 4.5 s of them with this process.
    assert CpuSample(busy=107.0, own=14.5, wall=5.0).foreign_since(earlier) == pytest.approx(2.5)


def test_the_own_work_is_seen_as_own():
    before = machine.sample_cpu()
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    after = machine.sample_cpu()
    assert after.own - before.own >= 0.2
    assert after.wall - before.wall >= 0.2 * 0.5


def test_the_work_of_a_process_that_it_started_is_its_own_too():
    code = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); sys.stdin.read()"
    before = machine.sample_cpu()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        after = machine.sample_cpu()
        child.stdin.close()
    assert after.own - before.own >= 0.25


def test_the_environment_is_json_and_its_fingerprint_tells_conditions_apart():
    one, two = machine.environment("cpu", "float32", 1), machine.environment("cpu", "float32", 2)
    assert json.loads(json.dumps(one)) == one
    assert one["threads"] == 1
    assert one["torch"] == torch.__version__
    assert one["device_name"] == machine.cpu_name() != ""
    assert one["fingerprint"] != two["fingerprint"]
    assert one["fingerprint"] == machine.environment("cpu", "float32", 1)["fingerprint"]


def test_its_arithmetic_is_told_by_what_rounds(monkeypatch):
    one, two = machine.environment("cpu", "float32", 1), machine.environment("cpu", "float32", 2)
    assert one["arithmetic"] == two["arithmetic"]  # times differ by threads, training has its own
    assert one["arithmetic"] != machine.environment("cpu", "bfloat16", 1)["arithmetic"]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    assert one["arithmetic"] != machine.environment("cpu", "float32", 1)["arithmetic"]
    assert one["fingerprint"] == machine.environment("cpu", "float32", 1)["fingerprint"]


def test_the_device_is_chosen_by_itself_or_checked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.resolve_device(None) == machine.resolve_device("auto") == "cpu"
    with pytest.raises(ValueError, match="torch sees no CUDA device"):
        machine.resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine.resolve_device("auto") == "cuda"
    assert machine.resolve_device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("requested", "device", "dtype"),
    [(None, "cuda", "bfloat16"), ("auto", "cpu", "float32"), ("float32", "cuda", "float32")],
)
def test_the_dtype_follows_the_device(requested, device, dtype):
    assert machine.resolve_dtype(requested, device) == dtype


def test_cuda_is_synchronised_and_the_cpu_is_not(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", calls.append)
    machine.synchroniser("cpu")()
    assert calls == []
    machine.synchroniser("cuda:0")()
    assert calls == ["cuda:0"]


def test_importing_it_does_not_import_torch():
    code = "import sys, bench.machine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
