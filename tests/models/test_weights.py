"""Starting from the encoder of another model."""

import pytest
import torch

from models.weights import start_encoder, weights_of
from tests.models.families import batch_of, build


@pytest.mark.parametrize("modality", ["text", "speech"])
@pytest.mark.parametrize(
    "name", ["transformer", "mask_predict", "levenshtein", "insertion", "fertility_nat", "imputer"]
)
def test_the_encoder_becomes_that_of_the_other(name, modality):
    other, model = build("ctc", 1, modality, encoder_layers=2), build(name, 2, modality, encoder_layers=2)
    batch = batch_of(4, modality=modality)
    before = {n: w.clone() for n, w in weights_of(model).items() if n.startswith("decoder.")}
    theirs = other.encoder(batch.src, batch.src_len)
    taken = start_encoder(model, other)
    mine = model.encoder(batch.src, batch.src_len)
    assert torch.equal(mine.states, theirs.states)
    assert torch.equal(mine.content, theirs.content)
    encoder = {n for n in weights_of(model) if n.startswith("encoder.")}
    assert encoder <= set(taken)
    # On speech the embedding is that of targets, which no encoder reads.
    read = ("encoder.", "embedding.") if modality == "text" else ("encoder.",)
    assert all(n.startswith(read) for n in taken)
    assert any(n.startswith("embedding.") for n in taken) == (modality == "text")
    assert before
    assert all(torch.equal(weights_of(model)[n], w) for n, w in before.items())
    model.encoder.stack.final_norm.weight.data.zero_()
    assert other.encoder.stack.final_norm.weight.all(), "copied, not shared"


def test_a_recurrent_encoder_takes_the_front_end():
    other, model = build("ctc", 1, "speech"), build("rnn", 2, "speech")
    recurrent = model.encoder.layers.weight_ih_l0.clone()
    taken = start_encoder(model, other)
    assert taken
    assert {name for name in taken if name.startswith("encoder.")} == {
        name for name in weights_of(model) if name.startswith("encoder.frontend.")
    }
    assert torch.equal(model.encoder.frontend.project.weight, other.encoder.frontend.project.weight)
    assert torch.equal(model.encoder.layers.weight_ih_l0, recurrent)
    hybrid = build("rnn", 2, "speech", encoder="transformer")
    assert any(name.startswith("encoder.stack.") for name in start_encoder(hybrid, other))


def test_encoders_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="shares no weights"):
        start_encoder(build("rnn", 1), build("ctc", 2))
    with pytest.raises(ValueError, match="4 attention heads and 1 layers"):
        start_encoder(build("transformer", 1, "speech", num_heads=4), build("ctc", 2, "speech"))
    with pytest.raises(ValueError, match="2 attention heads and 2 layers"):
        start_encoder(build("transformer", 1, "speech", encoder_layers=2), build("ctc", 2, "speech"))
