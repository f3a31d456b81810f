"""The two processes that decode in turn: started from two checkouts, asked one at a time, replaced if they die."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.jobs import environment

SCRIPT = Path(__file__).with_name("turn_worker.py")
LOADING_SECONDS = 600.0
REPLY_SECONDS = 900.0
"""So long at most may a few batches take."""


class Died(Exception):
    """A process has ended, or does not answer."""

    side = 0
    """Number of the checkout that it ran."""


@dataclass(frozen=True)
class Checkout:
    """A state of the code, and the Python that runs it."""

    root: Path
    interpreter: Path
    commit: str = ""
    """Its hash; empty for the working tree."""


class TurnWorker:
    """A process that decodes with the code of `checkout`."""

    def __init__(self, checkout: Checkout, description: Mapping[str, Any], log: Path) -> None:
        """Start it; what it prints goes to `log`."""
        self.log = log
        self.folder = tempfile.TemporaryDirectory(prefix="natbench-gate-")
        file = Path(self.folder.name) / "description.json"
        file.write_text(json.dumps(description), encoding="utf-8")
        variables = environment(description["threads"], None, alone=True)
        if description["threads"] > 1:
            # Threads that spin while the other side works would take the cores from it.
            variables["OMP_WAIT_POLICY"] = "PASSIVE"
        # Families of the user's own lie elsewhere on the path; what both sides have comes from each side's own.
        own = [part for part in variables["PYTHONPATH"].split(os.pathsep) if not (Path(part) / "bench").is_dir()]
        variables["PYTHONPATH"] = os.pathsep.join([str(checkout.root), *own])
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [checkout.interpreter, "-P", SCRIPT, file],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=checkout.root,
                env=variables,
            )
        self._unread = b""

    def ready(self) -> dict[str, Any]:
        """Wait until it has loaded what it can; return its report.

        Raises:
            Died: it has ended instead.
        """
        return self._reply(LOADING_SECONDS)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return the reply.

        Raises:
            Died: there is none.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Died(self._ending()) from None
        return self._reply(REPLY_SECONDS)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.folder.cleanup()

    def _reply(self, seconds: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        while b"\n" not in self._unread:
            if not select.select([pipe], [], [], seconds)[0]:
                raise Died(f"no answer within {seconds:g} s")
            data = os.read(pipe, 1 << 16)
            if not data:
                raise Died(self._ending())
            self._unread += data
        line, self._unread = self._unread.split(b"\n", 1)
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _ending(self) -> str:
        code = self.process.wait()
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        how = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"the process was {how}" if code < 0 else f"the process {how}: {lines[-1] if lines else 'no message'}"


@dataclass(frozen=True)
class Failure:
    """Why a side cannot decode a cell."""

    reason: str
    unknown: bool = False
    """It is older than what it is asked for."""


Failures = dict[tuple[str, int | None], Failure]
"""By cell and batch size; no batch size: the cell cannot be loaded."""


class Turns:
    """Both sides with everything loaded."""

    def __init__(
        self,
        checkouts: Sequence[Checkout],
        description: Mapping[str, Any],
        log: Path,
        excluded: Sequence[str] = (),
        first: int = 0,
    ) -> None:
        """Start both.

        Args:
            checkouts: the code of the two sides.
            description: what to load, as `bench.gate.turn_worker` reads it.
            log: the file to which both print.
            excluded: cells to leave out.
            first: the side to start first.

        Raises:
            Died: a side ended before it was ready.
        """
        self.checkouts, self.description, self.log = checkouts, dict(description), log
        self.excluded = list(excluded)
        self.failures: tuple[Failures, Failures] = ({}, {})
        """By side."""
        self.batches: dict[int, int] = {}
        """Batches of each size."""
        self.workers: dict[int, TurnWorker] = {}
        try:
            for side in (first, 1 - first):
                self._start(side)
        except BaseException:
            self.close()
            raise

    def _start(self, side: int) -> None:
        description = {**self.description, "excluded": self.excluded}
        self.workers[side] = TurnWorker(self.checkouts[side], description, self.log)
        try:
            report = self.workers[side].ready()
        except Died as death:
            death.side = side
            raise
        self.batches = {int(size): count for size, count in report["batches"].items()}
        self.failures[side].update({(cell, None): Failure(**failure) for cell, failure in report["failures"].items()})

    def ask(self, side: int, cell: str, size: int, **request: Any) -> dict[str, Any] | None:
        """Ask one side about a cell at a batch size; None if it cannot do that, and then its failures say why.

        Raises:
            Died: it has died of that, and what replaces it does not start.
        """
        failures = self.failures[side]
        if (cell, None) in failures or (cell, size) in failures:
            return None
        try:
            reply = self.workers[side].ask(cell=cell, size=size, **request)
        except Died as death:
            failures[cell, size] = Failure(str(death))
            self.workers[side].close()
            self._start(side)
            return None
        if "failure" in reply:
            failures[cell, size] = Failure(reply["failure"])
            return None
        return reply

    def close(self) -> None:
        """End both."""
        for worker in self.workers.values():
            worker.close()
