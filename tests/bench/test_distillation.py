import json
import time

import pytest
import torch
from safetensors.torch import save_file

from bench import distillation
from bench.checkpoint import load_model
from bench.decoding import decode_batch, decode_corpus
from bench.preparation import PreparedData
from models.transformer import Config, Settings, Transformer
from models.weights import weights_of
from tests.bench import tiny

SPEC = {
    "family": "transformer", "config": tiny.CONFIG, "device": "cpu", "dtype": "float32",
    "distill": {"beam": 3, "shard_sentences": 25},
}  # fmt: skip


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    root = tmp_path_factory.mktemp("distil")
    data = tiny.prepare(root / "data")
    torch.manual_seed(4)
    model = Transformer(Config(**tiny.CONFIG), PreparedData(data).data_spec)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    (root / "model").mkdir()
    save_file(weights_of(model), root / "model" / "model.safetensors")
    return {"data": data, "model": root / "model"}


def distil(folder, parents):
    folder.mkdir(exist_ok=True)
    distillation.run(SPEC, folder, parents, tiny.silent)
    return distillation.read_targets(folder)


def test_targets_are_the_teachers_beam_outputs_in_order(parents, tmp_path):
    targets = distil(tmp_path / "out", parents)
    data = PreparedData(parents["data"])
    model = load_model("transformer", tiny.CONFIG, data.data_spec, parents["model"], "cpu")
    pairs = data.encode(data.examples("train"))
    assert len(targets) == len(pairs)
    for pair, target in list(zip(pairs, targets, strict=True))[::7]:
        assert decode_batch(model, [pair.source], Settings(beam=3), "float32")[0].tokens == target
    report = json.loads((tmp_path / "out" / "distillation.json").read_text())
    assert report["distinct_sources"] == len({tuple(p.source) for p in pairs}) < report["sentences"] == len(pairs)


def test_a_killed_distillation_resumes_at_its_last_shard_and_ends_the_same(parents, tmp_path, monkeypatch):
    whole = distil(tmp_path / "whole", parents)
    calls = []

    def killed(*args, **kwargs):
        calls.append(len(args[1]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return decode_corpus(*args, **kwargs)

    monkeypatch.setattr(distillation, "decode_corpus", killed)
    with pytest.raises(KeyboardInterrupt):
        distil(tmp_path / "killed", parents)
    assert len(list((tmp_path / "killed").glob("shard-*.json"))) == 2
    done_before = len(calls)
    assert distil(tmp_path / "killed", parents) == whole
    shards = -(-json.loads((tmp_path / "killed" / "distillation.json").read_text())["distinct_sources"] // 25)
    assert len(calls) - done_before == shards - 2


def test_batches_decode_at_least_five_times_as_fast_as_single_sentences(parents):
    data = PreparedData(parents["data"])
    model = load_model("transformer", tiny.CONFIG, data.data_spec, parents["model"], "cpu")
    sources = [p.source for p in data.encode(data.examples("train"))]
    settings = Settings(beam=5)

    def seconds(batch_size):
        started = time.process_time()
        decode_corpus(model, sources, settings, data.data_spec, batch_size, "float32")
        return time.process_time() - started

    seconds(128)  # warm-up
    assert seconds(1) > 5 * min(seconds(128) for _ in range(3))
