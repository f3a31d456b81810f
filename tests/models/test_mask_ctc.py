"""Mask-CTC (Higuchi et al. 2020): what CTC is sure of stays, the rest is filled, the surest first."""

import math

import pytest
import torch

from bench.batching import collate, pad_sources
from bench.decoding import decode_batch
from models.decoding.committing import Committing
from models.decoding.ctc_canvas import surest_frames
from models.decoding.refinement import Canvas, refine_until_done
from models.interface import BLANK, MASK, NUM_SPECIAL, PAD
from models.mask_predict import Config, Settings
from tests.models.families import batch_of, build, pairs
from tests.oracles.unmasking import Script

A, B = NUM_SPECIAL, NUM_SPECIAL + 1
MODALITIES = ["text", "speech"]


def model_of(modality, seed=0, scale=1.5, **changes):
    model = build("mask_predict", seed, modality, ctc_weight=0.3, **changes)
    for parameter in model.parameters():
        parameter.data.mul_(scale)
    return model


def test_a_token_is_as_sure_as_its_surest_frame():
    """A A _ A B B: three tokens; the two runs of A are apart, the frame behind the end does not count."""
    alignment = torch.tensor([[A, A, BLANK, A, B, B], [BLANK, B, B, B, PAD, PAD]])
    log_probs = torch.tensor([[-3.0, -1.0, -0.1, -2.0, -5.0, -4.0], [-1.0, -2.0, -0.5, -0.2, -9.0, -9.0]])
    scores = surest_frames(alignment, log_probs, torch.tensor([6, 3]), 3)
    assert scores.tolist() == [[-1.0, -2.0, -4.0], [-0.5, 0.0, 0.0]]


def test_an_equal_share_of_the_masks_is_filled_in_each_pass():
    """Of 5 tokens 3 are masked; in 2 passes 2 are filled, then 1. What was sure is not touched."""
    script = Script(
        [
            [[(50, 0.9), (10, 0.2), (51, 0.9), (12, 0.5), (13, 0.3)]],
            [[(60, 0.9), (20, 0.8), (61, 0.9), (62, 0.9), (63, 0.9)]],
        ]
    )
    tokens = torch.tensor([[A, MASK, B, MASK, MASK]])
    canvas = Canvas(tokens, torch.tensor([5]), torch.tensor([[-0.1, -2.0, -0.2, -3.0, -4.0]]))
    canvas, iterations = refine_until_done(Committing(script, torch.tensor([3]), 2), canvas, 2)
    assert canvas.tokens.tolist() == [[A, 20, B, 12, 13]]
    assert canvas.scores[0].tolist() == pytest.approx([-0.1, math.log(0.8), -0.2, math.log(0.5), math.log(0.3)])
    assert iterations.tolist() == [2]


def slow_decode(model, source, settings):
    """One source, frame by frame and mask by mask."""
    src, src_len = pad_sources([source])
    with torch.inference_mode():
        encoded = model.encoder(src, src_len)
        frames = int(encoded.lengths[0]) * model.ctc.upsample.factor
        best, symbols = model.ctc.output(model.ctc.upsample(encoded.states))[0, :frames].log_softmax(-1).max(-1)
        runs, before = [], BLANK
        for symbol, log_prob in zip(symbols.tolist(), best.tolist(), strict=True):
            if symbol not in (BLANK, before):
                runs.append([symbol, log_prob])
            elif symbol == before != BLANK:
                runs[-1][1] = max(runs[-1][1], log_prob)
            before = symbol
        runs = runs[: model.ctc.max_target_length]
        tokens = [None if score < math.log(settings.confidence) else token for token, score in runs]
        masks = tokens.count(None)
        passes = 0
        memory = model.decoder.remember(encoded)
        while None in tokens:
            canvas = torch.tensor([[MASK if token is None else token for token in tokens]])
            states = model.decoder(canvas, torch.tensor([len(tokens)]), memory)[0]
            best, symbols = model.output(states).log_softmax(-1).max(-1)
            share = masks // settings.iterations + (passes < masks % settings.iterations)
            open_places = [i for i, token in enumerate(tokens) if token is None]
            for i in sorted(open_places, key=lambda i: -best[i].item())[:share]:
                tokens[i] = int(symbols[i])
            passes += 1
    return tokens, passes


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("options", [{}, {"iterations": 2}, {"confidence": 0.3}, {"confidence": 1e-9}], ids=str)
def test_decoding_equals_the_slow_twin_in_any_batch(modality, options):
    model, settings = model_of(modality, seed=1), Settings(start="ctc", **options)
    sources = [p.source for p in pairs(24, seed=1, modality=modality)]
    src, src_len = pad_sources(sources)
    with torch.inference_mode():
        decoded = model.decode(src, src_len, settings)
    together = [row[:n] for row, n in zip(decoded.tokens.tolist(), decoded.lengths.tolist(), strict=True)]
    slow = [slow_decode(model, source, settings) for source in sources]
    assert together == [tokens for tokens, _ in slow]
    assert decoded.iterations.tolist() == [passes for _, passes in slow]
    assert any(together)
    for i in range(0, 24, 5):
        assert [o.tokens for o in decode_batch(model, [sources[i]], settings, "float32")] == [together[i]]


def test_a_sure_source_takes_no_pass():
    model = model_of("speech", seed=1)
    calls = []
    model.decoder.stack.register_forward_hook(lambda *_: calls.append(1))
    src, src_len = pad_sources([p.source for p in pairs(4, seed=1, modality="speech")])
    with torch.inference_mode():
        decoded = model.decode(src, src_len, Settings(start="ctc", confidence=1e-9))
    assert not calls
    assert decoded.iterations.tolist() == [0] * 4


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_loss_weighs_ctc_against_the_rest(modality):
    batch = batch_of(6, seed=3, modality=modality)
    model = model_of(modality, scale=1.0)
    both = model.loss(batch, torch.Generator().manual_seed(0))
    source = model.encoder.with_summary(batch.src, batch.src_len, model.lengths.token)[0]
    summed, infeasible = model.ctc.loss(source, batch)
    ctc = summed / batch.tgt_len.sum()
    rest = both.parts["cross_entropy"] + both.parts["length"]
    torch.testing.assert_close(both.total, 0.7 * rest + 0.3 * ctc)
    torch.testing.assert_close(both.parts["ctc"], ctc.detach())
    assert both.counts == {"infeasible": infeasible}
    both.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_pairs_that_ctc_cannot_align_are_counted():
    items = pairs(3, seed=4, modality="speech")
    items[0].target[:] = [A] * 20  # 20 tokens, 19 blanks between; there are fewer positions
    assert model_of("speech").loss(collate(items), torch.Generator().manual_seed(0)).counts == {"infeasible": 1}


def test_empty_sources_decode():
    model = model_of("text")
    assert decode_batch(model, [[], [A]], Settings(start="ctc"), "float32")[0].tokens == []


def test_settings_that_do_not_fit():
    assert "ctc_weight" in Settings(start="ctc").misfit(Config())
    assert Settings(start="ctc").misfit(Config(ctc_weight=0.3)) is None
    assert Settings().misfit(Config()) is None
    with pytest.raises(ValueError, match="confidence has no effect"):
        Settings(confidence=0.9)
    with pytest.raises(ValueError, match="length_beam 5 has no effect"):
        Settings(start="ctc", length_beam=5)
