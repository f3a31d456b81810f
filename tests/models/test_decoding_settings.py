import pytest
import torch

from models.decoding.autoregressive import greedy, sample
from models.decoding.beam import beam_search
from models.decoding.noise import row_seeds
from models.decoding.settings import AutoregressiveSettings, search
from models.interface import EOS
from tests.models.families import batch_of, build

LONGEST = 12


@pytest.fixture
def model():
    model = build("rnn", 2)
    for parameter in model.parameters():
        parameter.data.mul_(2)
    return model


def both(model, settings, directly):
    """What `search` finds, and what a direct call finds; `search` asks for as many steps as the limits need."""
    batch = batch_of(12, seed=1)
    limits = (batch.src_len * 1.5 + 2).long().clamp(max=LONGEST)
    asked = []

    def stepper(size, beam):
        asked.append((size, beam))
        return model.stepper(batch.src, batch.src_len, beam)

    with torch.inference_mode():
        found = search(stepper, batch.src, batch.src_len, settings, LONGEST)
        expected = directly(batch, limits)
    assert asked == [(int(limits.max()) + 1, settings.beam)]
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert torch.equal(found.scores, expected.scores)
    return found, limits


@pytest.mark.parametrize("never_ends", [False, True])
def test_greedy_up_to_the_limit_of_each_sentence(model, never_ends):
    if never_ends:
        model.output.ban[EOS] = -1e4
    settings = AutoregressiveSettings(length_ratio=1.5, length_extra=2)
    found, limits = both(model, settings, lambda b, limits: greedy(model.stepper(b.src, b.src_len), limits))
    assert (found.lengths.tolist() == limits.tolist()) == never_ends
    assert limits.min() < limits.max() == LONGEST


def test_beam_search_with_every_value_of_the_settings(model):
    settings = AutoregressiveSettings(
        beam=3, length_penalty="power", alpha=0.3, stopping="exact", length_ratio=1.5, length_extra=2
    )
    both(model, settings, lambda b, limits: beam_search(
        model.stepper(b.src, b.src_len, 3), limits, 3, "power", 0.3, "exact"
    ))  # fmt: skip


def test_sampling_with_every_value_of_the_settings(model):
    settings = AutoregressiveSettings(
        sample=True, temperature=0.7, top_k=3, top_p=0.95, seed=3, length_ratio=1.5, length_extra=2
    )
    both(model, settings, lambda b, limits: sample(
        model.stepper(b.src, b.src_len), limits, row_seeds(b.src, b.src_len, 3), 0.7, 3, 0.95
    ))  # fmt: skip
