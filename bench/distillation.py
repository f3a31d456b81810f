"""Sequence-level knowledge distillation (Kim & Rush 2016): the teacher's beam output replaces the training targets."""

from __future__ import annotations

import json
import time
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from bench.checkpoint import load_model
from bench.configs import DistillConfig
from bench.decoding import decode_corpus
from bench.preparation import PreparedData
from bench.steps import Progress, write_json
from bench.store import write_atomically
from models.registry import load_family


def run(spec: dict[str, Any], folder: Path, parents: dict[str, Path], progress: Progress) -> None:
    """Decode the training sources with the teacher; write `targets.jsonl` (ids, one sentence a line) and a report.

    Equal sources are decoded once. Work is kept in shards, so a killed run resumes at the last finished one.
    """
    if (folder / "distillation.json").exists():
        return  # killed when all was done but the artifact's last move
    config = DistillConfig(**spec["distill"])
    data = PreparedData(parents["data"])
    family = load_family(spec["family"])
    model = load_model(spec["family"], spec["config"], data.data_spec, parents["model"], spec["device"])
    search: dict[str, Any] = {"beam": config.beam}
    if config.beam > 1:
        search |= {"length_penalty": config.length_penalty, "alpha": config.alpha}
    settings = family.settings.model_validate(search)
    sources = [pair.source for pair in data.encode(data.examples("train"))]
    # No two recordings are equal; of texts that are, the first one stands for all.
    first: dict[Hashable, int] = {}
    owners = [first.setdefault(i if data.speech else tuple(s), i) for i, s in enumerate(sources)]
    unique = sorted(set(owners), key=lambda i: (-len(sources[i]), i))
    size = config.shard_sentences
    decoded: dict[int, list[int]] = {}
    started, fresh_tokens = time.perf_counter(), 0
    for start in range(0, len(unique), size):
        shard = unique[start : start + size]
        file = folder / f"shard-{start // size:06d}.json"
        if file.exists():
            targets = json.loads(file.read_text(encoding="utf-8"))
        else:
            outputs = decode_corpus(
                model,
                [sources[i] for i in shard],
                settings,
                data.data_spec,
                config.batch_sentences,
                spec["dtype"],
                max_tokens=config.batch_frames if data.speech else config.batch_tokens,
            )
            targets = [o.tokens for o in outputs]
            write_atomically(file, json.dumps(targets))
            fresh_tokens += sum(map(len, targets))
        decoded.update(zip(shard, targets, strict=True))
        speed = fresh_tokens / (time.perf_counter() - started)
        progress(done=min(1.0, (start + size) / len(unique)), tokens_per_second=speed)
    lines = [json.dumps(decoded[i]) for i in owners]
    write_atomically(folder / "targets.jsonl", "\n".join(lines) + "\n")
    write_json(
        folder / "distillation.json",
        {
            "sentences": len(sources),
            "distinct_sources": len(unique),
            "tokens": sum(map(len, decoded.values())),
            "empty_outputs": sum(not decoded[i] for i in owners),
        },
    )
    for file in folder.glob("shard-*.json"):
        file.unlink()


def read_targets(folder: Path) -> list[list[int]]:
    """Return the distilled targets of a distill artifact, one id list per training sentence."""
    with (folder / "targets.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
