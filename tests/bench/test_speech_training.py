"""Training and decoding on speech: from prepared audio to a model, its labels and its targets."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bench import distillation, evaluation, labels, training
from bench.augmentation import spec_augment
from bench.preparation import PreparedData
from tests.bench import tiny
from tests.bench.utterances import SpeechCorpus

OPTIONS = {"features": {"num_mels": 8}}
WHERE = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return SpeechCorpus(tmp_path_factory.mktemp("speech")).prepare(**OPTIONS).folder


def spec(family, **train):
    made = tiny.spec(family, **{"budget": {"target_tokens": 60}, "batch_frames": 400, "evaluations": 1, **train})
    return {**made, "task": "an4"}


def train(folder, data, description, **parents):
    folder.mkdir()
    training.run(description, folder, {"data": data, **parents}, tiny.silent)
    return folder


def test_a_pair_is_the_features_of_its_recording_and_the_ids_of_its_text(data):
    prepared = PreparedData(data)
    examples = prepared.examples("test")
    encoded = prepared.encode(examples[::-1])[::-1]
    assert prepared.data_spec.modality == "speech"
    assert prepared.data_spec.num_features == 8
    for example, pair in zip(examples, encoded, strict=True):
        assert prepared.tokenizer.decode(pair.target) == example.target
        waveform = prepared.waveform(example)
        assert len(waveform) == pytest.approx(example.tags["seconds"] * 16_000, abs=1)
        np.testing.assert_allclose(prepared.extractor(waveform), pair.source, atol=2e-2)


@pytest.mark.parametrize("family", ["transformer", "ctc", "rnn"])
def test_a_model_is_trained_and_scored_on_speech(family, data, tmp_path):
    folder = train(tmp_path / "model", data, spec(family))
    report = json.loads((folder / "training.json").read_text())
    assert report["data"]["modality"] == "speech"
    (tmp_path / "scored").mkdir()
    evaluation.run(
        {
            "family": family, "config": tiny.CONFIG, "settings": {}, "task": "an4", "task_config": {},
            "quality": {"bootstrap_samples": 10}, "companions": {}, **WHERE,
        },
        tmp_path / "scored", {"data": data, "model": folder}, tiny.silent,
    )  # fmt: skip
    scores = {s["metric"]: s for s in json.loads((tmp_path / "scored" / "scores.json").read_text())}
    assert {"cer", "wer"} <= scores.keys()
    assert scores["cer"]["n"] == 3


@pytest.mark.parametrize(("weight", "start"), [(0.0, "length"), (0.3, "ctc")])
def test_the_development_set_is_decoded_as_the_model_is_meant_to(weight, start, data, tmp_path, monkeypatch):
    seen, decode = [], training.decode_corpus

    def spy(model, sources, settings, *more):
        seen.append(settings.start)
        return decode(model, sources, settings, *more)

    monkeypatch.setattr(training, "decode_corpus", spy)
    description = spec("mask_predict")
    train(tmp_path / "model", data, {**description, "config": {**description["config"], "ctc_weight": weight}})
    assert set(seen) == {start}


def test_an_encoder_starts_from_that_of_the_init_and_the_report_says_so(data, tmp_path):
    ctc = train(tmp_path / "ctc", data, spec("ctc"))
    init = {"system": "my-ctc", "family": "ctc", "config": tiny.CONFIG}
    frozen = spec("transformer", learning_rate=1e-12, warmup=0)
    folder = train(tmp_path / "ar", data, {**frozen, "init": init}, init=ctc)
    theirs, mine = load_file(ctc / "model.safetensors"), load_file(folder / "model.safetensors")
    names = [name for name in theirs if name.startswith("encoder.")]
    assert names
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in names)
    report = json.loads((folder / "training.json").read_text())
    assert report["init"]["system"] == "my-ctc"
    assert set(names) <= set(report["init"]["tensors"])
    assert [r["signature"] for r in report["records"] if r["metric"] == "train_tokens"] == ["init:my-ctc"]


def test_fertilities_of_speech_come_from_ctc_and_sum_to_the_target(data, tmp_path):
    ctc = train(tmp_path / "ctc", data, spec("ctc"))
    companions = {"ctc": {"family": "ctc", "config": tiny.CONFIG}}
    (tmp_path / "labels").mkdir()
    parents = {"data": data, "companion_ctc": ctc}
    labels.run({"labels": "fertility", "companions": companions, **WHERE}, tmp_path / "labels", parents, tiny.silent)
    pairs = training.training_pairs(PreparedData(data), None, tmp_path / "labels")
    for pair in pairs:
        assert sum(pair.labels) == len(pair.target)
        assert set(pair.labels) <= {0, 1}
        assert len(pair.labels) == -(-len(pair.source) // 4)
    nat = {**spec("fertility_nat"), "companions": companions}
    train(tmp_path / "nat", data, nat, companion_ctc=ctc, labels=tmp_path / "labels")
    other = {**nat, "config": {**tiny.CONFIG, "subsampling": 2}}
    with pytest.raises(ValueError, match="same subsampling"):
        train(tmp_path / "other", data, other, companion_ctc=ctc, labels=tmp_path / "labels")


def test_a_teacher_writes_a_target_for_each_recording(data, tmp_path):
    teacher = train(tmp_path / "teacher", data, spec("transformer"))
    (tmp_path / "targets").mkdir()
    description = {
        "family": "transformer",
        "config": tiny.CONFIG,
        "distill": {"beam": 2, "shard_sentences": 3},
        **WHERE,
    }
    distillation.run(description, tmp_path / "targets", {"data": data, "model": teacher}, tiny.silent)
    assert len(distillation.read_targets(tmp_path / "targets")) == 4
    report = json.loads((tmp_path / "targets" / "distillation.json").read_text())
    assert report["distinct_sources"] == 4


def test_spec_augment_changes_what_is_trained_on_and_only_that(data, tmp_path, monkeypatch):
    seen = []

    def spied(src, src_len, config, rng):
        seen.append(config)
        return spec_augment(src, src_len, config, rng)

    monkeypatch.setattr(training, "spec_augment", spied)
    plain = train(tmp_path / "plain", data, spec("ctc"))
    assert not seen
    masked = train(tmp_path / "masked", data, spec("ctc", spec_augment={"time_width": 7}))
    assert {config.time_width for config in seen} == {7}
    a, b = (load_file(folder / "model.safetensors") for folder in (plain, masked))
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_one_cpu_thread_is_budgeted_by_its_own_time(data, tmp_path):
    prepared = PreparedData(data)
    pairs = prepared.encode(prepared.examples("train"))
    config = training.TrainConfig(budget={"minutes": 1})
    model = tiny.model_for(prepared, "ctc")

    def clock_of(changed):
        return training.Trainer(model, pairs, changed, 1, "float32", tmp_path, lambda _: 0.0, tiny.silent).clock

    assert clock_of(config) is training.time.process_time
    assert clock_of(replace_threads(config, 2)) is training.time.perf_counter


def replace_threads(config, threads):
    return config.model_copy(update={"threads": threads})
