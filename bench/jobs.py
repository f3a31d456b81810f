"""A step running in a process of its own: how it is started, heard, ended and judged."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.steps import CURRENT, Step, write_json
from bench.store import Store


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    status: str
    """ok | failed | oom | timeout | skipped."""
    reason: str = ""
    log: Path | None = None
    """What the step wrote to its standard error."""
    user_error: bool = False
    """The user can mend it: bad input."""


class Job:
    """A running step."""

    def __init__(
        self,
        step: Step,
        module: str,
        store: Store,
        gpu: str | None = None,
        excluded: list[dict[str, Any]] | None = None,
    ) -> None:
        """Start `step`, whose work is `module.run`.

        gpu: the CUDA device it may use; excluded: what to leave out (see `bench.steps`).
        """
        self.step, self.store, self.gpu = step, store, gpu
        self.excluded = excluded or []
        self.began = time.monotonic()
        self.deadline: float | None = None
        """When its time is up; None until it has started to work, or if there is no limit."""
        self.timed_out = False
        self._failure: dict[str, Any] | None = None
        self._unread = b""
        self.log = store.log(*step.id)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        description = self.log.with_suffix(".json")  # beside the log, so that the step can be done again by hand
        write_json(
            description,
            {
                "store": str(store.root.resolve()),
                "module": module,
                "kind": step.kind,
                "key": step.key,
                "label": step.label,
                "spec": step.spec,
                "parents": step.parents,
                "alone": step.alone,
                "excluded": self.excluded,
            },
        )
        with self.log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench.worker", str(description)],
                stdin=subprocess.PIPE,  # never written to: its end tells the child that this process is gone
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(step.threads, gpu, step.alone),
                start_new_session=True,  # Ctrl-C reaches only this process; the child's group can be killed whole
            )
        assert self.process.stdout is not None
        self.pipe = self.process.stdout.fileno()
        os.set_blocking(self.pipe, False)

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the progress messages that have come, and whether more can come."""
        reports: list[dict[str, Any]] = []
        while True:
            try:
                data = os.read(self.pipe, 1 << 16)
            except BlockingIOError:
                return reports, True
            if not data:
                return reports, False
            *lines, self._unread = (self._unread + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if message.get("event") == "failed":
                    self._failure = message
                elif message.get("event") == "started":
                    # Only now: waiting for another run that builds the same artifact does not count.
                    limit = self.step.time_limit
                    self.deadline = None if limit is None else time.monotonic() + limit
                else:
                    reports.append(message)

    def signal(self, number: int) -> None:
        """Send a signal to the step's whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def time_out(self) -> None:
        """Kill it because its time is up."""
        self.timed_out = True
        self.deadline = None
        self.signal(signal.SIGKILL)

    def close(self) -> None:
        """Collect the ended process and what it may have left running."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def outcome(self) -> Outcome:
        """Judge the ended process."""
        code = self.process.returncode
        if self.store.has(*self.step.id):
            return Outcome("ok")
        if self.timed_out:
            return Outcome("timeout", f"not done within {self.step.time_limit:g} s", self.log)
        if self._failure is not None:
            failure = self._failure
            return Outcome(failure["status"], failure["reason"], self.log, failure["user_error"])
        if code == -signal.SIGKILL:
            return Outcome("oom", "killed by signal 9, most likely for lack of memory", self.log)
        if code < 0:
            return Outcome("failed", f"killed by signal {-code} ({signal.Signals(-code).name})", self.log)
        return Outcome("failed", f"exited with code {code} without a result", self.log)

    def ended_at(self) -> dict[str, Any] | None:
        """Return the cell and batch size in which a timed step ended; None if it was to be left out already."""
        try:
            current = json.loads((self.store.partial(*self.step.id) / CURRENT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        pair = {name: current[name] for name in ("cell", "batch_size")}
        return None if any(pair.items() <= entry.items() for entry in self.excluded) else pair


def environment(
    threads: int, gpu: str | None, alone: bool = False, base: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment variables of a step that uses `threads` CPU threads and the CUDA device `gpu`.

    alone: no other step runs beside it; it is timed.
    """
    variables = {
        **base,
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),  # it imports what this process can
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # glibc returns freed blocks above 128 KiB to the system, and each new activation then costs page faults. Keep
        # them: tens of MiB that live for one training step come back in the next.
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
    }
    if alone:
        # glibc maps larger blocks anew each time whatever the threshold, and the logits of a large beam cost more in
        # page faults than in arithmetic. Take all from the heap, which is kept.
        variables["MALLOC_MMAP_MAX_"] = "0"
    else:
        # Waiting threads sleep: spinning ones make a run crawl as soon as any other process wants a core. What is timed
        # runs alone, and as fast as it would for its users: there they spin for a while, unless OMP_WAIT_POLICY is set.
        variables["OMP_WAIT_POLICY"] = "PASSIVE"
    if gpu is not None:
        variables["CUDA_VISIBLE_DEVICES"] = gpu
    return variables
