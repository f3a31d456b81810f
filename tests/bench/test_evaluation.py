import json
import random

import pytest
import torch
from safetensors.torch import save_file

from bench import evaluation
from bench.decoding import decode_corpus
from bench.preparation import PreparedData
from bench.quality import score
from bench.tasks.base import Example, Task
from models.interface import Options
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
    outputs = decode_corpus(model, sources, made.settings(**settings), prepared.data_spec, 4, "float32")
    assert [line["tokens"] for line in lines] == [o.tokens for o in outputs]
    assert [line["hypothesis"] for line in lines] == [prepared.tokenizer.decode(o.tokens) for o in outputs]
    rows = json.loads((out / "scores.json").read_text())
    scores = {s["metric"]: s for s in rows if not s["subset"]}
    along = {s["metric"] for s in rows if s["subset"]}
    # Dates have no subsets, and no CER to picture.
    assert along == {"token_accuracy", *(["teacher_forced_accuracy"] if made.autoregressive else [])}
    assert {"exact_match", "bleu", "chrf", "mixed_mode_rate", "perplexity"} <= scores.keys()
    assert scores["bleu"]["signature"].startswith("nrefs:")
    assert ("|upper-bound:estimated" in scores["perplexity"]["signature"]) == (family == "masked_diffusion")
    assert scores["perplexity"]["value"] > 1


class Noisy(Task):
    """Utterances with noise; every fifth is in no subset."""

    name = "noisy"
    title = "Noisy"
    Config = Options
    metrics = ("wer", "cer", "empty_rate")
    selection_metric = "cer"
    modality = "speech"
    subset_metrics = ("cer", "wer")

    def fingerprint(self):
        return {}

    def prepare(self, folder):
        pass

    def subset(self, example):
        if example.tags["number"] % 5 == 4:
            return ""
        low = 5 * int(example.tags["snr_db"] // 5)
        return f"snr_db={low}.0..{low + 5}"


def utterances(levels):
    """A reference for each level of noise, and what was heard: the louder the noise, the less."""
    examples = [
        Example(f"u{i}", f"u{i}.wav", "ab cd", ("ab cd ef gh",), {"seconds": 1.0, "snr_db": level, "number": i})
        for i, level in enumerate(levels)
    ]
    heard = ["" if level < 0 else "ab cd" if level < 10 else "ab cd ef gh" for level in levels]
    return heard, examples


def test_subsets_are_scored_apart_in_rising_order():
    # Every fifth is left out: 99.
    heard, examples = utterances([12.0, 3.0, -1.0, 13.0, 99.0, 2.5, 10.0])
    scores = evaluation.scores_of(Noisy(Options()), heard, examples, 20)
    found = [(s.subset, s.metric, s.value, s.n) for s in scores if not s.subset.startswith("position")]
    assert found[0] == ("", "wer", pytest.approx(100 * (0 + 2 + 4 + 0 + 0 + 2 + 0) / 28), 7)
    # Of "ab cd ef gh", 11 characters, " ef gh" is missing.
    assert found[3:] == [
        ("snr_db=-5..0", "cer", 100.0, 1),
        ("snr_db=-5..0", "wer", 100.0, 1),
        ("snr_db=0..5", "cer", pytest.approx(100 * 6 / 11), 2),
        ("snr_db=0..5", "wer", 50.0, 2),
        ("snr_db=10..15", "cer", 0.0, 3),
        ("snr_db=10..15", "wer", 0.0, 3),
    ]
    assert [name for name, *_ in found[:3]] == ["", "", ""]
    intervals = {s.subset: (s.ci_low, s.ci_high) for s in scores if s.metric == "wer"}
    assert intervals["snr_db=-5..0"] == (None, None), "one utterance carries none"
    assert intervals["snr_db=0..5"] == (50.0, 50.0)


def test_the_order_of_examples_does_not_matter():
    levels = [float(level) for level in range(-5, 20)]
    heard, examples = utterances(levels)
    pairs = list(zip(heard, examples, strict=True))
    random.Random(1).shuffle(pairs)
    texts, shuffled = zip(*pairs, strict=True)
    first, second = (
        [(s.metric, s.subset, s.value, s.n) for s in evaluation.scores_of(Noisy(Options()), list(h), list(e), 0)]
        for h, e in ((heard, examples), (texts, shuffled))
    )
    assert first == second


def test_the_error_picture_is_there_where_cer_is_measured():
    heard, examples = utterances([3.0, 12.0])
    scores = evaluation.scores_of(Noisy(Options()), heard, examples, 20)
    picture = [s for s in scores if s.subset.startswith("position=")]
    assert len(picture) == 30
    assert picture == scores[-30:]
    deleted = {s.subset: s.value for s in picture if s.metric == "cer_deletions"}
    assert (deleted["position=0..10"], deleted["position=90..100"]) == (0.0, 50.0)

    class NoCer(Noisy):
        metrics = ("wer",)
        subset_metrics = ()

    assert evaluation.scores_of(NoCer(Options()), heard, examples, 20) == score(
        ["wer"], heard, examples, bootstrap_samples=20
    )


def test_a_subset_that_is_none_is_refused():
    class Loud(Noisy):
        def subset(self, example):
            return "loud"

    heard, examples = utterances([3.0])
    with pytest.raises(ValueError, match="'loud' is no subset"):
        evaluation.scores_of(Loud(Options()), heard, examples, 20)


def test_tasks_have_no_subsets_by_default():
    assert Task.subset(Noisy(Options()), utterances([3.0])[1][0]) == ""
    assert Task.subset_metrics == ()
