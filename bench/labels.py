"""The label step: integers that a family's objective needs beside source and target (see `Family.labels`)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from bench.batching import collate
from bench.checkpoint import inference, load_companions
from bench.decoding import length_order
from bench.distillation import read_targets
from bench.fertilities import fertilities
from bench.preparation import EncodedPair, PreparedData
from bench.steps import Progress, write_json
from bench.store import write_atomically
from models.interface import BLANK, PAD, Model

BATCH_SENTENCES = 64


def run(spec: dict[str, Any], folder: Path, parents: dict[str, Path], progress: Progress) -> None:
    """Label the training pairs; write `labels.jsonl` (one list of integers a pair) and a report.

    The targets are the distilled ones if the parents hold them.
    """
    data = PreparedData(parents["data"])
    pairs = data.encode(data.examples("train"))
    if "targets" in parents:
        pairs = [EncodedPair(p.source, t) for p, t in zip(pairs, read_targets(parents["targets"]), strict=True)]
    began = time.perf_counter()
    progress(done=0.0)
    if "companions" not in spec:
        sources: list[Any] = [p.source for p in pairs]
        rows = fertilities(sources, [p.target for p in pairs], spec["max_fertility"], spec["seed"])
    else:
        ctc = load_companions(spec["companions"], data.data_spec, parents, spec["device"])["ctc"]
        rows = best_alignments(ctc, pairs, spec["device"], spec["dtype"], progress)
        if spec["labels"] == "fertility":
            rows = [token_starts(row, ctc.upsample.factor) for row in rows]  # type: ignore[union-attr,arg-type]
    write_atomically(folder / "labels.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    without = sum(not row and bool(pair.target) for row, pair in zip(rows, pairs, strict=True))
    seconds = time.perf_counter() - began
    write_json(folder / "labels.json", {"pairs": len(pairs), "without_labels": without, "seconds": seconds})


def best_alignments(
    ctc: Model, pairs: list[EncodedPair], device: str, precision: str, progress: Progress
) -> list[list[int]]:
    """Return the most probable alignment of each pair under a CTC model: one symbol a frame, none if it cannot fit."""
    rows: list[list[int]] = [[] for _ in pairs]
    order = length_order([p.source for p in pairs])
    for start in range(0, len(order), BATCH_SENTENCES):
        indices = order[start : start + BATCH_SENTENCES]
        batch = collate([pairs[i] for i in indices]).to(device)
        with inference(device, precision):
            paths, feasible = ctc.best_alignment(batch)  # type: ignore[operator]
        for i, path, fits in zip(indices, paths.tolist(), feasible.tolist(), strict=True):
            rows[i] = [symbol for symbol in path if symbol != PAD] if fits else []
        progress(done=(start + len(indices)) / len(order))
    return rows


def token_starts(alignment: list[int], frames: int) -> list[int]:
    """Return how many tokens begin at each encoder position, whose frames stand in the alignment one by one.

    alignment: a symbol or blank per frame, empty if the target does not fit; frames: per position.
    """
    begins = [s not in (BLANK, before) for s, before in zip(alignment, [BLANK, *alignment], strict=False)]
    return [sum(begins[i : i + frames]) for i in range(0, len(begins), frames)]


def read_labels(folder: Path) -> list[list[int]]:
    """Return the labels of a label artifact, one list per training pair."""
    with (folder / "labels.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
