"""Masked diffusion: the bound in training and evaluation, and decoding by schedule and by threshold."""

import math
from collections import Counter
from itertools import permutations

import pytest
import torch
from torch.nn.functional import cross_entropy

from models.decoding.committing import Committing, CommittingAbove
from models.decoding.noise import draw_seeds
from models.decoding.refinement import masked_canvas, refine_until_done
from models.interface import MASK, NUM_SPECIAL, Batch
from models.masked_diffusion import Settings, mask_ratios, roll_in
from tests.models.families import VOCAB, batch_of, build
from tests.oracles import unmasking
from tests.oracles.unmasking import Script, network, random_table

_ = None  # a mask in canvases written by hand


def refined(script, lengths, steps=0, threshold=None):
    """Run the refiner on the script: final tokens and log-probabilities of each row, and the passes that each took."""
    start = masked_canvas(torch.tensor(lengths))
    refiner = CommittingAbove(script, threshold) if threshold else Committing(script, start.lengths, steps)
    canvas, iterations = refine_until_done(refiner, start, steps or max(lengths))
    rows = [
        (row[:n], scores[:n])
        for row, scores, n in zip(canvas.tokens.tolist(), canvas.scores.tolist(), lengths, strict=True)
    ]
    return rows, iterations.tolist()


def test_the_schedule_commits_equal_shares_for_good():
    """5 tokens in 2 passes: 3, then 2. 1 token: the second pass does without it."""
    script = Script(
        [
            [[(10, 0.2), (11, 0.9), (12, 0.3), (13, 0.1), (14, 0.8)], [(50, 0.5)]],
            [[(20, 0.7), (21, 0.99), (22, 0.99), (23, 0.6), (24, 0.99)], []],
        ]
    )
    rows, passes = refined(script, [5, 1], steps=2)
    assert script.seen == [[[_, _, _, _, _], [_]], [[_, 11, 12, _, 14], None]]
    assert [tokens for tokens, _ in rows] == [[20, 11, 12, 23, 14], [50]]
    assert rows[0][1] == pytest.approx([math.log(p) for p in (0.7, 0.9, 0.3, 0.6, 0.8)])
    assert passes == [2, 1]


def test_the_threshold_commits_all_above_it_and_one_at_least():
    script = Script(
        [
            [[(10, 0.9), (11, 0.2), (12, 0.6), (13, 0.3)], [(50, 0.1), (51, 0.2)]],
            [[(20, 0.99), (21, 0.4), (22, 0.99), (23, 0.3)], [(60, 0.3), (61, 0.9)]],  # none above: the best one
            [[(30, 0.99), (31, 0.99), (32, 0.99), (33, 0.1)], []],
        ]
    )
    rows, passes = refined(script, [4, 2], threshold=0.5)
    assert script.seen == [[[_, _, _, _], [_, _]], [[10, _, 12, _], [_, 51]], [[10, 21, 12, _], None]]
    assert [tokens for tokens, _ in rows] == [[10, 21, 12, 33], [60, 51]]
    assert rows[0][1] == pytest.approx([math.log(p) for p in (0.9, 0.4, 0.6, 0.1)])
    assert passes == [3, 2]


@pytest.mark.parametrize(
    "options", [{"steps": n} for n in (1, 2, 3, 7, 10)] + [{"threshold": p} for p in (0.3, 0.9, 1)]
)
def test_canvases_are_those_of_the_slow_twin(options):
    lengths = [1, 2, 3, 5, 9, 10, 20]
    table = random_table(20, lengths, torch.Generator().manual_seed(1))
    script = Script(table)
    rows, passes = refined(script, lengths, **options)
    for row, length in enumerate(lengths):
        said = iter([[(token, math.log(p)) for token, p in said[row]] for said in table])
        seen, tokens, scores = unmasking.masked_diffusion(lambda _, said=said: next(said), length, **options)
        assert [canvases[row] for canvases in script.seen if canvases[row] is not None] == seen
        assert rows[row] == (tokens, pytest.approx(scores))
        assert passes[row] == len(seen)
        if "steps" in options:
            assert passes[row] == min(length, options["steps"])
        if options.get("threshold") == 1:
            assert passes[row] == length  # nothing is more than certain: one token per pass
        for before, after in zip(seen, [*seen[1:], tokens], strict=True):  # what is committed stays, and it grows
            assert all(old in (None, new) for old, new in zip(before, after, strict=True))
            assert after.count(None) < before.count(None)


@pytest.mark.parametrize("options", [{"steps": 3}, {"steps": 50}, {"threshold": 0.2}])
@torch.inference_mode()
def test_decoding_is_that_of_candidates_alone(options):
    model, batch = build("masked_diffusion", seed=2), batch_of(12, seed=2)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    passes = []
    model.decoder.stack.register_forward_hook(lambda *_: passes.append(1))
    decoded = model.decode(batch.src, batch.src_len, Settings(length_beam=4, **options))
    taken = len(passes)
    choices, rounds = set(), []
    for i in range(12):
        source = batch.src[i, : batch.src_len[i]].tolist()
        _, log_probs = model.encode(torch.tensor([source]), torch.tensor([len(source)]))
        lengths = sorted(range(1, log_probs.shape[1]), key=lambda n, row=log_probs[0]: -row[n].item())[:4]
        candidates = [unmasking.masked_diffusion(network(model, source), n, **options) for n in lengths]
        means = [sum(scores) / len(scores) for _, _, scores in candidates]
        best = means.index(max(means))
        choices.add(best)
        rounds.append(max(len(seen) for seen, _, _ in candidates))
        assert decoded.tokens[i, : decoded.lengths[i]].tolist() == candidates[best][1]
        assert decoded.scores[i].item() == pytest.approx(max(means), abs=1e-5)
    assert len(choices) > 1, "the test needs sentences whose most probable length does not win"
    assert decoded.iterations.tolist() == rounds
    assert taken == max(rounds)


def test_ratios_are_uniform_and_cover_the_range_together():
    ratios = mask_ratios(torch.tensor(0.0, dtype=torch.float64), 4, 0.0)
    assert ratios.tolist() == [1.0, 0.75, 0.5, 0.25]
    assert mask_ratios(torch.tensor(0.5, dtype=torch.float64), 4, 0.2).tolist() == pytest.approx([0.6, 0.4, 1.0, 0.8])
    offsets = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    each = torch.stack([mask_ratios(offset, 3, 0.0) for offset in offsets])
    assert ((each > 0) & (each <= 1)).all()
    for row in range(3):  # each by itself: ten bins, chi-square of 9, 1 in 10,000
        bins = torch.histc(each[:, row].float(), 10, 0, 1)
        assert ((bins - 2000) ** 2 / 2000).sum() < 33.7


def test_tokens_are_masked_independently_with_the_sentence_s_own_probability():
    draws = 20_000
    seeds = draw_seeds(torch.Generator().manual_seed(0), draws)
    for ratio in (0.3, 0.8):
        masked = roll_in(torch.full((draws,), 3), 5, torch.full((draws,), ratio), seeds)
        assert not masked[:, 3:].any()
        counts = Counter(map(tuple, masked[:, :3].int().tolist()))
        assert len(counts) == 8  # none at all included
        expected = {s: draws * ratio ** sum(s) * (1 - ratio) ** (3 - sum(s)) for s in counts}
        assert sum((counts[s] - e) ** 2 / e for s, e in expected.items()) < 29.9  # chi-square of 7, 1 in 10,000
    both = roll_in(torch.full((2,), 5), 5, torch.tensor([1.0, 1e-9]), seeds[:2])
    assert both.sum(1).tolist() == [5, 0]


@pytest.mark.parametrize("canvases", [1, 3])
def test_the_loss_weighs_masked_tokens_by_one_over_t(canvases):
    model = build("masked_diffusion", length_loss_weight=0.7, min_mask_ratio=0.1, canvases=canvases)
    batch, draws = batch_of(6, seed=3), 6 * canvases
    with torch.no_grad():
        losses = model.loss(batch, torch.Generator().manual_seed(5))
        rng = torch.Generator().manual_seed(5)
        even = mask_ratios(torch.rand((), generator=rng, dtype=torch.float64), draws, 0.1).tolist()
        ratios = [even[canvas * 6 + i] for i in range(6) for canvas in range(canvases)]  # a target's spread over (0, 1]
        tgt_len = batch.tgt_len.repeat_interleave(canvases)
        drawn = roll_in(tgt_len, batch.tgt.shape[1], torch.tensor(ratios, dtype=torch.float64), draw_seeds(rng, draws))
        tokens = lengths = 0.0
        for row, (masked, ratio) in enumerate(zip(drawn, ratios, strict=True)):
            i = row // canvases
            n = int(batch.tgt_len[i])
            memory, length_log_probs = model.encode(batch.src[i : i + 1, : batch.src_len[i]], batch.src_len[i : i + 1])
            lengths -= length_log_probs[0, n].item()
            gold = batch.tgt[i, :n]
            canvas = torch.tensor([[MASK if masked[j] else int(gold[j]) for j in range(n)]])
            logits = model.output(model.decoder(canvas, batch.tgt_len[i : i + 1], memory))[0]
            for j in range(n):
                if masked[j]:
                    tokens += cross_entropy(logits[j, NUM_SPECIAL:], gold[j] - NUM_SPECIAL).item() / ratio
    assert drawn.any()
    tokens, lengths = tokens / canvases, lengths / canvases
    assert losses.num_tokens == int(batch.tgt_len.sum())
    assert losses.total.item() == pytest.approx((tokens + 0.7 * lengths) / losses.num_tokens, rel=1e-5)
    assert losses.parts["bound"].item() == pytest.approx((tokens + lengths) / losses.num_tokens, rel=1e-5)


def test_pairs_without_tokens_train_on_nothing():
    model, batch = build("masked_diffusion"), batch_of(3, seed=4)
    empty = Batch(
        batch.src, torch.zeros_like(batch.src_len), torch.zeros_like(batch.tgt), torch.zeros_like(batch.tgt_len)
    )
    losses = model.loss(empty, torch.Generator().manual_seed(0))
    losses.total.backward()
    assert losses.total.item() == losses.num_tokens == 0
    assert torch.isneginf(model.log_likelihood(empty)).all()


def tiny(target, seed=2):
    """A model far from uniform, a pair with `target`, and log p of every next token in every order of revealing."""
    model = build("masked_diffusion", seed=seed)
    for parameter in model.parameters():
        parameter.data.mul_(1.3)
    source = [NUM_SPECIAL + 2, NUM_SPECIAL, NUM_SPECIAL + 5]
    batch = Batch(torch.tensor([source]), torch.tensor([3]), torch.tensor([target]), torch.tensor([len(target)]))
    memory, length_log_probs = model.encode(batch.src, batch.src_len)

    def log_prob(revealed, i):
        canvas = torch.tensor([[target[j] if j in revealed else MASK for j in range(len(target))]])
        return model.output(model.decoder(canvas, batch.tgt_len, memory))[0, i].log_softmax(-1)[target[i]].item()

    return model, batch, length_log_probs[0, len(target)].item(), log_prob


@torch.no_grad()
def test_the_bound_is_the_mean_over_all_orders_and_bounds_their_mixture():
    target = [NUM_SPECIAL + i for i in (3, 0, 3, 7)]
    model, batch, length, log_prob = tiny(target)
    orders = [sum(log_prob(o[:k], i) for k, i in enumerate(o)) for o in permutations(range(4))]
    exact = length + sum(orders) / 24
    mixture = length + torch.tensor(orders).double().logsumexp(0).item() - math.log(24)
    assert exact < mixture - 0.1  # not equal by chance
    # The same expectation over masks: what the loss averages, with t integrated out.
    masks = [[i for i in range(4) if code >> i & 1] for code in range(1, 16)]
    revealed = [set(range(4)) - set(mask) for mask in masks]
    terms = [sum(log_prob(r, i) for i in mask) for mask, r in zip(masks, revealed, strict=True)]
    weights = [1 / len(mask) / math.comb(4, len(mask)) for mask in masks]
    assert length + sum(w * x for w, x in zip(weights, terms, strict=True)) == pytest.approx(exact, abs=1e-4)
    # 4 * 500 samples: every n comes 500 times, so only the choice among sets of n tokens is left to chance.
    variance = 0.0
    for n in range(1, 5):
        values = torch.tensor([4 / n * x for mask, x in zip(masks, terms, strict=True) if len(mask) == n])
        variance += values.var(correction=0).item() / 500 / 16
    estimate = model.bound(batch, 2000).item()
    assert abs(estimate - exact) < 4 * math.sqrt(variance) < 0.15
    assert model.log_likelihood(batch).item() == pytest.approx(exact, abs=4 * math.sqrt(variance * 2000 / 32))


@torch.no_grad()
def test_samples_of_the_bound_are_stratified():
    """2 tokens, 2 samples: n = 1 and n = 2 once each, so that only which token is masked alone is left to chance."""
    seen = set()
    for last in range(NUM_SPECIAL, VOCAB):
        target = [NUM_SPECIAL + 1, last]
        model, batch, length, log_prob = tiny(target)
        both = log_prob((), 0) + log_prob((), 1)
        possible = [length + (both + 2 * log_prob((1 - i,), i)) / 2 for i in (0, 1)]
        estimate = model.bound(batch, 2).item()
        near = [i for i in (0, 1) if estimate == pytest.approx(possible[i], abs=1e-4)]
        assert near
        seen.update(near)
    assert seen == {0, 1}


@torch.no_grad()
def test_several_targets_may_share_a_source():
    model, sources, targets = build("masked_diffusion"), batch_of(2, seed=6), batch_of(6, seed=7)
    shared = Batch(sources.src, sources.src_len, targets.tgt, targets.tgt_len)
    rows = torch.tensor([0, 0, 0, 1, 1, 1])
    alone = Batch(sources.src[rows], sources.src_len[rows], targets.tgt, targets.tgt_len)
    torch.testing.assert_close(model.log_likelihood(shared), model.log_likelihood(alone))


def test_the_estimate_is_deterministic():
    model, batch = build("masked_diffusion"), batch_of(4, seed=8)
    first = model.log_likelihood(batch)
    torch.manual_seed(99)
    assert torch.equal(model.log_likelihood(batch), first)
    assert not first.requires_grad
