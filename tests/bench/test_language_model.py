"""Which text a language model is counted from, and who gets one."""

import itertools

import pytest
import torch

from bench.decoding import decode_corpus
from bench.language_model import give_language_model
from bench.preparation import PreparedData
from models.ctc import Settings
from models.interface import BOS
from models.ngram import NgramModel
from models.registry import load_family
from tests.bench import tiny


def test_a_model_gets_the_language_model_of_the_training_targets_once(tmp_path):
    data = PreparedData(tiny.prepare(tmp_path / "data"))
    model = tiny.model_for(data, "ctc")
    give_language_model(model, Settings(beam=3), data)
    assert not model.language_models
    settings = Settings(beam=3, lm_weight=0.5, lm_order=2)
    give_language_model(model, settings, data)
    made = model.language_models[2]
    give_language_model(model, settings, data)
    assert model.language_models == {2: made}
    targets = [data.tokenizer.encode(example.target) for example in data.examples("train")]
    expected = NgramModel.fit(targets, 2, data.data_spec.vocab_size)
    context = torch.tensor([[BOS], targets[0][:1]])
    assert torch.equal(made.next_log_probs(context), expected.next_log_probs(context))


@pytest.mark.parametrize("family", ["ctc", "glat_ctc"])
def test_a_family_of_frames_searches_with_it(tmp_path, family):
    """What the model of frames prefers, the language model outweighs."""
    data = PreparedData(tiny.prepare(tmp_path / "data"))
    model = tiny.model_for(data, family).eval()
    kind = load_family(family).settings
    sources = [pair.source for pair in data.encode(data.examples("test"))]
    plain = decode_corpus(model, sources, kind(beam=4), data.data_spec, 8, "float32")
    settings = kind(beam=4, lm_weight=5.0, lm_order=2, lm_bonus=4.0)
    give_language_model(model, settings, data)
    fused = decode_corpus(model, sources, settings, data.data_spec, 8, "float32")
    lm = model.language_models[2]

    def known(outputs):
        """Share of the outputs' pairs of neighbours that the language model expects."""
        pairs = [pair for output in outputs for pair in itertools.pairwise([BOS, *output.tokens])]
        return sum(lm.next_log_probs(torch.tensor([[a]]))[0, b].item() > -2.5 for a, b in pairs) / max(len(pairs), 1)

    assert [output.tokens for output in plain] != [output.tokens for output in fused]
    assert known(fused) > known(plain)


@pytest.mark.parametrize("family", ["ctc", "glat_ctc"])
def test_settings_without_effect_are_refused(family):
    kind = load_family(family).settings
    for options, message in (
        ({"lm_weight": 0.5}, "lm_weight needs a beam above 1"),
        ({"beam": 5, "lm_order": 3}, "lm_order has no effect without lm_weight"),
        ({"blank_threshold": 0.9}, "blank_threshold 0.9 has no effect without a beam above 1"),
        ({"beam": 2, "output_length": "source"}, "output_length source needs beam 1, not 2"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(**options)
