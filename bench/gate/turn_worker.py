"""Decodes what it is told to, batch by batch, and says how long it took: one of two processes that take turns.

Run as a script: `turn_worker.py DESCRIPTION.json`. Everything but this file is imported from the checkout, which is
first on the path, so that both sides are timed by the same code and each decodes with its own. Requests and replies are
lines of JSON on standard input and output; the first reply says what could be loaded. It ends with its standard
input.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

SAMPLE_SEED = 1
WARM_UP_BATCHES = 3
MAX_REASON = 200


class UnknownHere(Exception):
    """This checkout is older than what it is asked for: a family, or an option."""


class Side:
    """The models of one checkout, and the batches that both decode."""

    def __init__(self, description: dict[str, Any]) -> None:
        import torch

        from bench.machine import synchroniser
        from bench.preparation import PreparedData

        torch.set_num_threads(description["threads"])
        self.description = description
        self.device: str = description["device"]
        self.synchronise = synchroniser(self.device)
        self.data = PreparedData(Path(description["parents"]["data"]))
        self.parents = {role: Path(path) for role, path in description["parents"].items()}
        self.batches = self._batches()
        self.systems: dict[str, tuple[Any, Any]] = {}
        """Model and settings by cell."""

    def _batches(self) -> dict[int, list[tuple[Any, Any]]]:
        """Return the padded batches of each size: the same random sentences, shortest first."""
        from bench.batching import pad_sources

        examples = self.data.examples(self.description["split"])
        rng = random.Random(SAMPLE_SEED)
        chosen = rng.sample(examples, min(self.description["sentences"], len(examples)))
        sources = sorted((pair.source for pair in self.data.encode(chosen)), key=len)
        sizes = self.description["batch_sizes"]
        return {
            size: [pad_sources(sources[i : i + size]) for i in range(0, max(1, len(sources) - size + 1), size)]
            for size in sizes
        }

    def load(self) -> dict[str, dict[str, Any]]:
        """Load all systems; return why for those that could not be."""
        failures = {}
        for number, cell in enumerate(self.description["cells"]):
            if cell["id"] not in self.description["excluded"]:
                try:
                    self.systems[cell["id"]] = self._load(number, cell)
                except Exception as error:
                    traceback.print_exc()
                    failures[cell["id"]] = {"reason": _reason(error), "unknown": isinstance(error, UnknownHere)}
        return failures

    def _load(self, number: int, cell: dict[str, Any]) -> tuple[Any, Any]:
        from bench.checkpoint import load_companions, load_model
        from bench.language_model import give_language_model
        from models.registry import load_family

        spec = self.data.data_spec
        try:
            family = load_family(cell["family"])
        except LookupError as error:
            raise UnknownHere(str(error)) from error
        settings = family.settings(**_known(family.settings, cell["settings"]))
        config = _known(family.config, cell["config"])
        companions = {
            role: {**other, "config": _known(load_family(other["family"]).config, other["config"])}
            for role, other in cell["companions"].items()
        }
        model = load_model(cell["family"], config, spec, self.parents[f"model{number}"], self.device)
        model.companions = load_companions(companions, spec, self.parents, self.device, number)
        give_language_model(model, settings, self.data)
        return model, settings

    def decode(self, cell: str, size: int, which: Sequence[int]) -> dict[str, Any]:
        """Decode the batches `which`; return the nanoseconds they took, their sentences and a digest of the outputs."""
        model, settings = self.systems[cell]
        batches = [self.batches[size][i] for i in which]
        outputs = []
        gc.collect()
        gc.disable()
        try:
            self.synchronise()
            start = time.perf_counter_ns()
            for src, src_len in batches:
                decoded = model.decode(src.to(self.device), src_len.to(self.device), settings)
                outputs.append((decoded.tokens.cpu(), decoded.lengths.cpu()))
            self.synchronise()
            nanoseconds = time.perf_counter_ns() - start
        finally:
            gc.enable()
        ids = [
            row[:length]
            for tokens, lengths in outputs
            for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)
        ]
        digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
        tokens = sum(map(len, ids))
        return {"nanoseconds": nanoseconds, "sentences": len(ids), "tokens": tokens, "digest": digest}

    def warm_up(self, cell: str, size: int) -> dict[str, Any]:
        """Decode short, middling and long batches twice; return what a batch took the second time."""
        last = len(self.batches[size]) - 1
        which = sorted({round(i * last / (WARM_UP_BATCHES - 1)) for i in range(WARM_UP_BATCHES)})
        self.decode(cell, size, which)
        return {"nanoseconds": self.decode(cell, size, which)["nanoseconds"] / len(which)}


def _known(options: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the values of options that this checkout has; one it lacks must be at its default on the other side.

    given: `values`, and the `defaults` that they have on the candidate's side.

    Raises:
        UnknownHere: one that it lacks is not.
    """
    values, defaults = given["values"], given["defaults"]
    lacking = [name for name in values if name not in options.model_fields]
    if asked := [name for name in lacking if values[name] != defaults.get(name)]:
        raise UnknownHere(f"no option {', '.join(asked)}")
    return {name: value for name, value in values.items() if name not in lacking}


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:MAX_REASON]


def serve(description: dict[str, Any], requests: TextIO, replies: TextIO) -> None:
    """Load everything, then answer requests until there are no more."""
    from bench.checkpoint import inference

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    side = Side(description)
    # Entered once: autocast lowers the weights at the first decoding and keeps them.
    with inference(side.device, description["dtype"]):
        failures = side.load()
        gc.collect()
        gc.freeze()  # what is loaded is never looked at again: each collection would take longer than most batches
        reply({"failures": failures, "batches": {size: len(batches) for size, batches in side.batches.items()}})
        for line in requests:
            request = json.loads(line)
            work = side.warm_up if request.pop("warm_up", False) else side.decode
            try:
                reply(work(**request))
            except Exception as error:
                traceback.print_exc()
                reply({"failure": _reason(error)})


def main(description: str) -> None:
    """Serve; see the module."""
    # What libraries print joins the log.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(json.loads(Path(description).read_text(encoding="utf-8")), sys.stdin, replies)


if __name__ == "__main__":
    main(sys.argv[1])
