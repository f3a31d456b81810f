"""Attention with CTC beside: prefix scores and joint search against enumeration, and what training adds up."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import ctc_loss

from models.decoding.joint import CTCScorer
from models.interface import BLANK, BOS, EOS, NUM_SPECIAL
from models.registry import built_in_families
from models.transformer import Transformer
from tests.models.families import batch_of, build
from tests.oracles import ctc as oracle
from tests.oracles.search import all_outputs

A, B = NUM_SPECIAL, NUM_SPECIAL + 1
FAMILIES = ["transformer", "rnn"]


def random_frames(sentences, frames, symbols, seed=0):
    """Log-probabilities [b, f, v] over blank and the first `symbols` symbols that are not special."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.full((sentences, frames, NUM_SPECIAL + symbols), float("-inf"))
    allowed = [BLANK, *range(NUM_SPECIAL, NUM_SPECIAL + symbols)]
    logits[:, :, allowed] = 2 * torch.randn(sentences, frames, len(allowed), generator=generator)
    return logits.log_softmax(-1), allowed


def prefix_probability(strings, prefix):
    """Probability of all strings that begin with `prefix`."""
    return sum(p for string, p in strings.items() if string[: len(prefix)] == prefix)


@pytest.mark.parametrize("prefix", [(A,), (A, A), (A, B), (A, B, A), (B, B, B), (A, A, B)])
def test_prefix_scores_equal_the_sum_over_all_strings(prefix):
    """Two sentences, of 6 and of 5 frames; the prefixes have repeats, which need a blank between."""
    log_probs, allowed = random_frames(2, 6, 2)
    frames = [6, 5]
    scorer = CTCScorer(log_probs, torch.tensor(frames), beam=1, weight=1.0)
    strings = []
    for sentence, count in enumerate(frames):
        small = log_probs[sentence, :count, allowed].tolist()
        strings.append({tuple(A + s - 1 for s in k): p for k, p in oracle.string_probabilities(small).items()})
    zero = torch.zeros(2, 2), torch.zeros(2)
    totals = torch.zeros(2, dtype=torch.float64)
    for position, symbol in enumerate(prefix):
        candidates = torch.tensor([[A, B], [A, B]])
        log_probs_of, ends = scorer.rescore(candidates, *zero)
        for sentence in range(2):
            here = prefix[:position]
            before = prefix_probability(strings[sentence], here)
            expected = [prefix_probability(strings[sentence], (*here, c)) / before for c in (A, B)]
            assert log_probs_of[sentence].exp().tolist() == pytest.approx(expected, rel=1e-5)
            assert ends[sentence].exp().item() == pytest.approx(strings[sentence].get(here, 0.0) / before, rel=1e-5)
        totals += log_probs_of[:, symbol - A]
        scorer.advance(torch.arange(2), torch.full((2,), symbol - A), None)
    assert totals.exp().tolist() == pytest.approx([prefix_probability(s, prefix) for s in strings], rel=1e-4)


def test_rows_that_are_reordered_or_leave_take_their_state_along():
    """Beams of 2: sentence 0 leaves, and both hypotheses of sentence 1 go on from its second one."""
    log_probs, _ = random_frames(2, 7, 3, seed=1)
    frames = torch.tensor([7, 6])
    scorer = CTCScorer(log_probs, frames, beam=2, weight=0.4)
    symbols = torch.tensor([[A, B]] * 4)
    scorer.rescore(symbols, torch.zeros(4, 2), torch.zeros(4))
    scorer.advance(torch.arange(4), torch.tensor([0, 1, 0, 1]), None)
    scorer.rescore(symbols, torch.zeros(4, 2), torch.zeros(4))
    scorer.advance(torch.tensor([3, 3]), torch.tensor([0, 1]), torch.tensor([1]))
    result = scorer.rescore(torch.tensor([[B], [B]]), torch.zeros(2, 1), torch.zeros(2))
    for row, prefix in enumerate([(B, A), (B, B)]):
        alone = CTCScorer(log_probs[1:, :6], frames[1:], beam=1, weight=0.4)
        for symbol in prefix:
            alone.rescore(torch.tensor([[symbol]]), torch.zeros(1, 1), torch.zeros(1))
            alone.advance(torch.tensor([0]), torch.tensor([0]), None)
        expected = alone.rescore(torch.tensor([[B]]), torch.zeros(1, 1), torch.zeros(1))
        assert result[0][row].tolist() == pytest.approx(expected[0][0].tolist(), abs=1e-5)
        assert result[1][row].item() == pytest.approx(expected[1].item(), abs=1e-5)


def test_a_long_recording_loses_no_precision():
    """300 frames that say nothing but blanks, then a symbol: sums of hundreds of small logarithms."""
    log_probs = torch.full((1, 301, NUM_SPECIAL + 2), -60.0)
    log_probs[0, :300, BLANK] = -0.01
    log_probs[0, 300, A] = -0.02
    scorer = CTCScorer(log_probs, torch.tensor([301]), beam=1, weight=1.0)
    extended, _ = scorer.rescore(torch.tensor([[A, B]]), torch.zeros(1, 2), torch.zeros(1))
    assert extended[0, 0].item() == pytest.approx(300 * -0.01 - 0.02, abs=1e-4)
    scorer.advance(torch.tensor([0]), torch.tensor([0]), None)
    _, end = scorer.rescore(torch.tensor([[A, B]]), torch.zeros(1, 2), torch.zeros(1))
    assert end.item() == pytest.approx(0.0, abs=1e-4)


# Joint search


def confined(family, modality, symbols=3, **changes):
    """A model with CTC that emits the first `symbols` symbols alone, attention and CTC of different opinions."""
    model = build(family, 1, modality, ctc_weight=0.3, **changes)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    for output in (model.output, model.ctc.output):
        output.ban[NUM_SPECIAL + symbols :] = float("-inf")
    return model


def stepper_of(model, src, src_len, size):
    """The state of one row for each source."""
    return model.stepper(src, src_len, size) if isinstance(model, Transformer) else model.stepper(src, src_len)


def attended(model, src, src_len, output):
    """Log-probability of attention for `output` and its end."""
    stepper = stepper_of(model, src, src_len, len(output) + 1)
    total, before = 0.0, BOS
    for symbol in (*output, EOS):
        total += stepper.step(torch.tensor([before]))[0].log_softmax(-1)[symbol].item()
        before = symbol
    return total


def spoken(model, src, src_len, output):
    """Log-probability of CTC for `output`, by PyTorch's loss."""
    source = model.encoder(src, src_len) if isinstance(model, Transformer) else model.encode(src, src_len).source
    frames = int(source.lengths[0]) * model.ctc.upsample.factor
    log_probs = model.ctc.output(model.ctc.upsample(source.states))[0, :frames].log_softmax(-1)
    target = torch.tensor(output, dtype=torch.long)
    return -ctc_loss(log_probs, target, (frames,), (len(output),), blank=BLANK, reduction="sum").item()


@torch.inference_mode()
@pytest.mark.parametrize("weight", [0.3, 0.9])
@pytest.mark.parametrize("modality", ["text", "speech"])
@pytest.mark.parametrize("family", FAMILIES)
def test_full_width_joint_search_equals_enumeration(family, modality, weight):
    model, batch, longest = confined(family, modality), batch_of(6, seed=5, modality=modality), 3
    model.max_target_length = longest
    options = built_in_families()[family].settings
    found = model.decode(
        batch.src, batch.src_len, options(beam=3**3 + 1, ctc_weight=weight, alpha=0.0, stopping="exact")
    )
    changed = 0
    for i in range(6):
        one = batch.src[i : i + 1, : batch.src_len[i]], batch.src_len[i : i + 1]
        outputs = list(all_outputs(range(NUM_SPECIAL, NUM_SPECIAL + 3), longest))
        attention = {output: attended(model, *one, output) for output in outputs}
        joint = {output: (1 - weight) * attention[output] + weight * spoken(model, *one, output) for output in outputs}
        best = max(outputs, key=joint.__getitem__)
        assert tuple(found.tokens[i, : found.lengths[i]].tolist()) == best
        assert found.scores[i].item() == pytest.approx(joint[best], abs=1e-3)
        changed += best != max(outputs, key=attention.__getitem__)
    assert changed, "the test needs sentences of which CTC changes the output"


@torch.inference_mode()
@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sentence_is_decoded_jointly_as_it_is_alone(family, beam):
    model, batch = confined(family, "speech", symbols=20), batch_of(12, seed=6, modality="speech")
    settings = built_in_families()[family].settings(beam=beam, ctc_weight=0.4)
    found = model.decode(batch.src, batch.src_len, settings)
    assert len(set(found.lengths.tolist())) > 1
    for i in range(12):
        alone = model.decode(batch.src[i : i + 1, : batch.src_len[i]], batch.src_len[i : i + 1], settings)
        assert found.tokens[i, : found.lengths[i]].tolist() == alone.tokens[0].tolist()
        assert found.scores[i].item() == pytest.approx(alone.scores[0].item(), abs=1e-3)


# Training


@pytest.mark.parametrize("modality", ["text", "speech"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_weighs_attention_and_ctc(family, modality):
    model, batch = build(family, 1, modality, ctc_weight=0.3), batch_of(5, seed=2, modality=modality)
    with torch.no_grad():
        losses = model.loss(batch, torch.Generator())
        attention = ctc = 0.0
        for i in range(5):
            one = batch.src[i : i + 1, : batch.src_len[i]], batch.src_len[i : i + 1]
            target = tuple(batch.tgt[i, : batch.tgt_len[i]].tolist())
            attention -= attended(model, *one, target)
            ctc -= spoken(model, *one, target)
    n = int(batch.tgt_len.sum())
    assert losses.parts["ctc"].item() == pytest.approx(ctc / n, rel=1e-4)
    assert losses.total.item() == pytest.approx((0.7 * attention + 0.3 * ctc) / n, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_that_do_not_fit_are_counted_and_add_nothing(family):
    model, batch = build(family, 1, "speech", ctc_weight=0.3), batch_of(3, seed=2, modality="speech")
    short = replace(batch, src=batch.src[:, :1], src_len=torch.ones_like(batch.src_len))
    losses = model.loss(short, torch.Generator())
    fits = batch.tgt_len <= 1
    assert not fits.all()
    assert losses.counts == {"infeasible": int((~fits).sum())}
    assert torch.isfinite(losses.total)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ctc_weight": 0.3, "sample": True}, "ctc_weight 0.3 has no meaning with sample: true"),
        ({"ctc_weight": 0.3, "output_length": "source"}, "ctc_weight 0.3 has no meaning with output_length source"),
        ({"ctc_weight": 0.3, "draft_tokens": 2}, "ctc_weight 0.3 has no meaning with draft_tokens"),
        ({"ctc_weight": 0.3, "engine": "huggingface"}, "engine huggingface has no CTC, and ctc_weight is 0.3"),
        ({"ctc_weight": 1.0}, "less than 1"),
    ],
)
def test_settings_that_contradict_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        built_in_families()["transformer"].settings(**options)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_jointly_needs_a_model_that_was_trained_so(family):
    known = built_in_families()[family]
    settings = known.settings(beam=5, ctc_weight=0.3)
    assert settings.misfit(known.config()) == "ctc_weight needs a model that is trained with ctc_weight above 0"
    assert settings.misfit(known.config(ctc_weight=0.3)) is None
    assert known.settings(ctc_weight=0.3, alpha=1.0).alpha == 1.0  # one hypothesis is a search with an end to choose
