"""Mask-CTC (Higuchi et al. 2020): what CTC is sure of stays, the rest is filled; and the best of CTC's beam."""

import math

import pytest
import torch

from bench.batching import collate, pad_sources
from bench.decoding import decode_batch
from models.decoding import pseudo_likelihood
from models.decoding.committing import Committing
from models.decoding.ctc_canvas import surest_frames
from models.decoding.prefix_beam import prefix_beam_search
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
    for start in ("ctc", "ctc_beam"):
        assert decode_batch(model, [[], [A]], Settings(start=start), "float32")[0].tokens == []
        assert [o.tokens for o in decode_batch(model, [[], []], Settings(start=start), "float32")] == [[], []]


def test_settings_that_do_not_fit():
    assert "ctc_weight" in Settings(start="ctc").misfit(Config())
    assert Settings(start="ctc").misfit(Config(ctc_weight=0.3)) is None
    assert Settings().misfit(Config()) is None
    assert "start: ctc_beam needs" in Settings(start="ctc_beam").misfit(Config())
    assert Settings(start="ctc_beam").misfit(Config(ctc_weight=0.3)) is None
    with pytest.raises(ValueError, match="confidence has no effect"):
        Settings(confidence=0.9)
    with pytest.raises(ValueError, match="length_beam 5 has no effect"):
        Settings(start="ctc", length_beam=5)
    with pytest.raises(ValueError, match="length_beam 5 has no effect with start: ctc_beam"):
        Settings(start="ctc_beam", length_beam=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 5}, "beam has no effect without start: ctc_beam"),
        ({"start": "ctc", "ctc_weight": 0.5}, "ctc_weight has no effect without start: ctc_beam"),
        ({"start": "ctc_beam", "iterations": 3}, "iterations has no effect without start: length or ctc"),
        ({"start": "ctc_beam", "confidence": 0.5}, "confidence has no effect without start: ctc"),
        ({"start": "ctc_beam", "ctc_weight": 1, "maskings": 3}, "maskings has no effect with ctc_weight 1"),
    ],
    ids=str,
)
def test_settings_of_another_start_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)


# The best of CTC's beam


def judged(model, source, output, maskings):
    """Pseudo-log-likelihood of one output, token by token; with it each `maskings`-th of the others is hidden."""
    src, src_len = pad_sources([source])
    memory = model.decoder.remember(model.encoder(src, src_len))
    total = 0.0
    for i, token in enumerate(output):
        canvas = torch.tensor([[MASK if (i - j) % maskings == 0 else other for j, other in enumerate(output)]])
        states = model.decoder(canvas, torch.tensor([len(output)]), memory)[0, i]
        total += model.output(states).log_softmax(-1)[token].item()
    return total


@pytest.mark.parametrize("maskings", [1, 2, 5, 100])
@pytest.mark.parametrize("at_a_time", [1, 20, 100, 2**15])
def test_outputs_are_judged_as_one_by_one(monkeypatch, at_a_time, maskings):
    """Three sentences with two outputs each, of 0 to 6 tokens, however many positions fit at a time."""
    monkeypatch.setattr(pseudo_likelihood, "MOST_POSITIONS", at_a_time)
    model = model_of("speech", seed=2)
    sources = [p.source for p in pairs(3, seed=2, modality="speech")]
    outputs = [[A, B], [A, A, B, A, B, B], [], [B], [B, A, A], [A, B, A]]
    tokens = torch.tensor([output + [PAD] * (6 - len(output)) for output in outputs])
    lengths = torch.tensor([len(output) for output in outputs])
    with torch.inference_mode():
        memory = model.decoder.remember(model.encoder(*pad_sources(sources)))
        together = pseudo_likelihood.pseudo_log_likelihood(
            model.decoder, model.output, memory, tokens, lengths, maskings
        )
        expected = [judged(model, sources[i // 2], output, maskings) for i, output in enumerate(outputs)]
    assert together.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("options", [{}, {"beam": 3, "ctc_weight": 0.6, "maskings": 3}, {"ctc_weight": 1}], ids=str)
def test_the_best_of_the_beam_is_that_by_both_in_any_batch(modality, options):
    model, settings = model_of(modality, seed=1), Settings(start="ctc_beam", **options)
    sources = [p.source for p in pairs(12, seed=1, modality=modality)]
    together = decode_batch(model, sources, settings, "float32")
    first = 0
    for i, source in enumerate(sources):
        with torch.inference_mode():
            encoded = model.encoder(*pad_sources([source]))
            log_probs = model.ctc.output(model.ctc.upsample(encoded.states)).log_softmax(-1)
            tokens, lengths, scores = prefix_beam_search(log_probs, torch.tensor([log_probs.shape[1]]), settings.beam)
            most = model.ctc.max_target_length
            held = [row[:n][:most] for row, n in zip(tokens[0].tolist(), lengths[0].tolist(), strict=True)]
            w = settings.ctc_weight
            by_both = [
                w * s + (1 - w) * judged(model, source, y, settings.maskings)
                for y, s in zip(held, scores[0].tolist(), strict=True)
            ]
        best = max(range(len(held)), key=by_both.__getitem__)
        first += best == 0
        assert together[i].tokens == held[best]
        assert together[i].score == pytest.approx(by_both[best], abs=1e-3)
        if i % 4 == 0:
            assert decode_batch(model, [source], settings, "float32")[0].tokens == held[best]
    if settings.ctc_weight < 1:
        assert 0 < first < 12, "the test needs sentences where the decoder changes the choice, and others"


def test_the_beam_is_judged_in_one_pass():
    model = model_of("speech", seed=1)
    calls = []
    model.decoder.stack.register_forward_hook(lambda *_: calls.append(1))
    src, src_len = pad_sources([p.source for p in pairs(4, modality="speech")])
    with torch.inference_mode():
        decoded = model.decode(src, src_len, Settings(start="ctc_beam"))
        assert len(calls) == 1
        assert decoded.iterations.tolist() == [1] * 4
        calls.clear()
        decoded = model.decode(src, src_len, Settings(start="ctc_beam", ctc_weight=1))
        assert not calls
        assert decoded.iterations.tolist() == [0] * 4
