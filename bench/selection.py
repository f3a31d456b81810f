"""What training leaves: the best snapshot of the weights or their average, and the report of the run."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from bench.checkpoint import CONFIG_FILE, MODEL_FILE
from bench.search import Departures, described
from bench.steps import write_json
from models.interface import DataSpec
from models.weights import fill, weights_of

if TYPE_CHECKING:
    from bench.training import Trainer

CHECKPOINT = "checkpoint.safetensors"
"""What resuming needs."""


def finish(
    trainer: Trainer,
    data: DataSpec,
    metric: str,
    left_out: int = 0,
    started: dict[str, Any] | None = None,
    searched: str | None = None,
) -> None:
    """Choose between the best snapshot and the average, write the artifact and drop what only resuming needed.

    A model that was not trained is kept as it is.

    left_out: training pairs that were not trained on, for their target holds an unknown word; started: the system from
    whose encoder training started, and the names of the tensors that were taken; searched: the values that a search for
    hyper-parameters has chosen, in short.
    """
    snapshots = trainer.snapshots()
    untrained = (None, weights_of(trainer.model))
    best_score, chosen = max(reversed(snapshots), key=lambda s: s[0], default=untrained)  # among equals the latest
    averaged = len(snapshots) if trainer.config.average == "best" else min(len(snapshots), trainer.config.average_count)
    choice = "best" if snapshots else "untrained"
    score = best_score
    if averaged > 1:
        members = [weights for _, weights in snapshots[-averaged:]]
        mean = {k: torch.stack([m[k].float() for m in members]).mean(0).to(v.dtype) for k, v in members[0].items()}
        fill(trainer.model, mean)
        trainer.model.eval()
        mean_score = trainer.evaluate(trainer.model)
        if best_score is None or mean_score >= best_score:
            chosen, choice, score = mean, f"average of {averaged}", mean_score
    save_file(chosen, trainer.folder / MODEL_FILE)
    state = trainer.state
    parameters = sum(p.numel() for p in trainer.model.parameters())
    records = [
        {"metric": "parameters", "value": parameters, "unit": ""},
        {
            "metric": "train_tokens",
            "value": state.tokens,
            "unit": "tokens",
            "signature": _origin(started, searched),
        },
        {"metric": "train_minutes", "value": state.seconds / 60, "unit": "min"},
    ]
    if state.seconds:
        records.append({"metric": "train_tokens_per_second", "value": state.tokens / state.seconds, "unit": "tokens/s"})
    if "infeasible" in state.counts:
        share = 100 * state.counts["infeasible"] / max(state.pairs, 1)
        records.append({"metric": "infeasible_pairs", "value": share, "unit": "%"})
    if left_out:
        share = 100 * left_out / (left_out + len(trainer.batches.pairs))
        records.append({"metric": "unknown_targets", "value": share, "unit": "%"})
    write_json(
        trainer.folder / "training.json",
        {
            "curve": state.curve,
            "counts": state.counts,
            "init": started,
            "search": searched,
            "selection": {"metric": metric, "weights": choice, "score": score},
            "data": asdict(data),
            "records": records,
        },
    )
    for file in [trainer.folder / CHECKPOINT, *trainer.folder.glob("snapshot-*.safetensors")]:
        file.unlink(missing_ok=True)


def take_over(trial: Path, folder: Path, choice: Departures) -> None:
    """Make the trial of a search that was chosen the training itself; what it has otherwise is said as by `finish`."""
    report = json.loads((trial / "training.json").read_text(encoding="utf-8"))
    report["search"] = described(choice)
    for record in report["records"]:
        if record["metric"] == "train_tokens":
            record["signature"] = _origin(report["init"], report["search"])
    shutil.copyfile(trial / MODEL_FILE, folder / MODEL_FILE)
    if choice["config"]:
        write_json(folder / CONFIG_FILE, choice["config"])
    write_json(folder / "training.json", report)


def _origin(started: dict[str, Any] | None, searched: str | None) -> str:
    """Return what the table's head says of where a model comes from."""
    origin = [] if started is None else [f"init:{started['system']}"]
    return "|".join(origin + ([] if searched is None else [f"search:{searched}"]))
