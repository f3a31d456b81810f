import json

import pytest
import torch
from safetensors.torch import save_file

from bench import evaluation
from bench.decoding import decode_corpus
from bench.preparation import PreparedData
from models.registry import load_family
from models.weights import weights_of
from tests.bench import tiny


@pytest.mark.parametrize(
    ("family", "settings"),
    [("transformer", {"beam": 2}), ("ctc", {"beam": 2}), ("masked_diffusion", {"steps": 2})],
)
def test_hypotheses_and_scores_of_a_cell(family, settings, tmp_path):
    data = tiny.prepare(tmp_path / "data")
    prepared = PreparedData(data)
    made = load_family(family)
    torch.manual_seed(1)
    model = made.model(made.config(**tiny.CONFIG), prepared.data_spec).eval()
    (tmp_path / "model").mkdir()
    save_file(weights_of(model), tmp_path / "model" / "model.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    spec = {
        "family": family, "config": tiny.CONFIG, "settings": settings, "task": "dates", "task_config": {},
        "quality": {"bootstrap_samples": 20, "max_sentences": 15}, "companions": {},
        "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    evaluation.run(spec, out, {"data": data, "model": tmp_path / "model"}, tiny.silent)
    lines = [json.loads(line) for line in (out / "hypotheses.jsonl").read_text().splitlines()]
    examples = prepared.examples("test")[:15]
    assert [line["id"] for line in lines] == [e.id for e in examples]
    sources = [p.source for p in prepared.encode(examples)]
    outputs = decode_corpus(model, sources, made.settings(**settings), 4, "float32")
    assert [line["tokens"] for line in lines] == [o.tokens for o in outputs]
    assert [line["hypothesis"] for line in lines] == [prepared.tokenizer.decode(o.tokens) for o in outputs]
    scores = {s["metric"]: s for s in json.loads((out / "scores.json").read_text())}
    assert {"exact_match", "bleu", "chrf", "mixed_mode_rate", "perplexity"} <= scores.keys()
    assert scores["bleu"]["signature"].startswith("nrefs:")
    assert ("|upper-bound:estimated" in scores["perplexity"]["signature"]) == (family == "masked_diffusion")
    assert scores["perplexity"]["value"] > 1
