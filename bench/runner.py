"""Does steps in processes of their own: as many side by side as the machine carries, timed ones alone.

A step that crashes, runs out of memory or hangs becomes an outcome with a status, what depends on it is skipped, and
the rest goes on. Failures are not kept: the next run tries them again. While steps run, this process sleeps in
`select`; it wakes for their messages (which they send seldom), their ends and their time limits.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import FrameType, TracebackType
from typing import Any

from bench.jobs import Job, Outcome
from bench.progress import Display
from bench.steps import MODULES, Step
from bench.store import Store

StepId = tuple[str, str]

TERMINATION_SECONDS = 3.0
"""How long an interrupted step may take to end before it is killed."""


class Interrupted(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM); its steps have been ended."""


@dataclass(frozen=True)
class Resources:
    """What steps may use at a time."""

    cores: int
    """CPU threads of all running steps together."""
    gpus: tuple[str, ...] = ()
    """CUDA devices, as CUDA_VISIBLE_DEVICES names them; steps whose spec says `device: cuda` run on them."""
    jobs: int | None = None
    """Largest number of steps; by default as many as cores allow, and one per GPU of those that use one."""


class Runner:
    """Runs steps and remembers what became of each, also from one call of `run` to the next."""

    def __init__(
        self, store: Store, resources: Resources, display: Display, modules: Mapping[str, str] = MODULES
    ) -> None:
        self.store = store
        self.resources = resources
        self.display = display
        self.modules = modules
        self.outcomes: dict[StepId, Outcome] = {}
        self.executed: set[StepId] = set()
        """Steps that were started here, as opposed to found complete."""
        self._pending: dict[StepId, Step] = {}
        self._excluded: dict[StepId, list[dict[str, Any]]] = {}
        self._deaths: set[tuple[StepId, str, int | None]] = set()
        """Where timed steps have died once."""
        self._jobs: list[Job] = []

    def run(self, steps: Iterable[Step]) -> dict[StepId, Outcome]:
        """Do `steps`, whose parents are among them or were done before, and return their outcomes.

        Raises:
            Interrupted: this process got SIGINT or SIGTERM; finished steps and checkpoints are kept.
        """
        wanted = {step.id: step for step in steps}
        for identity, step in wanted.items():
            if self.store.has(*identity):
                self.outcomes[identity] = Outcome("ok")
            elif identity not in self.outcomes:
                self._pending[identity] = step
        ranks = chain_seconds(wanted.values())
        with _Wakeups() as wakeups:
            try:
                while self._pending or self._jobs:
                    self._skip_dependants()
                    self._start_ready(ranks, wakeups)
                    if self._jobs:
                        self._wait(wakeups)
                    else:
                        assert not self._pending, "steps depend on each other in a circle"
            finally:
                self._terminate()
                self._pending.clear()
        return {identity: self.outcomes[identity] for identity in wanted}

    def _skip_dependants(self) -> None:
        """Settle the steps that cannot be done because one before them failed."""
        skipped = True
        while skipped:
            skipped = False
            for step in list(self._pending.values()):
                outcome = self._failure_before(step)
                if outcome is not None:
                    del self._pending[step.id]
                    self._settle(step, outcome, seconds=0.0)
                    skipped = True

    def _failure_before(self, step: Step) -> Outcome | None:
        for parent in step.parents.values():
            outcome = self.outcomes.get(parent)
            if outcome is not None and outcome.status != "ok":
                # The first cause is handed on: every reason names what actually failed.
                first = outcome.status != "skipped"
                reason = f"{parent[0]} {outcome.status}: {outcome.reason}" if first else outcome.reason
                return Outcome("skipped", reason, outcome.log)
        return None

    def _start_ready(self, ranks: Mapping[StepId, float], wakeups: _Wakeups) -> None:
        """Start the steps that can start, longest remaining chain first; timed ones when nothing else is left."""
        busy = {*self._pending, *(job.step.id for job in self._jobs)}
        ready = [step for step in self._pending.values() if busy.isdisjoint(step.parents.values())]
        ready.sort(key=lambda step: (step.alone, -ranks[step.id]))
        for step in ready:
            gpu = self._free_gpu() if _uses_gpu(step) else None
            if not self._fits(step, gpu):
                break
            del self._pending[step.id]
            self.executed.add(step.id)
            self.display.begin(step)
            job = Job(step, self.modules[step.kind], self.store, gpu, self._excluded.get(step.id))
            self._jobs.append(job)
            wakeups.selector.register(job.pipe, selectors.EVENT_READ, job)

    def _fits(self, step: Step, gpu: str | None) -> bool:
        if not self._jobs:
            return True
        if step.alone or any(job.step.alone for job in self._jobs):
            return False
        if self.resources.jobs is not None and len(self._jobs) >= self.resources.jobs:
            return False
        if _uses_gpu(step) and gpu is None:
            return False
        return sum(job.step.threads for job in self._jobs) + step.threads <= self.resources.cores

    def _free_gpu(self) -> str | None:
        """Return the least used GPU; None if all are taken, unless `jobs` asks for several steps on each."""
        users = {gpu: sum(job.gpu == gpu for job in self._jobs) for gpu in self.resources.gpus}
        gpu = min(users, key=lambda name: users[name], default=None)
        return gpu if gpu is None or users[gpu] == 0 or self.resources.jobs is not None else None

    def _wait(self, wakeups: _Wakeups) -> None:
        """Sleep until something happens, then take it in."""
        deadlines = [job.deadline for job in self._jobs if job.deadline is not None]
        timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        for key, _ in wakeups.selector.select(timeout):
            if key.data is None:
                wakeups.drain()
            elif not self._read(key.data):
                wakeups.selector.unregister(key.fd)
        if wakeups.interrupted:
            raise Interrupted
        for job in list(self._jobs):
            if job.process.poll() is not None:
                self._end(job, wakeups)
            elif job.deadline is not None and time.monotonic() >= job.deadline:
                job.time_out()

    def _read(self, job: Job) -> bool:
        reports, more = job.read()
        for report in reports:
            self.display.update(job.step, report)
        return more

    def _end(self, job: Job, wakeups: _Wakeups) -> None:
        """Take in that the process of a step has ended."""
        self._read(job)
        with contextlib.suppress(KeyError):
            wakeups.selector.unregister(job.pipe)
        job.close()
        self._jobs.remove(job)
        outcome = job.outcome()
        pair = None if outcome.status == "ok" or outcome.user_error else job.ended_at()
        if pair is None:
            self._settle(job.step, outcome, seconds=time.monotonic() - job.began)
        else:
            self._go_on(job, outcome, pair)

    def _go_on(self, job: Job, outcome: Outcome, pair: dict[str, Any]) -> None:
        """Start a timed step again that ended while it timed one cell; the second time, without that cell."""
        self._pending[job.step.id] = job.step
        place = (job.step.id, pair["cell"], pair["batch_size"])
        if place not in self._deaths and outcome.status != "timeout":
            # A kill may have come from outside. What cannot be timed dies at the same place again.
            self._deaths.add(place)
            self.display.note(f"{job.step.label}: starts again where it was: {outcome.reason}")
            return
        self._excluded[job.step.id] = [*job.excluded, {**pair, "status": outcome.status, "reason": outcome.reason}]
        where = pair["cell"] if pair["batch_size"] is None else f"{pair['cell']} at batch {pair['batch_size']}"
        self.display.note(f"{job.step.label}: goes on without {where}: {outcome.reason}")

    def _settle(self, step: Step, outcome: Outcome, seconds: float) -> None:
        self.outcomes[step.id] = outcome
        self.display.end(step, outcome.status, outcome.reason, seconds)

    def _terminate(self) -> None:
        """End all running steps: politely, then by force."""
        for job in self._jobs:
            job.signal(signal.SIGTERM)
        until = time.monotonic() + TERMINATION_SECONDS
        for job in self._jobs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.process.wait(max(0.0, until - time.monotonic()))
            job.close()
            if job.outcome().status == "ok":  # it was just done
                self._settle(job.step, Outcome("ok"), seconds=time.monotonic() - job.began)
        self._jobs.clear()


def _uses_gpu(step: Step) -> bool:
    return str(step.spec.get("device", "")).startswith("cuda")


def chain_seconds(steps: Iterable[Step]) -> dict[StepId, float]:
    """Return, for each step, the estimated seconds from its start to the end of the longest chain that needs it."""
    by_id = {step.id: step for step in steps}
    children: dict[StepId, list[StepId]] = {identity: [] for identity in by_id}
    for step in by_id.values():
        for parent in step.parents.values():
            if parent in children:
                children[parent].append(step.id)

    @cache
    def rank(identity: StepId) -> float:
        return by_id[identity].seconds + max((rank(child) for child in children[identity]), default=0.0)

    return {identity: rank(identity) for identity in by_id}


class _Wakeups:
    """A selector that also wakes for signals: ends of children, Ctrl-C and SIGTERM."""

    def __enter__(self) -> _Wakeups:
        self.selector = selectors.DefaultSelector()
        self.interrupted = False
        self._receiver, self._sender = socket.socketpair()
        for end in (self._receiver, self._sender):
            end.setblocking(False)
        self.selector.register(self._receiver, selectors.EVENT_READ, None)
        self._previous_fd = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._previous = {
            signal.SIGINT: signal.signal(signal.SIGINT, self._interrupt),
            signal.SIGTERM: signal.signal(signal.SIGTERM, self._interrupt),
            # Python passes on only signals that have a handler.
            signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None),
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self.selector.close()
        self._receiver.close()
        self._sender.close()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True

    def drain(self) -> None:
        """Forget the wake-ups that have come."""
        with contextlib.suppress(BlockingIOError):
            while self._receiver.recv(4096):
                pass
