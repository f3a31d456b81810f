"""The Conformer's convolution in encoder layers: what it computes, what padding does to it, where it stands."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from models.layers import BackboneConfig, Convolution, Stack
from models.registry import built_in_families
from models.rnn import Config as RNNConfig
from tests.models.families import SMALL, SPECS, build


@torch.no_grad()
def test_a_convolution_mixes_each_channel_of_gated_neighbours():
    torch.manual_seed(0)
    convolution = Convolution(4, 5)
    x = torch.randn(1, 7, 4)
    twice = x[0] @ convolution.inner.weight.T + convolution.inner.bias
    gated = F.pad(twice[:, :4] * twice[:, 4:].sigmoid(), (0, 0, 2, 2))
    for position in range(7):
        mixed = torch.stack(
            [gated[position : position + 5, c] @ convolution.depthwise.weight[c, 0, 0] for c in range(4)]
        )
        swish = convolution.norm(mixed + convolution.depthwise.bias)
        expected = convolution.outer(swish * swish.sigmoid())
        torch.testing.assert_close(convolution(x, None)[0, position], expected)


@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.no_grad()
def test_what_lies_behind_the_end_changes_no_state(norm):
    torch.manual_seed(1)
    stack = Stack(2, 8, 2, 16, 0.0, norm, convolution=3).eval()
    x = torch.randn(1, 6, 8)
    alone = stack(x, self_mask=torch.ones(1, 1, 1, 6, dtype=torch.bool))
    padded = torch.cat([x, torch.full((1, 4, 8), 50.0)], dim=1)
    mask = (torch.arange(10) < 6)[None, None, None]
    torch.testing.assert_close(stack(padded, self_mask=mask)[:, :6], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_convolution_is_a_sublayer_between_attention_and_feed_forward():
    torch.manual_seed(2)
    (layer,) = Stack(1, 8, 2, 16, 0.0, convolution=3).eval().layers
    x = torch.randn(1, 5, 8)
    h = layer.norm_self(x)
    y = x + layer.self_attention(h, h)
    y = y + layer.convolution(layer.norm_convolution(y), None)
    y = y + layer.feed_forward(layer.norm_feed(y))
    torch.testing.assert_close(layer(x), y)


@pytest.mark.parametrize("name", sorted(n for n, f in built_in_families().items() if "speech" in f.modalities))
def test_speech_encoders_convolve_by_default_and_text_encoders_do_not(name):
    changes = {"encoder": "transformer"} if name == "rnn" else {}
    for modality, width in (("speech", 15), ("text", None)):
        model = build(name, modality=modality, **changes)
        widths = {
            layer.convolution and layer.convolution.depthwise.kernel_size[1] for layer in model.encoder.stack.layers
        }
        assert widths == {width}
    given = build(name, modality="speech", convolution=0, **changes)
    assert all(layer.convolution is None for layer in given.encoder.stack.layers)


@pytest.mark.parametrize("config", [BackboneConfig, RNNConfig])
def test_an_even_width_is_refused(config):
    with pytest.raises(ValidationError, match="odd number of positions or 0, not 4"):
        config(convolution=4)


@pytest.mark.parametrize("name", ["ctc", "imputer"])
def test_frames_attend_to_the_source_by_default_on_text_alone(name):
    family = built_in_families()[name]
    fields = {k: v for k, v in SMALL.items() if k in family.config.model_fields}
    for modality, default in (("text", True), ("speech", False)):
        for given, expected in ((None, default), (True, True), (False, False)):
            model = family.model(family.config(**fields, cross_attention=given), SPECS[modality])
            assert (model.decoder.layers[0].cross_attention is not None) == expected


@pytest.mark.parametrize("name", ["ctc", "imputer"])
@pytest.mark.parametrize(("modality", "given", "width"), [("text", None, 0), ("speech", None, 15), ("speech", 7, 7)])
def test_layers_over_frames_have_the_encoders_convolution(name, modality, given, width):
    family = built_in_families()[name]
    fields = {k: v for k, v in SMALL.items() if k in family.config.model_fields}
    model = family.model(family.config(**fields, convolution=given), SPECS[modality])
    for layer in (*model.encoder.stack.layers, *model.decoder.layers):
        assert (0 if layer.convolution is None else layer.convolution.depthwise.kernel_size[1]) == width
