"""Steps that are made up: each does what its spec says under `do`, and notes when it begins and ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.errors import DataError
from bench.steps import StepFailure, write_json


def run(spec, folder, parents, progress):
    events = Path(spec["events"])
    (events / f"{time.monotonic_ns()}-begin-{spec['name']}").touch()
    for role, parent in parents.items():
        assert (parent / "value.txt").exists(), f"no parent {role}"
    progress(done=0.5, loss=1.25)
    ACTIONS[spec.get("do", "nothing")](spec, folder)
    (folder / "value.txt").write_text(spec["name"])
    (events / f"{time.monotonic_ns()}-end-{spec['name']}").touch()


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
    visits = folder / "visits.txt"
    visits.write_text((visits.read_text() if visits.exists() else "") + "x")
    pairs = {(e["cell"], e["batch_size"]) for e in left_out}
    for cell, batch_size, deadly in spec["cells"]:
        if (cell, batch_size) in pairs:
            continue
        write_json(folder / "current.json", {"cell": cell, "batch_size": batch_size})
        if deadly == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if deadly == "kill once" and visits.read_text() == "x":
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
    "raise": lambda spec, folder: raise_(ValueError("first line\nlast line")),
    "step failure": lambda spec, folder: raise_(StepFailure("loss is nan at step 3")),
    "data error": lambda spec, folder: raise_(DataError("train.de: line 3 is empty")),
    "memory error": lambda spec, folder: raise_(MemoryError()),
    "torch oom": lambda spec, folder: raise_(OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
    "cpu oom": lambda spec, folder: raise_(RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes")),
    "kill": lambda spec, folder: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda spec, folder: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda spec, folder: os._exit(7),
    "print": lambda spec, folder: sys.stdout.write("not a message\n"),
    "count": count,
    "timing": timing,
    "stubborn": stubborn,
    "environment": lambda spec, folder: write_json(folder / "environment.json", dict(os.environ)),
}
