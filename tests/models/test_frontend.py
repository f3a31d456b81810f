"""Front ends: what padding, subsampling and length limits do to a source."""

import pytest
import torch
import torch.nn.functional as F

from models.encoder import SourceEncoder
from models.frontend import SpeechFrontend, TextFrontend, make_frontend
from models.layers import Embedding, Stack
from tests.models.families import SPEC, SPEECH, VOCAB


def speech(subsampling=4, limit=40, dim=8):
    torch.manual_seed(0)
    return SpeechFrontend(3, dim, subsampling, limit, dropout=0.0).eval()


@pytest.mark.parametrize("subsampling", [1, 2, 4, 8])
def test_positions_are_frames_over_subsampling_rounded_up(subsampling):
    frontend = speech(subsampling)
    for frames in (0, 1, 7, 8, 9, 31, 40):
        content, lengths = frontend.content(torch.randn(1, max(frames, 1), 3), torch.tensor([frames]))
        assert lengths.tolist() == [-(-frames // subsampling)]
        assert content.shape == (1, -(-max(frames, 1) // subsampling), 8)
    assert frontend.max_length == 40 // subsampling


@pytest.mark.parametrize("subsampling", [1, 2, 4])
def test_content_does_not_depend_on_what_is_behind_the_end(subsampling):
    frontend, frames = speech(subsampling), torch.randn(1, 13, 3)
    alone, lengths = frontend.content(frames, torch.tensor([13]))
    noise = torch.cat([frames, torch.full((1, 20, 3), 1e3)], dim=1)
    padded, padded_lengths = frontend.content(noise, torch.tensor([13]))
    assert lengths.tolist() == padded_lengths.tolist()
    torch.testing.assert_close(padded[:, : lengths[0]], alone[:, : lengths[0]], atol=1e-5, rtol=1e-5)


def test_a_convolution_is_a_gated_sum_over_five_frames():
    """One stride-1 layer by hand: half of the channels times the sigmoid of the rest, projected and normalised."""
    frontend, frames = speech(1, dim=4), torch.randn(1, 6, 3)
    content, _ = frontend.content(frames, torch.tensor([6]))
    (convolution,) = frontend.convolutions
    padded = F.pad(frames[0], (0, 0, 2, 2))
    for position in range(6):
        window = padded[position : position + 5]  # [5, 3]
        summed = torch.einsum("ocw,wc->o", convolution.weight, window) + convolution.bias
        gated = summed[:4] * summed[4:].sigmoid()
        torch.testing.assert_close(content[0, position], frontend.norm(frontend.project(gated)))


def test_each_position_is_where_its_code_says():
    frontend = speech()
    content, _ = frontend.content(torch.randn(1, 16, 3), torch.tensor([16]))
    torch.testing.assert_close(frontend.place(content) - content, frontend.positions[:4][None])


def test_text_content_with_positions_is_the_embedding():
    embedding = Embedding(VOCAB, 8, 16, 0.0)
    frontend = TextFrontend(embedding, 16)
    ids = torch.randint(7, VOCAB, (2, 5))
    content, lengths = frontend.content(ids, torch.tensor([5, 3]))
    assert lengths.tolist() == [5, 3]
    assert torch.equal(frontend.place(content), embedding(ids))


def test_the_data_says_which_front_end():
    embedding = Embedding(VOCAB, 8, 16, 0.0)
    assert isinstance(make_frontend(SPEC, embedding, 4, 0.0), TextFrontend)
    frontend = make_frontend(SPEECH, embedding, 4, 0.0)
    assert isinstance(frontend, SpeechFrontend)
    assert (frontend.limit, frontend.max_length) == (96, 24)
    assert frontend.convolutions[0].in_channels == SPEECH.num_features


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((3, 8, 3, 40), "power of two, not 3"), ((3, 8, 0, 40), "not 0"), ((0, 8, 4, 40), "num_features is 0")],
    ids=["no-power-of-two", "zero", "no-features"],
)
def test_bad_shapes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpeechFrontend(*arguments, dropout=0.0)


def test_sources_beyond_the_limit_are_refused():
    with pytest.raises(ValueError, match="41 frames exceeds the model's limit of 40"):
        speech().content(torch.zeros(1, 41, 3), torch.tensor([41]))
    with pytest.raises(ValueError, match="6 tokens exceeds the model's limit of 5"):
        TextFrontend(Embedding(VOCAB, 8, 9, 0.0), 5).content(torch.zeros(1, 6).long(), torch.tensor([6]))


def test_the_encoder_counts_positions_and_keeps_what_it_read():
    frontend = speech()
    encoder = SourceEncoder(frontend, Stack(1, 8, 2, 16, 0.0)).eval()
    src, src_len = torch.randn(3, 16, 3), torch.tensor([16, 5, 0])
    encoded = encoder(src, src_len)
    assert encoded.lengths.tolist() == [4, 2, 0]
    assert encoded.mask[:, 0, 0].tolist() == [[True] * 4, [True] * 2 + [False] * 2, [True] + [False] * 3]
    torch.testing.assert_close(encoded.content, frontend.content(src, src_len)[0])
    with_summary, summary = encoder.with_summary(src, src_len, torch.randn(8))
    assert with_summary.lengths.tolist() == [4, 2, 0]
    assert with_summary.states.shape == encoded.states.shape
    assert summary.shape == (3, 8)
