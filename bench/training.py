"""The train step: one loop for every family; of a model it calls only `loss` and `decode`.

Randomness is stateless: step n draws from a generator seeded by (seed, n), and batch i of epoch e depends on
(seed, e, i) alone. So a run that was killed and resumed from its last checkpoint equals an undisturbed one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from bench.augmentation import spec_augment
from bench.batching import TrainingBatches
from bench.checkpoint import CONFIG_FILE, MODEL_FILE, load_companions, load_model
from bench.configs import TrainConfig
from bench.decoding import decode_corpus
from bench.distillation import read_targets
from bench.labels import read_labels
from bench.optimisation import learning_rate, make_optimizer
from bench.preparation import EncodedPair, PreparedData, build_task
from bench.quality import selection_value
from bench.search import best_trial, chosen, described
from bench.selection import CHECKPOINT, finish, take_over
from bench.steps import Progress, StepFailure, write_json
from bench.store import flush
from models.interface import UNK, Batch, Model
from models.registry import load_family
from models.weights import fill, start_encoder, weights_of

LOG_INTERVAL = 50


@dataclass
class TrainState:
    """Where a run is; with the tensors of the checkpoint, all that resuming needs."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    epoch: int = 0
    position: int = 0
    evaluations: int = 0
    loss_sum: float = 0.0
    """Sum of loss x tokens since the last evaluation."""
    loss_tokens: int = 0
    pairs: int = 0
    """Sentence pairs trained on, repeats counted."""
    counts: dict[str, int] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    """One entry an evaluation: step, tokens, seconds, loss (training, per token), score (development set)."""
    kept: list[dict[str, float]] = field(default_factory=list)
    """Snapshots on disk: evaluation number and score."""


def run(spec: dict[str, Any], folder: Path, parents: dict[str, Path], progress: Progress) -> None:
    """Train one model; write `model.safetensors` and `training.json`.

    With trials of a search among the parents, `trial0` and so on, which are as long as this training and of its seed,
    the best one is the result.

    Raises:
        StepFailure: the loss became NaN or infinite, or there is no target token to train on; but of a trial that is
            the result, a score of None.
    """
    if (folder / "training.json").exists():
        return  # killed when all was done but the artifact's last move
    if "trial0" in parents:
        best = parents[best_trial(parents["choice"])]
        if (best / MODEL_FILE).exists():  # else all have failed, and this says why
            take_over(best, folder, chosen(parents["choice"]))
            return
    try:
        _train(spec, folder, parents, progress)
    except StepFailure as error:
        if not spec.get("trial"):
            raise
        write_json(folder / "training.json", {"selection": {"score": None}, "failure": str(error)})


def _train(spec: dict[str, Any], folder: Path, parents: dict[str, Path], progress: Progress) -> None:
    choice = chosen(parents.get("choice"))
    config = TrainConfig(**{**spec["train"], **choice["train"]})
    data = PreparedData(parents["data"])
    family = load_family(spec["family"])
    pairs = training_pairs(data, parents.get("targets"), parents.get("labels"))
    # No decoder can emit the unknown word, so nothing is learned from a target that holds it.
    known = [pair for pair in pairs if UNK not in pair.target]
    left_out, pairs = len(pairs) - len(known), known
    if not any(pair.target for pair in pairs):
        raise StepFailure("every training target is empty or unknown words: the teacher has learned nothing")
    task = build_task(spec["task"], spec["task_config"])
    dev = data.examples("dev")[: config.dev_sentences]
    dev_pairs = data.encode(dev)
    model_config = family.config(**{**spec["config"], **choice["config"]})
    settings = family.settings(**model_config.development())

    def evaluate(model: Model) -> float:
        outputs = decode_corpus(model, [p.source for p in dev_pairs], settings, data.data_spec, 64, spec["dtype"])
        texts = [data.tokenizer.decode(o.tokens) for o in outputs]
        return selection_value(task.selection_metric, texts, dev)

    torch.manual_seed(spec["seed"])
    model = family.model(model_config, data.data_spec).to(spec["device"])
    init, taken = spec["init"], []
    if init is not None:
        taken = start_encoder(model, load_model(init["family"], init["config"], data.data_spec, parents["init"]))
    model.companions = load_companions(spec["companions"], data.data_spec, parents, spec["device"])
    model.begin_training()
    trainer = Trainer(model, pairs, config, spec["seed"], spec["dtype"], folder, evaluate, progress)
    trainer.train()
    started = None if init is None else {"system": init["system"], "tensors": taken}
    if choice["config"]:
        write_json(folder / CONFIG_FILE, choice["config"])
    searched = None if "choice" not in parents else described(choice)
    finish(trainer, data.data_spec, task.selection_metric, left_out, started, searched)


def training_pairs(data: PreparedData, targets: Path | None, labels: Path | None = None) -> list[EncodedPair]:
    """Return the training pairs.

    targets: a distill artifact whose outputs replace the targets; labels: a label artifact for these pairs.

    Raises:
        ValueError: an artifact belongs to other data.
    """
    pairs = data.encode(data.examples("train"))
    if targets is not None:
        distilled = read_targets(targets)
        if len(distilled) != len(pairs):
            raise ValueError(f"{len(distilled)} distilled targets for {len(pairs)} training pairs")
        pairs = [EncodedPair(p.source, t) for p, t in zip(pairs, distilled, strict=True)]
    if labels is not None:
        rows = read_labels(labels)
        if len(rows) != len(pairs):
            raise ValueError(f"labels for {len(rows)} of {len(pairs)} training pairs")
        pairs = [EncodedPair(p.source, p.target, row) for p, row in zip(pairs, rows, strict=True)]
    return pairs


class Trainer:
    """The loop with its checkpoints."""

    def __init__(
        self,
        model: Model,
        pairs: list[EncodedPair],
        config: TrainConfig,
        seed: int,
        precision: str,
        folder: Path,
        evaluate: Callable[[Model], float],
        progress: Progress,
    ) -> None:
        self.model = model
        self.config = config
        self.seed = seed
        self.folder = folder
        self.evaluate = evaluate
        self.progress = progress
        self.device = next(model.parameters()).device
        # What another process takes of a core must not come off the model's budget.
        alone = self.device.type == "cpu" and config.threads == 1
        self.clock = time.process_time if alone else time.perf_counter
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bfloat16")
        sizes = (config.batch_tokens, config.max_batch_sentences)
        self.batches = TrainingBatches(pairs, *sizes, seed, config.batch_frames, curriculum=config.curriculum)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(model, config)
        self.rng = torch.Generator(self.device)
        self.state = TrainState()
        self._resume()

    def share_done(self) -> float:
        """Return the share of the budget that is spent, 0-1."""
        budget = self.config.budget
        if budget.none:
            return 1.0
        if budget.target_tokens is not None:
            return min(1.0, self.state.tokens / budget.target_tokens)
        assert budget.minutes is not None
        return min(1.0, self.state.seconds / (60 * budget.minutes))

    def train(self) -> None:
        """Spend the budget, evaluating and keeping snapshots on the way."""
        if self.config.budget.none:
            return
        state = self.state
        self.model.train()
        last = self.clock()
        saved = time.perf_counter()
        started, tokens_at_start = last, state.tokens
        for epoch, position, batch in self.batches.stream(state.epoch, state.position):
            if state.evaluations >= self.config.evaluations:
                break
            tokens, loss, counts = self._step(batch.to(self.device))
            state.epoch, state.position = epoch, position
            state.step += 1
            state.tokens += tokens
            state.loss_sum += loss * tokens
            state.loss_tokens += tokens
            state.pairs += len(batch.tgt_len)
            for name, count in counts.items():
                state.counts[name] = state.counts.get(name, 0) + count
            now = self.clock()
            state.seconds += now - last
            last = now
            if state.step % LOG_INTERVAL == 0:
                speed = (state.tokens - tokens_at_start) / (now - started)
                self.progress(done=self.share_done(), loss=loss, tokens_per_second=speed)
            if self.share_done() >= (state.evaluations + 1) / self.config.evaluations:
                self._evaluate()
                now = self.clock()
                state.seconds += now - last
                last = now
            if time.perf_counter() - saved >= self.config.checkpoint_seconds:
                self._save()
                saved, last = time.perf_counter(), self.clock()
        self._save()

    def _step(self, batch: Batch) -> tuple[int, float, dict[str, int]]:
        """Make one update; return its target tokens, loss and counts."""
        # One number per step seeds dropout (the global generator) and the objective's own draws.
        step_seed = int(np.random.SeedSequence([self.seed, self.state.step]).generate_state(1, np.uint64)[0] >> 1)
        torch.manual_seed(step_seed)
        self.rng.manual_seed(step_seed)
        rate = learning_rate(self.config, self.share_done())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        self.model.progress = self.share_done()
        if self.config.spec_augment is not None and batch.src.is_floating_point():
            batch = replace(batch, src=spec_augment(batch.src, batch.src_len, self.config.spec_augment, self.rng))
        with self.autocast:
            losses = self.model.loss(batch, self.rng)
        num_tokens = int(batch.tgt_len.sum())  # what a budget counts is the same for every family, whatever it masks
        losses.total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        value = float(losses.total.detach())
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise StepFailure(f"training diverged at step {self.state.step}: loss {value}, gradient norm {float(norm)}")
        self.optimizer.step()
        return num_tokens, value, losses.counts

    def _evaluate(self) -> None:
        """Decode the development set, record a point of the learning curve, keep a snapshot of the weights."""
        state = self.state
        state.evaluations += 1
        self.model.eval()
        score = self.evaluate(self.model)
        self.model.train()
        loss = state.loss_sum / max(state.loss_tokens, 1)
        state.curve.append(
            {"step": state.step, "tokens": state.tokens, "seconds": state.seconds, "loss": loss, "score": score}
        )
        state.loss_sum, state.loss_tokens = 0.0, 0
        self.progress(done=self.share_done(), loss=loss, dev=score)
        save_file(weights_of(self.model), self._snapshot(state.evaluations))
        state.kept.append({"evaluation": state.evaluations, "score": score})
        count = self.config.average_count
        if self.config.average == "best":
            # Among equals the later one: it has seen more data.
            keep = sorted(state.kept, key=lambda k: (k["score"], k["evaluation"]))[-count:]
        else:
            best = max(state.kept, key=lambda k: (k["score"], k["evaluation"]))
            keep = [k for k in state.kept if k is best or k in state.kept[-count:]]
        dropped = [k for k in state.kept if k not in keep]
        state.kept = sorted(keep, key=lambda k: k["evaluation"])
        self._save()
        # Only after the checkpoint no longer names them.
        for entry in dropped:
            self._snapshot(int(entry["evaluation"])).unlink(missing_ok=True)

    def _snapshot(self, evaluation: int) -> Path:
        return self.folder / f"snapshot-{evaluation}.safetensors"

    def _save(self) -> None:
        """Write a resumable checkpoint: one file, so that weights, moments and position always belong together."""
        tensors = {f"model.{k}": v for k, v in weights_of(self.model).items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in moments.items()}
        temporary = self.folder / f"{CHECKPOINT}.tmp"
        save_file(tensors, temporary, metadata={"state": json.dumps(asdict(self.state))})
        flush(temporary)
        temporary.replace(self.folder / CHECKPOINT)

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            self.state = TrainState(**json.loads(file.metadata()["state"]))
        tensors = load_file(path, device=str(self.device))
        fill(self.model, {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, kind = name.split(".", 2)
                moments.setdefault(int(index), {})[kind] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def snapshots(self) -> list[tuple[float, dict[str, torch.Tensor]]]:
        """Return the kept snapshots with their scores, oldest first."""
        return [
            (k["score"], load_file(self._snapshot(int(k["evaluation"])), device=str(self.device)))
            for k in self.state.kept
        ]
