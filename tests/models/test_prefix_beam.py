import math

import pytest
import torch

from models.decoding.prefix_beam import Fusion, prefix_beam_search
from models.interface import BLANK, NUM_SPECIAL
from models.ngram import NgramModel
from tests.oracles import ctc as oracle
from tests.oracles.ctc import small

A, B, C = NUM_SPECIAL, NUM_SPECIAL + 1, NUM_SPECIAL + 2


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
        ranking = sorted(table, key=table.get, reverse=True)
        held = [tuple(small(tokens[i, k, : lengths[i, k]].tolist())) for k in range(len(ranking))]
        assert held == ranking
        assert scores[i, : len(ranking)].tolist() == pytest.approx([math.log(table[s]) for s in ranking], abs=1e-4)
        assert scores[i, len(ranking) :].tolist() == [float("-inf")] * (64 - len(ranking))
        assert not lengths[i, len(ranking) :].any()


def test_prefix_beam_sums_alignments_where_greedy_does_not():
    # Both frames prefer blank (0.6), yet "a" collects 0.4*0.4 + 2*0.4*0.6 = 0.64 against 0.36 for "".
    log_probs = torch.full((1, 2, NUM_SPECIAL + 1), float("-inf"))
    log_probs[:, :, BLANK], log_probs[:, :, A] = math.log(0.6), math.log(0.4)
    tokens, lengths, scores = prefix_beam_search(log_probs, torch.tensor([2]), beam=2)
    assert tokens[0, 0, : lengths[0, 0]].tolist() == [A]
    assert scores[0].exp().tolist() == pytest.approx([0.64, 0.36])


def test_prefix_beam_does_not_depend_on_the_batch():
    torch.manual_seed(3)
    log_probs = (3 * torch.randn(4, 9, NUM_SPECIAL + 12)).log_softmax(-1)
    frames = torch.tensor([9, 4, 7, 1])
    tokens, lengths, _ = prefix_beam_search(log_probs, frames, beam=3)
    for i in range(4):
        alone, n, _ = prefix_beam_search(log_probs[i : i + 1, : frames[i]], frames[i : i + 1], beam=3)
        assert n.tolist() == [lengths[i].tolist()]
        for k in range(3):
            assert alone[0, k, : n[0, k]].tolist() == tokens[i, k, : lengths[i, k]].tolist()


def test_prefix_beam_merges_into_a_held_prefix_whatever_the_rank_of_its_symbol():
    # After the first frame the beam of two holds "a" (0.55) and "" (0.45). In the second, "a" is only fourth, yet ""
    # grows into the held "a" by it: 0.55 * (0.24 + 0.18) + 0.45 * 0.18 = 0.312.
    log_probs = torch.full((1, 2, NUM_SPECIAL + 4), float("-inf"))
    for symbol, probability in {A: 0.55, BLANK: 0.45}.items():
        log_probs[0, 0, symbol] = math.log(probability)
    for symbol, probability in {B: 0.20, C: 0.19, C + 1: 0.19, A: 0.18, BLANK: 0.24}.items():
        log_probs[0, 1, symbol] = math.log(probability)
    tokens, lengths, scores = prefix_beam_search(log_probs, torch.tensor([2]), beam=2)
    assert tokens[0, 0, : lengths[0, 0]].tolist() == [A]
    assert scores[0, 0].exp().item() == pytest.approx(0.312)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("order", [0, 2])
def test_frames_that_are_certainly_blank_can_be_passed_over(seed, order):
    """Between, before and behind others, and between equal symbols, which they keep apart; with a language model."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.full((3, 9, NUM_SPECIAL + 3), float("-inf"))
    log_probs[:, :, [BLANK, A, B, C]] = (2 * torch.randn(3, 9, 4, generator=generator)).log_softmax(-1)
    certain = torch.rand(3, 9, generator=generator) < 0.4
    log_probs[certain] = float("-inf")
    log_probs[:, :, BLANK] = log_probs[:, :, BLANK].masked_fill(certain, 0.0)
    log_probs[2], certain[2] = float("-inf"), True
    log_probs[2, :, BLANK] = 0.0  # nothing but blanks
    frames = torch.tensor([9, 6, 4])
    fusion = Fusion(NgramModel.fit([[A, A], [A, B]], order, NUM_SPECIAL + 3), 0.7, 0.3) if order else None
    tokens, lengths, scores = prefix_beam_search(log_probs, frames, 6, fusion)
    few, numbers, same = prefix_beam_search(log_probs, frames, 6, fusion, blank_threshold=0.9999)
    for i in range(3):
        there = scores[i] > float("-inf")
        assert torch.allclose(scores[i][there], same[i][there], atol=1e-5)
        assert (same[i] > float("-inf")).tolist() == there.tolist()
        for k in range(int(there.sum())):
            assert few[i, k, : numbers[i, k]].tolist() == tokens[i, k, : lengths[i, k]].tolist()


def test_what_is_not_quite_blank_is_lost_where_blank_is_taken_for_certain():
    """Blank has 0.55 in the middle: as it stands "A" is best by way of it, with certain blanks "AA" is."""
    log_probs = torch.full((1, 3, NUM_SPECIAL + 1), float("-inf"))
    for frame, blank in enumerate([0.2, 0.55, 0.2]):
        log_probs[0, frame, BLANK], log_probs[0, frame, A] = math.log(blank), math.log(1 - blank)
    whole = prefix_beam_search(log_probs, torch.tensor([3]), 4)
    assert whole[0][0, 0, : whole[1][0, 0]].tolist() == [A]
    few = prefix_beam_search(log_probs, torch.tensor([3]), 4, blank_threshold=0.5)
    assert few[0][0, 0, : few[1][0, 0]].tolist() == [A, A]
    assert few[2][0, 0].exp().item() == pytest.approx(0.8 * 0.55 * 0.8)
