import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.alignment import collapse, ctc_loss, prefix_beam_search, required_frames
from models.interface import BLANK, NUM_SPECIAL, PAD
from models.output import OutputLayer
from tests.oracles import ctc as oracle

A, B, C = NUM_SPECIAL, NUM_SPECIAL + 1, NUM_SPECIAL + 2
OTHERS = [i for i in range(NUM_SPECIAL) if i != BLANK]


def small(symbols):
    """Number real symbols as the oracle does: blank 0, then 1, 2, ..."""
    return [0 if s == BLANK else s - NUM_SPECIAL + 1 for s in symbols]


@given(st.lists(st.lists(st.sampled_from([BLANK, A, B, C]), max_size=8), min_size=1, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_collapse_equals_two_line_reference(rows, data):
    width = max(1, *map(len, rows)) + data.draw(st.integers(0, 2))
    # Whatever stands behind the end of a sentence must not matter.
    alignment = torch.full((len(rows), width), data.draw(st.sampled_from([PAD, BLANK, A])))
    for i, row in enumerate(rows):
        alignment[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    tokens, lengths = collapse(alignment, torch.tensor([len(r) for r in rows]))
    for i, row in enumerate(rows):
        assert tuple(small(tokens[i, : lengths[i]].tolist())) == oracle.collapse(small(row))
        assert (tokens[i, lengths[i] :] == PAD).all()


def test_required_frames_counts_adjacent_repeats_only_within_the_length():
    target = torch.tensor([[A, A, B, B], [A, B, A, B], [A, A, A, A], [PAD, PAD, PAD, PAD]])
    lengths = torch.tensor([4, 4, 2, 0])
    assert required_frames(target, lengths).tolist() == [6, 4, 3, 0]


def output_layer(v, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return OutputLayer(torch.nn.Parameter(torch.randn(v, d, generator=generator)), banned=OTHERS)


@pytest.mark.parametrize("seed", range(8))
def test_loss_equals_enumeration_of_alignments(seed):
    generator = torch.Generator().manual_seed(seed)
    v, d, f = NUM_SPECIAL + 2, 5, 4
    layer = output_layer(v, d, seed)
    hidden = torch.randn(3, f, d, generator=generator)
    target = torch.tensor([[A, A, PAD], [A, B, A], [B, PAD, PAD]])
    lengths, frames = torch.tensor([2, 3, 1]), torch.tensor([4, 4, 3])
    total, nll, feasible = ctc_loss(layer, hidden, frames, target, lengths)
    expected = []
    for i in range(3):
        log_probs = layer(hidden[i, : frames[i]]).log_softmax(-1)[:, [BLANK, A, B]].tolist()
        string = tuple(small(target[i, : lengths[i]].tolist()))
        expected.append(-math.log(oracle.string_probabilities(log_probs)[string]))
    assert feasible.all()
    assert nll.tolist() == pytest.approx(expected, abs=1e-4)
    assert total.item() == pytest.approx(sum(expected), abs=1e-4)


def test_loss_and_gradient_equal_the_dense_ctc_loss():
    torch.manual_seed(0)
    v, d, f, b = NUM_SPECIAL + 30, 8, 12, 6
    layer = output_layer(v, d, 1)
    hidden = (2 * torch.randn(b, f, d)).requires_grad_()
    frames = torch.tensor([12, 12, 9, 7, 3, 1])
    lengths = torch.tensor([5, 6, 4, 3, 3, 0])
    target = torch.randint(NUM_SPECIAL, NUM_SPECIAL + 3, (b, 6))  # few symbols: repeats are common
    target[4] = A  # AAA needs five frames and has three: infeasible
    for i in range(b):
        target[i, lengths[i] :] = PAD
    total, _, feasible = ctc_loss(layer, hidden, frames, target, lengths)
    assert feasible.tolist() == [True, True, True, True, False, True]
    got = torch.autograd.grad(total, [hidden, layer.weight])
    dense = layer(hidden).masked_fill(layer.ban.isinf(), -1e30).log_softmax(-1)
    reference = torch.nn.functional.ctc_loss(
        dense.transpose(0, 1), target, frames, lengths, blank=BLANK, reduction="none", zero_infinity=True
    )[feasible].sum()
    want = torch.autograd.grad(reference, [hidden, layer.weight])
    assert total.item() == pytest.approx(reference.item(), rel=1e-5)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=2e-4, rtol=1e-3)


def test_gradient_scales_with_what_stands_above_the_loss():
    layer = output_layer(NUM_SPECIAL + 3, 4, 2)
    hidden = torch.randn(1, 5, 4, requires_grad=True)
    args = (torch.tensor([5]), torch.tensor([[A, B]]), torch.tensor([2]))
    (once,) = torch.autograd.grad(ctc_loss(layer, hidden, *args)[0], hidden)
    (thrice,) = torch.autograd.grad(3 * ctc_loss(layer, hidden, *args)[0], hidden)
    torch.testing.assert_close(thrice, 3 * once)


@pytest.mark.parametrize("seed", range(10))
def test_prefix_beam_with_full_width_equals_exhaustive_search(seed):
    generator = torch.Generator().manual_seed(seed)
    f, v = 5, NUM_SPECIAL + 2
    logits = torch.full((2, f, v), float("-inf"))
    logits[:, :, [BLANK, A, B]] = 2 * torch.randn(2, f, 3, generator=generator)
    log_probs = logits.log_softmax(-1)
    frames = torch.tensor([5, 3])
    tokens, lengths, scores = prefix_beam_search(log_probs, frames, beam=64)  # more than all 2^6-1 strings
    for i in range(2):
        table = oracle.string_probabilities(log_probs[i, : frames[i]][:, [BLANK, A, B]].tolist())
        best = max(table, key=table.get)
        assert tuple(small(tokens[i, : lengths[i]].tolist())) == best
        assert scores[i].item() == pytest.approx(math.log(table[best]), abs=1e-4)


def test_prefix_beam_sums_alignments_where_greedy_does_not():
    # Both frames prefer blank (0.6), yet "a" collects 0.4*0.4 + 2*0.4*0.6 = 0.64 against 0.36 for "".
    log_probs = torch.full((1, 2, NUM_SPECIAL + 1), float("-inf"))
    log_probs[:, :, BLANK], log_probs[:, :, A] = math.log(0.6), math.log(0.4)
    tokens, lengths, scores = prefix_beam_search(log_probs, torch.tensor([2]), beam=2)
    assert tokens[0, : lengths[0]].tolist() == [A]
    assert scores.exp().item() == pytest.approx(0.64)


def test_prefix_beam_does_not_depend_on_the_batch():
    torch.manual_seed(3)
    log_probs = (3 * torch.randn(4, 9, NUM_SPECIAL + 12)).log_softmax(-1)
    frames = torch.tensor([9, 4, 7, 1])
    tokens, lengths, _ = prefix_beam_search(log_probs, frames, beam=3)
    for i in range(4):
        alone, n, _ = prefix_beam_search(log_probs[i : i + 1, : frames[i]], frames[i : i + 1], beam=3)
        assert alone[0, : n[0]].tolist() == tokens[i, : lengths[i]].tolist()


def test_prefix_beam_merges_into_a_held_prefix_whatever_the_rank_of_its_symbol():
    # After the first frame the beam of two holds "a" (0.55) and "" (0.45). In the second, "a" is only fourth, yet ""
    # grows into the held "a" by it: 0.55 * (0.24 + 0.18) + 0.45 * 0.18 = 0.312.
    log_probs = torch.full((1, 2, NUM_SPECIAL + 4), float("-inf"))
    for symbol, probability in {A: 0.55, BLANK: 0.45}.items():
        log_probs[0, 0, symbol] = math.log(probability)
    for symbol, probability in {B: 0.20, C: 0.19, C + 1: 0.19, A: 0.18, BLANK: 0.24}.items():
        log_probs[0, 1, symbol] = math.log(probability)
    tokens, lengths, scores = prefix_beam_search(log_probs, torch.tensor([2]), beam=2)
    assert tokens[0, : lengths[0]].tolist() == [A]
    assert scores.exp().item() == pytest.approx(0.312)
