import pytest
import torch
from torch import nn

from bench.passes import counted_passes, observe
from bench.steps import StepFailure
from bench.workload import Scored, System
from models.interface import DataSpec
from tests.bench.scripted import Config, Reverser, Settings, batches_of

DATA = DataSpec(vocab_size=20, max_source_length=3, max_target_length=3)


def test_each_call_of_an_observed_module_is_a_pass():
    model = Reverser(Config(), None)
    with counted_passes(model) as counts:
        model.encoder(torch.zeros(1))
        model.decoder(torch.zeros(1))
        model.decoder(torch.zeros(1))
        assert counts == {"encoder": 1, "decoder": 2}
    model.decoder(torch.zeros(1))
    assert counts == {"encoder": 1, "decoder": 2}, "hooks must be gone"


def test_calls_of_several_modules_add_up_and_one_listed_twice_counts_once():
    class Two(Reverser):
        def observed_modules(self):
            return {"decoder": [self.encoder, self.decoder, self.decoder], "encoder": []}

    model = Two(Config(), None)
    with counted_passes(model) as counts:
        model.encoder(torch.zeros(1))
        model.decoder(torch.zeros(1))
    assert counts == {"decoder": 2}, "a role without modules is not observed"


def test_hooks_are_removed_after_an_error():
    model = Reverser(Config(), None)
    try:
        with counted_passes(model):
            raise ValueError
    except ValueError:
        pass
    assert not any(module._forward_hooks for module in model.modules() if isinstance(module, nn.Module))


def test_observing_counts_sentence_by_sentence():
    model = Reverser(Config(), None)
    sources = [[10], [11, 12], [13, 14, 15]]
    system = System(model, Settings(), [Scored("", source[::-1], 0.0) for source in sources], DATA, "cpu")
    seen = observe(system, batches_of(sources, 1))
    # The scripted decoder makes one pass for each token and one for the end.
    assert seen.passes == {"encoder": [1, 1, 1], "decoder": [2, 3, 4]}
    assert seen.iterations == [2, 3, 4]
    assert seen.tokens == [1, 2, 3]


def test_what_no_target_can_hold_is_seen_before_anything_is_timed():
    system = System(Reverser(Config(), None), Settings(), [Scored("", [DATA.vocab_size], 0.0)], DATA, "cpu")
    with pytest.raises(StepFailure, match="emitted id 20"):
        observe(system, batches_of([[DATA.vocab_size]], 1))


def test_passes_of_companions_count_together_and_apart():
    model, companion = Reverser(Config(), None), Reverser(Config(), None)
    model.companions = {"teacher": companion}
    with counted_passes(model) as counts:
        model.decoder(torch.zeros(1))
        companion.encoder(torch.zeros(1))
        companion.decoder(torch.zeros(1))
    assert counts == {"encoder": 0, "decoder": 1, "companion": 2}
