"""N-gram models: probabilities by hand, backing off, and what they do to prefix beam search."""

import itertools
import math

import pytest
import torch

from models.decoding.prefix_beam import Fusion, prefix_beam_search
from models.interface import BLANK, BOS, EOS, NUM_SPECIAL
from models.ngram import NgramModel
from tests.oracles import ctc as oracle

A, B = NUM_SPECIAL, NUM_SPECIAL + 1
V = NUM_SPECIAL + 2
TEXT = [[A, B], [A, A, B], [B]]


def probability(text, context, symbol):
    """Interpolated Witten-Bell by its definition, one context after the other."""
    if context is None:
        return 1 / 3 if symbol in (EOS, A, B) else 0.0
    padded = [[BOS] * 9 + list(s) + [EOS] for s in text]
    seen = [s[i] for s in padded for i in range(9, len(s)) if tuple(s[i - len(context) : i]) == tuple(context)]
    below = probability(text, tuple(context)[1:] if context else None, symbol)
    kinds = len(set(seen))
    return (seen.count(symbol) + kinds * below) / (len(seen) + kinds) if seen else below


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_are_those_of_the_definition(order):
    model = NgramModel.fit(TEXT, order, V)
    contexts = [
        [BOS] * (order - 1 - n) + list(symbols) for n in range(order) for symbols in itertools.product([A, B], repeat=n)
    ]
    got = model.next_log_probs(torch.tensor(contexts).view(len(contexts), order - 1)).exp()
    torch.testing.assert_close(got.sum(1), torch.ones(len(contexts)))
    for row, context in zip(got, contexts, strict=True):
        for symbol in range(V):
            assert row[symbol].item() == pytest.approx(probability(TEXT, context, symbol), abs=1e-6)


def test_a_unigram_by_hand():
    """A and B thrice, the end thrice; three kinds: (3 + 3/3) / (9 + 3) each."""
    row = NgramModel.fit(TEXT, 1, V).next_log_probs(torch.zeros(1, 0, dtype=torch.long))[0].exp()
    assert [row[i].item() for i in (EOS, A, B, BOS)] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        NgramModel.fit(TEXT, 0, V)
    with pytest.raises(ValueError, match="needs text"):
        NgramModel.fit([], 2, V)
    text = [[NUM_SPECIAL + i] for i in range(20_000)]
    with pytest.raises(ValueError, match="order 2 has too many contexts for 20007 symbols; order 1 fits"):
        NgramModel.fit(text, 2, 20_007)


@pytest.mark.parametrize(("weight", "bonus"), [(0.5, 0.0), (2.0, 0.7), (0.1, 1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_a_full_width_beam_finds_the_best_text_by_both(seed, weight, bonus):
    model = NgramModel.fit(TEXT, 3, V)
    logits = torch.full((2, 5, V), float("-inf"))
    logits[:, :, [BLANK, A, B]] = 2 * torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(seed))
    log_probs, frames = logits.log_softmax(-1), torch.tensor([5, 3])
    tokens, lengths, scores = prefix_beam_search(log_probs, frames, 64, Fusion(model, weight, bonus))
    for row in range(2):
        table = oracle.string_probabilities(log_probs[row, : frames[row]][:, [BLANK, A, B]].tolist())

        def by_both(text, table=table):
            ids = [NUM_SPECIAL + symbol - 1 for symbol in text]
            contexts = [([BOS, BOS, *ids])[i : i + 2] for i in range(len(ids) + 1)]
            language = sum(
                math.log(probability(TEXT, context, symbol))
                for context, symbol in zip(contexts, [*ids, EOS], strict=True)
            )
            return math.log(table[text]) + weight * language + bonus * len(text)

        best = max(table, key=by_both)
        assert oracle.small(tokens[row, 0, : lengths[row, 0]].tolist()) == list(best)
        assert scores[row, 0].item() == pytest.approx(by_both(best), abs=1e-4)


def test_hardly_any_weight_is_hardly_a_language_model():
    logits = torch.full((4, 9, V), float("-inf"))
    logits[:, :, [BLANK, A, B]] = 3 * torch.randn(4, 9, 3, generator=torch.Generator().manual_seed(0))
    log_probs, frames = logits.log_softmax(-1), torch.tensor([9, 4, 7, 1])
    plain = prefix_beam_search(log_probs, frames, 30)
    fused = prefix_beam_search(log_probs, frames, 30, Fusion(NgramModel.fit(TEXT, 2, V), 1e-9, 0.0))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(plain, fused, strict=True))


def test_fused_search_does_not_depend_on_the_batch():
    logits = torch.full((4, 9, V), float("-inf"))
    logits[:, :, [BLANK, A, B]] = torch.randn(4, 9, 3, generator=torch.Generator().manual_seed(1))
    log_probs, frames = logits.log_softmax(-1), torch.tensor([9, 4, 7, 1])
    fusion = Fusion(NgramModel.fit(TEXT, 3, V), 0.8, 0.2)
    tokens, lengths, _ = prefix_beam_search(log_probs, frames, 3, fusion)
    for i in range(4):
        alone, n, _ = prefix_beam_search(log_probs[i : i + 1, : frames[i]], frames[i : i + 1], 3, fusion)
        assert alone[0, 0, : n[0, 0]].tolist() == tokens[i, 0, : lengths[i, 0]].tolist()
