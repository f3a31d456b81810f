"""Which text a language model is counted from, and who gets one."""

import pytest
import torch

from bench.language_model import give_language_model
from bench.preparation import PreparedData
from models.ctc import Settings
from models.interface import BOS
from models.ngram import NgramModel
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


def test_settings_without_effect_are_refused():
    with pytest.raises(ValueError, match="lm_weight needs a beam above 1"):
        Settings(lm_weight=0.5)
    with pytest.raises(ValueError, match="lm_order has no effect without lm_weight"):
        Settings(beam=5, lm_order=3)
