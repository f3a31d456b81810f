"""Length prediction, the choice among candidates, and the network that canvas families share."""

import pytest
import torch

from models.decoding.refinement import Canvas, MaskedDecoder, lowest, masked_canvas
from models.encoder import SourceEncoder
from models.frontend import TextFrontend
from models.interface import MASK, NUM_SPECIAL, PAD, Batch
from models.layers import Embedding, Stack
from models.length import LengthPredictor, best_candidates
from tests.models.families import VOCAB, batch_of, build


def predicted(max_length=6, b=3):
    """A predictor with log-probabilities [b, 1 + max_length] for random sources."""
    torch.manual_seed(0)
    encoder = SourceEncoder(TextFrontend(Embedding(VOCAB, 8, 5, 0.0), 5), Stack(1, 8, 2, 16, 0.0))
    predictor = LengthPredictor(8, max_length)
    src = torch.randint(NUM_SPECIAL, VOCAB, (b, 5))
    return predictor, predictor.encode(encoder, src, torch.tensor([5, 2, 0])[:b])[1].detach()


def test_lengths_are_a_distribution_without_zero():
    _, log_probs = predicted()
    assert torch.isneginf(log_probs[:, 0]).all()
    torch.testing.assert_close(log_probs[:, 1:].exp().sum(1), torch.ones(3))


def test_the_best_lengths_are_those_of_a_full_sort():
    predictor, log_probs = predicted()
    for count in (1, 3, 6, 50):
        lengths, values = predictor.best(log_probs, count)
        for i, row in enumerate(log_probs.tolist()):
            expected = sorted(range(1, 7), key=lambda n: -row[n])[:count]
            assert lengths[i].tolist() == expected
            assert values[i].tolist() == [row[n] for n in expected]


def test_the_loss_is_the_cross_entropy_of_lengths_that_are_possible():
    predictor, log_probs = predicted()
    loss = predictor.loss(log_probs, torch.tensor([2, 0, 6]))
    assert loss.item() == pytest.approx(-(log_probs[0, 2] + log_probs[2, 6]).item())
    assert predictor.loss(log_probs, torch.zeros(3, dtype=torch.long)).item() == 0


def test_lengths_of_several_targets_are_looked_up_and_impossible_ones_have_probability_zero():
    predictor, log_probs = predicted()
    found = predictor.log_probability(log_probs, torch.tensor([1, 6, 0, 2, 7, 3]))
    inf = float("inf")
    expected = [log_probs[0, 1], log_probs[0, 6], -inf, log_probs[1, 2], -inf, log_probs[2, 3]]
    assert found.tolist() == [float(x) for x in expected]


def test_the_best_candidate_has_the_highest_mean_over_real_tokens():
    # Sentence 0: totals are -3 (one token), -4 (four) and -2.4 (two): means -3, -1 and -1.2.
    # Sentence 1: -0.5, then a canvas of mean -0.4, then -0.6 whose padding would lift it if it counted.
    junk = 1000.0
    scores = torch.tensor(
        [
            [-3.0, junk, junk, junk],
            [-1.0, -1.0, -1.0, -1.0],
            [-1.2, -1.2, junk, junk],
            [-0.5, -0.5, -0.5, junk],
            [-0.1, -0.7, junk, -junk],
            [-0.6, 0.0, 0.0, 0.0],
        ]
    )
    lengths = torch.tensor([1, 4, 2, 3, 2, 1])
    tokens = torch.arange(10, 34).view(6, 4)
    chosen = best_candidates(tokens, lengths, scores, torch.tensor([3, 1, 2, 5, 4, 6]), 3)
    assert chosen.tokens.tolist() == [tokens[1].tolist(), tokens[4].tolist()]
    assert chosen.lengths.tolist() == [4, 2]
    assert chosen.scores.tolist() == pytest.approx([-1.0, -0.4])
    assert chosen.iterations.tolist() == [3, 6]  # the slowest candidate's


def test_equal_candidates_leave_the_most_probable_length():
    chosen = best_candidates(
        torch.arange(6).view(6, 1), torch.ones(6, dtype=torch.long), -torch.ones(6, 1), torch.ones(6), 3
    )
    assert chosen.tokens.tolist() == [[0], [3]]


def test_no_sentences():
    empty = masked_canvas(torch.zeros(0, dtype=torch.long))
    chosen = best_candidates(empty.tokens, empty.lengths, empty.scores, empty.lengths, 3)
    assert chosen.tokens.shape[0] == chosen.scores.shape[0] == 0


def test_states_do_not_see_what_they_predict():
    model, batch = build("mask_predict"), batch_of(4, seed=1)
    masked = torch.zeros_like(batch.tgt, dtype=torch.bool)
    masked[:, 0] = True
    memory, _ = model.encode(batch.src, batch.src_len)
    states = model.states_at(masked, batch.tgt, batch.tgt_len, memory)
    changed = Batch(batch.src, batch.src_len, batch.tgt.clone(), batch.tgt_len)
    changed.tgt[:, 0] = NUM_SPECIAL
    assert (changed.tgt != batch.tgt).any()
    torch.testing.assert_close(model.states_at(masked, changed.tgt, changed.tgt_len, memory), states, rtol=0, atol=0)
    longest = int(batch.tgt_len.argmax())
    changed.tgt[longest, 1] = (batch.tgt[longest, 1] - NUM_SPECIAL + 1) % (VOCAB - NUM_SPECIAL) + NUM_SPECIAL
    assert not torch.equal(model.states_at(masked, changed.tgt, changed.tgt_len, memory)[longest], states[longest])


def test_a_canvas_starts_all_masked():
    canvas = masked_canvas(torch.tensor([2, 3, 1]))
    assert canvas.tokens.tolist() == [[MASK, MASK, PAD], [MASK] * 3, [MASK, PAD, PAD]]
    assert canvas.scores.tolist() == [[0.0] * 3] * 3


def test_lowest_takes_counts_and_the_first_among_equals():
    inf = float("inf")
    values = torch.tensor([[3.0, 1.0, 1.0, 2.0], [0.0, 0.0, 0.0, inf], [-1.0, -2.0, inf, inf]])
    for counts, expected in (
        ([2, 1, 2], ["0110", "1000", "1100"]),
        ([1, 3, 0], ["0100", "1110", "0000"]),
        ([4, 0, 1], ["1111", "0000", "0100"]),
    ):
        rows = lowest(values, torch.tensor(counts)).int().tolist()
        assert ["".join(map(str, row)) for row in rows] == expected


def test_filling_touches_masks_alone_and_each_candidate_sees_its_own_source():
    model, batch = build("mask_predict", seed=3), batch_of(3, seed=5)
    torch.manual_seed(1)
    tokens = torch.randint(NUM_SPECIAL, VOCAB, (6, 4))
    tokens[:, 1] = tokens[:, 3] = MASK
    lengths = torch.tensor([4, 2, 4, 4, 2, 4])
    tokens[lengths == 2, 2:] = PAD
    canvas = Canvas(tokens, lengths, torch.full((6, 4), -0.25).masked_fill(tokens == PAD, 0.0))
    memory, _ = model.encode(batch.src, batch.src_len)
    network = MaskedDecoder(model.decoder, model.output, memory, 2)
    filled = network.fill(canvas)

    visible = tokens != MASK
    assert torch.equal(filled.tokens[visible], tokens[visible])
    assert torch.equal(filled.scores[visible], canvas.scores[visible])
    assert (filled.tokens[~visible] >= NUM_SPECIAL).all()
    for row in range(6):
        n = int(lengths[row])
        states = model.decoder(
            tokens[row : row + 1, :n], lengths[row : row + 1], memory.select(torch.tensor([row // 2]))
        )
        scores, ids = model.output(states)[0].log_softmax(-1).max(-1)
        masks = ~visible[row, :n]
        assert torch.equal(filled.tokens[row, :n][masks], ids[masks])
        torch.testing.assert_close(filled.scores[row, :n][masks], scores[masks])

    for rows in ([0, 2, 3, 5], [1, 3]):  # the first rows leave, then some of the rest
        canvas = canvas.select(torch.tensor(rows))
        filled = filled.select(torch.tensor(rows))
        network.select(torch.tensor(rows))
        after = network.fill(canvas)
        assert torch.equal(after.tokens, filled.tokens)
        torch.testing.assert_close(after.scores, filled.scores)
