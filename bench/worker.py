"""`python -m bench.worker STEP.json`: does one step in a process of its own.

Standard output carries JSON lines: progress, `{"event": "started"}` once the locks are held, and
`{"event": "failed", "status", "reason", "user_error"}` before a failing exit. All else that is printed goes to
standard error. The exit code is 0 if the artifact is complete.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import stat
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from bench.errors import UserError, reason_of
from bench.steps import CURRENT, EXCLUDED, JsonProgress, StepFailure, write_json
from bench.store import Store

PROGRESS_SECONDS = 0.5
PROGRESS_SECONDS_TIMED = 5.0
"""A timed step reports seldom: each report wakes the parent."""


def perform(description: dict[str, Any], progress: JsonProgress) -> None:
    """Do the step that `description` (see `bench.runner`) describes."""
    store = Store(Path(description["store"]))
    # Timed steps of one run must not overlap with work of another run on the same store either.
    with store.lock("machine", shared=not description["alone"]):

        def make(folder: Path) -> None:
            progress.write({"event": "started"})
            (folder / CURRENT).unlink(missing_ok=True)
            (folder / EXCLUDED).unlink(missing_ok=True)
            if description["excluded"]:
                write_json(folder / EXCLUDED, description["excluded"])
            began = time.monotonic()
            parents = {role: store.path(*identity) for role, identity in description["parents"].items()}
            importlib.import_module(description["module"]).run(description["spec"], folder, parents, progress)
            (folder / CURRENT).unlink(missing_ok=True)
            made_by = {name: description[name] for name in ("kind", "key", "label", "parents", "spec")}
            write_json(folder / "step.json", {**made_by, "seconds_since_resumed": time.monotonic() - began})

        store.build(description["kind"], description["key"], make)


def explain(error: BaseException) -> dict[str, Any]:
    """Return the message that reports `error`: its status, its reason in one line, whether a user can mend it."""
    text = str(error)
    known = isinstance(error, UserError | StepFailure)
    # By name, for torch is not imported here; its CPU allocator raises a plain RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        status = "oom"
    else:
        status = "failed"
    reason = text if known else reason_of(error)
    return {"event": "failed", "status": status, "reason": reason, "user_error": isinstance(error, UserError)}


def die_with_parent() -> None:
    """Kill this process group when standard input, a pipe that the parent holds open, closes: the parent is gone."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=watch, daemon=True).start()


def main(path: str) -> int:
    """Do the step described in the file `path`; return the exit code."""
    die_with_parent()
    description = json.loads(Path(path).read_text(encoding="utf-8"))
    # Keep the pipe to ourselves, and let whatever libraries print join the log.
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    progress = JsonProgress(messages, PROGRESS_SECONDS_TIMED if description["alone"] else PROGRESS_SECONDS)
    try:
        perform(description, progress)
    except BaseException as error:
        traceback.print_exc()
        progress.write(explain(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
