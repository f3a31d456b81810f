import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench import training
from bench.configs import TrainConfig
from bench.steps import StepFailure
from models.interface import UNK
from models.transformer import Transformer
from tests.bench import tiny

ROOT = Path(__file__).parents[2]
CHILD = """
import json, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from bench import training
from tests.bench import tiny
folder, data, spec = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
training.run(spec, folder, {"data": data}, tiny.silent)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.prepare(tmp_path_factory.mktemp("data") / "copy")


def train(folder, data, spec, **parents):
    folder.mkdir(parents=True, exist_ok=True)
    training.run(spec, folder, {"data": data, **parents}, tiny.silent)
    return json.loads((folder / "training.json").read_text())


def same_run(a, b):
    """Equal learning curves but for wall-clock time, and bit-equal weights."""
    curves = [[{k: v for k, v in point.items() if k != "seconds"} for point in run["curve"]] for run in (a[1], b[1])]
    assert curves[0] == curves[1]
    weights = [load_file(run[0] / "model.safetensors") for run in (a, b)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.mark.parametrize("family", ["transformer", "ctc"])
def test_a_run_killed_anywhere_and_resumed_equals_an_undisturbed_one(family, data, tmp_path):
    spec = tiny.spec(family, checkpoint_seconds=0.0, budget={"target_tokens": 6000})
    if family == "ctc":
        spec["config"]["upsampling"] = 2
    whole = train(tmp_path / "whole", data, spec)
    killed = tmp_path / "killed"
    killed.mkdir()
    command = [sys.executable, "-c", CHILD, str(killed), str(data), json.dumps(spec)]
    kills = 0
    for _ in range(50):
        child = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        before = checkpoint_time(killed)
        deadline = time.time() + 60
        while child.poll() is None and time.time() < deadline:
            # Kill some time after this process has written a checkpoint of its own.
            if kills < 2 and checkpoint_time(killed) > before:
                time.sleep(0.05 * (kills + 1))
                child.send_signal(signal.SIGKILL)
                kills += child.wait() == -signal.SIGKILL
                break
            time.sleep(0.005)
        if child.wait() == 0:
            break
    assert kills == 2
    resumed = json.loads((killed / "training.json").read_text())
    same_run((tmp_path / "whole", whole), (killed, resumed))


def checkpoint_time(folder):
    file = folder / training.CHECKPOINT
    return file.stat().st_mtime_ns if file.exists() else 0


def test_training_learns_and_reports(data, tmp_path):
    report = train(tmp_path / "run", data, tiny.spec(budget={"target_tokens": 60_000}, evaluations=3))
    losses = [point["loss"] for point in report["curve"]]
    assert len(losses) == 3
    # Knowing only how long targets are costs log 6 nats a word: six words, each as likely as the other.
    assert losses[0] > losses[-1]
    assert losses[-1] < 0.5 * math.log(6)
    values = {r["metric"]: r["value"] for r in report["records"]}
    assert 60_000 <= values["train_tokens"] < 60_100
    assert values["parameters"] == sum(t.numel() for t in load_file(tmp_path / "run" / "model.safetensors").values())
    assert values["train_tokens_per_second"] == pytest.approx(values["train_tokens"] / values["train_minutes"] / 60)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["model.safetensors", "training.json"]


def test_seeds_differ_and_a_seed_repeats(data, tmp_path):
    runs = [
        (tmp_path / str(i), train(tmp_path / str(i), data, tiny.spec() | {"seed": s})) for i, s in enumerate((1, 1, 2))
    ]
    same_run(runs[0], runs[1])
    assert runs[0][1]["curve"] != runs[2][1]["curve"]


def test_a_nan_loss_stops_the_run_and_says_where(data, tmp_path, monkeypatch):
    loss = Transformer.loss
    calls = []

    def poisoned(self, batch, rng):
        losses = loss(self, batch, rng)
        calls.append(1)
        if len(calls) == 5:
            losses.total = losses.total * float("nan")
        return losses

    monkeypatch.setattr(Transformer, "loss", poisoned)
    with pytest.raises(StepFailure, match="diverged at step 4: loss nan"):
        train(tmp_path / "run", data, tiny.spec())


def test_a_budget_in_minutes_ends_in_time(data, tmp_path):
    started = time.perf_counter()
    report = train(tmp_path / "run", data, tiny.spec(budget={"minutes": 0.03}, evaluations=3))
    assert time.perf_counter() - started < 20
    assert report["curve"][-1]["seconds"] >= 0.03 * 60
    assert len(report["curve"]) == 3


def test_pairs_whose_target_nobody_can_emit_are_left_out_and_counted(data, tmp_path):
    pairs = training.training_pairs(training.PreparedData(data), None)
    targets = tmp_path / "targets"
    targets.mkdir()
    rows = [[UNK] if i < 30 else p.target for i, p in enumerate(pairs)]
    (targets / "targets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = train(tmp_path / "run", data, tiny.spec(budget={"target_tokens": 500}), targets=targets)
    shares = {r["metric"]: r["value"] for r in report["records"]}
    assert shares["unknown_targets"] == pytest.approx(100 * 30 / len(pairs))
    assert all(math.isfinite(point["loss"]) and point["loss"] > 0 for point in report["curve"])


def test_students_train_on_distilled_targets(data, tmp_path):
    pairs = training.training_pairs(training.PreparedData(data), None)
    targets = tmp_path / "targets"
    targets.mkdir()
    (targets / "targets.jsonl").write_text("".join(json.dumps(p.target[:1]) + "\n" for p in pairs))
    distilled = training.training_pairs(training.PreparedData(data), targets)
    assert [p.source for p in distilled] == [p.source for p in pairs]
    assert [p.target for p in distilled] == [p.target[:1] for p in pairs]
    (targets / "targets.jsonl").write_text("[7]\n")
    with pytest.raises(ValueError, match="1 distilled targets for 120"):
        training.training_pairs(training.PreparedData(data), targets)


def test_targets_without_a_token_are_refused_instead_of_trained_on_forever(data, tmp_path):
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "targets.jsonl").write_text("[]\n" * 120)
    with pytest.raises(StepFailure, match="every training target is empty"):
        train(tmp_path / "run", data, tiny.spec(), targets=tmp_path / "targets")


class FixedScores:
    """Stands in for development-set decoding: the n-th call gives the n-th score."""

    def __init__(self, scores):
        self.scores = iter(scores)

    def __call__(self, model):
        return next(self.scores)


@pytest.mark.parametrize(
    ("average", "scores", "kept"),
    [
        ("best", [5, 9, 7, 8], {2, 4}),  # the two best
        ("last", [9, 5, 6, 7], {1, 3, 4}),  # the last two, and the best for the comparison
        ("best", [0, 0, 0, 0], {3, 4}),  # among equals the later ones
    ],
)
def test_which_snapshots_are_kept(average, scores, kept, data, tmp_path):
    spec = tiny.spec(average=average)
    prepared = training.PreparedData(data)
    family = training.load_family("transformer")
    torch.manual_seed(1)
    model = family.model(family.config(**spec["config"]), prepared.data_spec)
    trainer = training.Trainer(
        model, training.training_pairs(prepared, None), TrainConfig(**spec["train"]), 1, "float32", tmp_path,
        FixedScores(scores), tiny.silent,
    )  # fmt: skip
    trainer.train()
    assert {int(k["evaluation"]) for k in trainer.state.kept} == kept
    assert {p.name for p in tmp_path.glob("snapshot-*")} == {f"snapshot-{i}.safetensors" for i in kept}


@pytest.mark.parametrize(("mean_score", "choice"), [(10, "average of 2"), (8, "best")])
def test_the_average_is_taken_only_if_it_is_better(mean_score, choice, data, tmp_path):
    spec = tiny.spec()
    prepared = training.PreparedData(data)
    family = training.load_family("transformer")
    model = family.model(family.config(**spec["config"]), prepared.data_spec)
    trainer = training.Trainer(
        model, training.training_pairs(prepared, None), TrainConfig(**spec["train"]), 1, "float32", tmp_path,
        FixedScores([1, 9, 2, 5, mean_score]), tiny.silent,
    )  # fmt: skip
    trainer.train()
    (_, second), (_, fourth) = trainer.snapshots()
    training.finish(trainer, prepared.data_spec, "bleu")
    chosen = load_file(tmp_path / "model.safetensors")
    for name, tensor in chosen.items():
        expected = (second[name] + fourth[name]) / 2 if mean_score == 10 else second[name]
        torch.testing.assert_close(tensor, expected)
    assert json.loads((tmp_path / "training.json").read_text())["selection"]["weights"] == choice


def test_a_budget_of_nothing_keeps_the_weights_as_they_were_drawn(data, tmp_path):
    spec = tiny.spec(budget={"target_tokens": 0})
    training.run(spec, tmp_path, {"data": data}, tiny.silent)
    report = json.loads((tmp_path / "training.json").read_text())
    assert report["curve"] == []
    assert report["selection"] == {"metric": "exact_match", "weights": "untrained", "score": None}
    values = {record["metric"]: record["value"] for record in report["records"]}
    assert values.pop("parameters") > 0
    assert values == {"train_tokens": 0, "train_minutes": 0}
    torch.manual_seed(spec["seed"])
    family = training.load_family(spec["family"])
    model = family.model(family.config(**spec["config"]), training.PreparedData(data).data_spec)
    drawn = training.weights_of(model)
    kept = load_file(tmp_path / "model.safetensors")
    assert kept.keys() == drawn.keys()
    for name, tensor in drawn.items():
        torch.testing.assert_close(kept[name], tensor, rtol=0, atol=0)
