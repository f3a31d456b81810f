"""Mask-Predict: what training masks, what its loss counts, and every canvas of decoding."""

import math
from collections import Counter

import pytest
import torch
from torch.nn.functional import cross_entropy

from models.decoding.noise import draw_seeds
from models.decoding.refinement import masked_canvas, refine_until_done
from models.interface import MASK, NUM_SPECIAL, Batch
from models.mask_predict import Remasking, Settings, roll_in
from tests.models.families import batch_of, build
from tests.oracles import unmasking
from tests.oracles.unmasking import Script, network, random_table

_ = None  # a mask in canvases written by hand


def refined(script, lengths, passes):
    """Run the refiner on the script: final tokens and log-probabilities of each row."""
    refiner = Remasking(script, passes)
    canvas, iterations = refine_until_done(refiner, masked_canvas(torch.tensor(lengths)), passes)
    assert len(script.seen) == passes
    assert iterations.tolist() == [passes] * len(lengths)
    return [
        (row[:n], scores[:n])
        for row, scores, n in zip(canvas.tokens.tolist(), canvas.scores.tolist(), lengths, strict=True)
    ]


def test_canvases_of_five_tokens_in_three_passes():
    """Masks: all 5, then floor(5 * 2/3) = 3, then floor(5 * 1/3) = 1."""
    script = Script(
        [
            [[(10, 0.9), (11, 0.2), (12, 0.5), (13, 0.3), (14, 0.8)]],
            # Token 10 would get 0.1 now, but it stays, and keeps 0.9; so 22 is the least sure next.
            [[(20, 0.1), (21, 0.95), (22, 0.4), (23, 0.6), (24, 0.1)]],
            [[(30, 0.1), (31, 0.1), (32, 0.05), (33, 0.1), (34, 0.1)]],
        ]
    )
    ((tokens, scores),) = refined(script, [5], 3)
    assert [rows[0] for rows in script.seen] == [[_, _, _, _, _], [10, _, _, _, 14], [10, 21, _, 23, 14]]
    assert tokens == [10, 21, 32, 23, 14]
    assert scores == pytest.approx([math.log(p) for p in (0.9, 0.95, 0.05, 0.6, 0.8)])


def test_canvases_of_two_lengths_at_once_in_four_passes():
    """Masks of 2 tokens: 2, 1, 1, 0; of 4 tokens: 4, 3, 2, 1. A token may be masked, predicted and masked again."""
    script = Script(
        [
            [[(10, 0.4), (11, 0.3)], [(50, 0.6), (51, 0.5), (52, 0.7), (53, 0.8)]],
            [[(20, 0.9), (21, 0.2)], [(60, 0.9), (61, 0.1), (62, 0.2), (63, 0.9)]],
            [[(30, 0.9), (31, 0.1)], [(70, 0.9), (71, 0.3), (72, 0.4), (73, 0.9)]],
            [[(40, 0.9), (41, 0.9)], [(80, 0.9), (81, 0.6), (82, 0.9), (83, 0.9)]],
        ]
    )
    short, long = refined(script, [2, 4], 4)
    assert [rows[0] for rows in script.seen] == [[_, _], [10, _], [10, _], [10, 31]]
    assert [rows[1] for rows in script.seen] == [[_] * 4, [_, _, _, 53], [60, _, _, 53], [60, _, 72, 53]]
    assert short[0] == [10, 31]
    assert long[0] == [60, 81, 72, 53]
    assert long[1] == pytest.approx([math.log(p) for p in (0.9, 0.6, 0.4, 0.8)])


@pytest.mark.parametrize("passes", [1, 2, 3, 7, 10])
def test_canvases_are_those_of_the_slow_twin(passes):
    lengths = [1, 2, 3, 5, 9, 10, 20]
    table = random_table(passes, lengths, torch.Generator().manual_seed(passes))
    script = Script(table)
    results = refined(script, lengths, passes)
    for row, length in enumerate(lengths):
        said = iter([[(token, math.log(p)) for token, p in said[row]] for said in table])
        seen, tokens, scores = unmasking.mask_predict(lambda _, said=said: next(said), length, passes)
        assert [canvases[row] for canvases in script.seen] == seen
        assert results[row][0] == tokens
        assert results[row][1] == pytest.approx(scores)
        # Written out once more, in whole numbers: 10 * (1 - 9/10) is less than 1 in floating point.
        assert [canvas.count(None) for canvas in seen] == [length * (passes - i) // passes for i in range(passes)]


@pytest.mark.parametrize("iterations", [1, 3, 10, 30])
def test_decoding_takes_exactly_t_passes(iterations):
    model, batch = build("mask_predict"), batch_of(5, seed=1)
    passes = []
    model.decoder.stack.register_forward_hook(lambda *_: passes.append(1))
    with torch.inference_mode():
        decoded = model.decode(batch.src, batch.src_len, Settings(iterations=iterations, length_beam=2))
    assert len(passes) == iterations
    assert decoded.iterations.tolist() == [iterations] * 5


@torch.inference_mode()
def test_the_length_beam_chooses_what_candidates_alone_would():
    model, batch = build("mask_predict", seed=2), batch_of(12, seed=2)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    decoded = model.decode(batch.src, batch.src_len, Settings(iterations=4, length_beam=5))
    choices = set()
    for i in range(12):
        source = batch.src[i, : batch.src_len[i]].tolist()
        _, log_probs = model.encode(torch.tensor([source]), torch.tensor([len(source)]))
        lengths = sorted(range(1, log_probs.shape[1]), key=lambda n, row=log_probs[0]: -row[n].item())[:5]
        candidates = [unmasking.mask_predict(network(model, source), n, 4)[1:] for n in lengths]
        means = [sum(scores) / len(scores) for _, scores in candidates]
        best = means.index(max(means))
        choices.add(best)
        assert decoded.tokens[i, : decoded.lengths[i]].tolist() == candidates[best][0]
        assert decoded.scores[i].item() == pytest.approx(max(means), abs=1e-5)
    assert len(choices) > 1, "the test needs sentences whose most probable length does not win"


def test_training_masks_every_number_of_tokens_and_every_set_alike():
    """Each of the 15 sets of n >= 1 of 4 tokens has probability 1/4 * 1/C(4, n)."""
    draws = 20_000
    seeds = draw_seeds(torch.Generator().manual_seed(0), draws)
    masked = roll_in(torch.full((draws,), 4), 6, seeds)
    assert not masked[:, 4:].any()
    counts = Counter(map(tuple, masked[:, :4].int().tolist()))
    assert len(counts) == 15
    assert (1, 1, 1, 1) in counts  # what decoding starts from
    expected = {subset: draws / 4 / math.comb(4, sum(subset)) for subset in counts}
    assert sum((counts[s] - e) ** 2 / e for s, e in expected.items()) < 42.6  # chi-square of 14, 1 in 10,000


def test_one_token_is_always_masked_and_none_of_nothing():
    seeds = draw_seeds(torch.Generator().manual_seed(0), 200)
    assert roll_in(torch.ones(200, dtype=torch.long), 3, seeds).sum(1).tolist() == [1] * 200
    assert not roll_in(torch.zeros(200, dtype=torch.long), 3, seeds).any()


@pytest.mark.parametrize(("smoothing", "canvases"), [(0.0, 1), (0.1, 1), (0.1, 3)])
def test_the_loss_is_the_mean_over_masked_tokens_plus_the_lengths(smoothing, canvases):
    model = build("mask_predict", label_smoothing=smoothing, length_loss_weight=0.7, canvases=canvases)
    batch = batch_of(6, seed=3)
    with torch.no_grad():
        losses = model.loss(batch, torch.Generator().manual_seed(5))
        seeds = draw_seeds(torch.Generator().manual_seed(5), 6 * canvases)
        drawn = roll_in(batch.tgt_len.repeat_interleave(canvases), batch.tgt.shape[1], seeds)
        assert canvases == 1 or len({tuple(row) for row in drawn[:canvases].tolist()}) > 1
        tokens, lengths, count = 0.0, 0.0, 0
        for row, masked in enumerate(drawn):
            i = row // canvases
            n = int(batch.tgt_len[i])
            src, src_len = batch.src[i : i + 1, : batch.src_len[i]], batch.src_len[i : i + 1]
            memory, length_log_probs = model.encode(src, src_len)
            lengths -= length_log_probs[0, n].item()
            gold = batch.tgt[i, :n]
            canvas = torch.tensor([[MASK if masked[j] else int(gold[j]) for j in range(n)]])
            logits = model.output(model.decoder(canvas, batch.tgt_len[i : i + 1], memory))[0]
            for j in range(n):
                if masked[j]:
                    possible = logits[j, NUM_SPECIAL:]
                    tokens += cross_entropy(possible, gold[j] - NUM_SPECIAL, label_smoothing=smoothing).item()
                    count += 1
    assert losses.num_tokens == int(batch.tgt_len.sum())
    assert 0 < count < canvases * losses.num_tokens
    # A length weighs as much beside a masked token, however many canvases its sentence has.
    assert losses.total.item() == pytest.approx((tokens + 0.7 * lengths) / count, rel=1e-5)
    assert losses.parts["length"].item() == pytest.approx(lengths / count, rel=1e-5)


def test_pairs_without_tokens_train_on_nothing():
    model, batch = build("mask_predict"), batch_of(3, seed=4)
    empty = Batch(
        batch.src, torch.zeros_like(batch.src_len), torch.zeros_like(batch.tgt), torch.zeros_like(batch.tgt_len)
    )
    losses = model.loss(empty, torch.Generator().manual_seed(0))
    losses.total.backward()
    assert losses.total.item() == losses.num_tokens == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
