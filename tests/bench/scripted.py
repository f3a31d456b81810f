"""A family that reverses its source and takes as long as it is told: on a clock of its own, or by sleeping."""

import json
import time

import torch
from safetensors.torch import save_file
from torch import nn

from bench.batching import pad
from bench.preparation import PreparedData
from bench.workload import Sentence, make_workload
from models.interface import Decoded, Family, Model, Options
from tests.bench import tiny

LOG_PROBABILITY = -0.5
"""The score that the family gives each token."""


class ScriptedClock:
    """Nanoseconds that pass only when a decoder says so."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now


CLOCK = ScriptedClock()
CALLS = []
"""Batch sizes of all decode calls, in order."""


class Config(Options):
    """Nothing to configure."""


class Settings(Options):
    """How it behaves."""

    ms_per_batch: float = 0.0
    """Milliseconds of a batch on the scripted clock."""
    ms_per_sentence: float = 0.0
    """Milliseconds of a sentence on the scripted clock."""
    sleep_ms: float = 0.0
    """Milliseconds that a batch sleeps."""
    memory: int = 1000
    """Sentences beyond which it runs out of memory."""
    error: str = ""
    """What it raises."""
    die_at: int = -1
    """The number of its decode call that is interrupted."""
    wrong_above: int = 1000
    """Batch size above which it forgets the last token of the longest sentence."""
    wrong_score: float | None = None
    """The score it gives a wrong output; by default the sum over the tokens it has."""


class Reverser(Model):
    def __init__(self, config, data):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.encoder = nn.Identity()
        self.decoder = nn.Identity()

    def loss(self, batch, rng):
        raise NotImplementedError

    def observed_modules(self):
        return {"encoder": [self.encoder], "decoder": [self.decoder]}

    def decode(self, src, src_len, settings):
        if settings.die_at == len(CALLS):
            raise KeyboardInterrupt
        CALLS.append(len(src))
        if settings.error:
            raise RuntimeError(settings.error)
        if len(src) > settings.memory:
            raise MemoryError
        CLOCK.now += round(1e6 * (settings.ms_per_batch + settings.ms_per_sentence * len(src)))
        time.sleep(settings.sleep_ms / 1000)
        self.encoder(src)
        for _ in range(int(src_len.max()) + 1):  # one pass for each token and one for the end, as an AR decoder
            self.decoder(src)
        rows = [row[:n][::-1] for row, n in zip(src.tolist(), src_len.tolist(), strict=True)]
        scores = [LOG_PROBABILITY * len(row) for row in rows]
        if len(src) > settings.wrong_above:
            longest = max(range(len(rows)), key=lambda i: len(rows[i]))
            rows[longest].pop()
            scores[longest] = LOG_PROBABILITY * len(rows[longest])
            if settings.wrong_score is not None:
                scores[longest] = settings.wrong_score
        tokens, lengths = pad(rows)
        return Decoded(tokens, lengths, torch.tensor(scores), src_len + 1)


FAMILY = Family("scripted", Config, Settings, Reverser, autoregressive=True, title="Scripted")


def cell(name, seed=1, **settings):
    """Describe a cell of this family."""
    return {
        "id": name, "label": f"label of {name}", "family": "tests.bench.scripted", "config": {},
        "settings": Settings(**settings).model_dump(), "seed": seed, "system": name, "data": "raw", "companions": {},
    }  # fmt: skip


def spec(cells, references=(), **speed):
    """Describe a measure step of `cells`."""
    speed = {"batch_sizes": [1, 4], "sentences": 12, "min_seconds": 0, "min_runs": 3, "threads": 1} | speed
    return {
        "cells": cells, "references": list(references), "speed": speed, "split": "test", "device": "cpu",
        "dtype": "float32",
    }  # fmt: skip


def prepare(folder, num_cells, **counts):
    """Write the artifacts that a measure step reads: data, one checkpoint, and hypotheses of it for each cell."""
    parents = {"data": tiny.prepare(folder / "data", **counts)}
    data = PreparedData(parents["data"])
    examples = data.examples("test")
    model = folder / "model"
    model.mkdir()
    save_file({"weight": torch.zeros(3)}, model / "model.safetensors")
    lines = []
    for example, pair in zip(examples, data.encode(examples), strict=True):
        tokens = pair.source[::-1]
        row = {"id": example.id, "hypothesis": data.tokenizer.decode(tokens), "tokens": tokens}
        lines.append(json.dumps({**row, "score": LOG_PROBABILITY * len(tokens)}))
    for i in range(num_cells):
        hypotheses = folder / f"hypotheses{i}"
        hypotheses.mkdir()
        (hypotheses / "hypotheses.jsonl").write_text("\n".join(lines) + "\n")
        parents |= {f"model{i}": model, f"hypotheses{i}": hypotheses}
    return parents


def batches_of(sources, size):
    """Make batches of sources, in order."""
    return make_workload([Sentence(str(i), "", source) for i, source in enumerate(sources)], size).batches


def find(rows, cell, metric, **where):
    """Return the only row of a metric."""
    found = [r for r in rows if r["cell"] == cell and r["metric"] == metric and where.items() <= r.items()]
    assert len(found) == 1, f"{len(found)} rows of {metric}"
    return found[0]
