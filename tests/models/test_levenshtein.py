"""Levenshtein training: roll-ins and objective against loops over plain lists."""

from collections import Counter

import pytest
import torch
from torch.nn.functional import cross_entropy

from bench.batching import collate
from bench.preparation import EncodedPair
from models.decoding.edits import bounded
from models.decoding.noise import draw_seeds
from models.interface import BOS, EOS, NUM_SPECIAL, PLH
from models.levenshtein import DRAFT, DROP, draw, mixture, random_tokens
from models.output import OutputLayer
from tests.models.families import VOCAB, batch_of, build, pairs
from tests.oracles import edits as oracle

A, B, C, D = range(NUM_SPECIAL, NUM_SPECIAL + 4)


def rows_of(canvas):
    return [r[:n] for r, n in zip(canvas.tokens.tolist(), canvas.lengths.tolist(), strict=True)]


def whole(row):
    return [BOS, *row, EOS]


def targets_of(batch):
    return [r[:n] for r, n in zip(batch.tgt.tolist(), batch.tgt_len.tolist(), strict=True)]


def seeds_of(seed, count):
    return draw_seeds(torch.Generator().manual_seed(seed), count)


class Passes:
    """What the model's decoder is run on, in order; the passes themselves go on as they would."""

    def __init__(self, model):
        self.canvases, self.with_gradient, self.states = [], [], []
        original = model.states

        def states(canvas, memory):
            result = original(canvas, memory)
            self.canvases.append(canvas)
            self.with_gradient.append(torch.is_grad_enabled())
            self.states.append(result)
            return result

        model.states = states


def trace(model, batch, seed=0):
    """The loss and the passes it takes."""
    passes = Passes(model)
    losses = model.loss(batch, torch.Generator().manual_seed(seed))
    return losses, passes


# Roll-in


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_alpha_1_makes_every_deletion_state_empty(beta):
    batch = batch_of(6, seed=1)
    losses, passes = trace(build("levenshtein", alpha=1.0, beta=beta), batch)
    _, deletion, insertion, filled = map(rows_of, passes.canvases)
    assert deletion == [[BOS, EOS]]  # one stands for all: there is nothing to learn
    assert losses.parts["deletion"] == 0
    if beta:  # what the learner leaves of an empty canvas is empty
        assert insertion == [[BOS, EOS]] * 6
        assert filled == [whole([PLH] * len(y)) for y in targets_of(batch)]
    else:
        assert any(len(row) > 2 for row in insertion)


@pytest.mark.parametrize("kind", ["best", "sampled"])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_alpha_0_makes_every_deletion_state_a_draft_by_the_learner(beta, kind):
    batch = batch_of(8, seed=2)
    model = build("levenshtein", alpha=0.0, beta=beta, drafts=kind)
    _, passes = trace(model, batch)
    assert passes.with_gradient == [False, True, True, True]
    opened, drafts = passes.canvases[:2]
    target = bounded(batch.tgt, batch.tgt_len)
    hidden = random_tokens(target, seeds_of(0, 8), DRAFT)
    assert 0 < hidden.sum() < batch.tgt_len.sum()
    assert torch.equal(opened.tokens, target.tokens.masked_fill(hidden, PLH))
    assert torch.equal(drafts.tokens[~hidden], target.tokens[~hidden])
    assert (drafts.tokens[hidden] >= NUM_SPECIAL).all()
    assert (drafts.tokens != target.tokens).any(), "an untrained learner errs"


def test_a_draft_holds_what_decoding_would_write():
    batch = batch_of(8, seed=2)
    _, passes = trace(build("levenshtein", alpha=0.0), batch)
    opened, drafts = passes.canvases[:2]
    hidden = opened.tokens == PLH
    model = build("levenshtein")
    assert torch.equal(drafts.tokens[hidden], model.output(passes.states[0][hidden]).argmax(-1))


def test_sampled_drafts_differ_from_the_most_probable_tokens():
    batch = batch_of(8, seed=2)
    model = build("levenshtein", alpha=0.0, drafts="sampled")
    _, passes = trace(model, batch)
    opened, drafts = passes.canvases[:2]
    hidden = opened.tokens == PLH
    best = model.output(passes.states[0][hidden]).argmax(-1)
    assert (drafts.tokens[hidden] != best).float().mean() > 0.5, "an untrained learner believes nearly nothing"


def test_drafts_are_drawn_from_the_learners_distribution():
    """Evenly spaced noise must give each symbol its share, to the resolution of the noise."""
    torch.manual_seed(3)
    output = OutputLayer(torch.randn(VOCAB, 8), banned=range(NUM_SPECIAL))
    states, n = torch.randn(2, 8), 2000
    noise = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    ids = draw(output, states.repeat_interleave(n, 0), noise.repeat(2)).view(2, n)
    for i in range(2):
        share = torch.bincount(ids[i], minlength=VOCAB) / n
        torch.testing.assert_close(share, output(states[i]).softmax(-1), atol=1.01 / n, rtol=0)
    extremes = torch.tensor([2.0**-41, 1 - 2.0**-41], dtype=torch.float64)  # of `uniform_noise`
    assert draw(output, states, extremes)[0] == NUM_SPECIAL
    assert draw(output, states, extremes)[1] == VOCAB - 1
    assert len(draw(output, states[:0], noise[:0])) == 0


def test_a_draft_of_a_certain_learner_is_what_it_is_certain_of():
    batch = batch_of(5, seed=3)
    model = build("levenshtein", alpha=0.0)
    model.output.ban[:] = float("-inf")
    model.output.ban[D] = 0
    _, passes = trace(model, batch)
    opened, drafts = passes.canvases[:2]
    assert torch.equal(drafts.tokens, opened.tokens.masked_fill(opened.tokens == PLH, D))
    assert (opened.tokens == PLH).any()


def test_beta_1_makes_every_insertion_state_what_the_learner_leaves():
    batch = batch_of(8, seed=4)
    model = build("levenshtein", alpha=0.0, beta=1.0)
    model.deletion.weight.data *= 20  # deletes about half
    _, passes = trace(model, batch)
    drafts, insertion = passes.canvases[1:3]
    logits = model.deletion(passes.states[1]).tolist()
    expected = []
    for row, scores in zip(rows_of(drafts), logits, strict=True):
        gone = [k > 0 and k < len(row) - 1 and scores[k][1] > scores[k][0] for k in range(len(row))]
        expected.append(oracle.without(row, gone))
    assert rows_of(insertion) == expected
    assert rows_of(insertion) != rows_of(drafts)
    assert any(len(row) > 2 for row in expected)


def test_beta_0_makes_every_insertion_state_the_target_without_random_tokens():
    batch = batch_of(8, seed=5)
    _, passes = trace(build("levenshtein", alpha=0.0, beta=0.0), batch, seed=5)
    dropped = random_tokens(bounded(batch.tgt, batch.tgt_len), seeds_of(5, 8), DROP).tolist()
    targets = [whole(y) for y in targets_of(batch)]
    assert rows_of(passes.canvases[2]) == [
        oracle.without(y, gone[: len(y)]) for y, gone in zip(targets, dropped, strict=True)
    ]
    # What is filled is the target: every token that is not a placeholder stands where it belongs.
    for row, y in zip(rows_of(passes.canvases[3]), targets, strict=True):
        assert len(row) == len(y)
        assert all(symbol in (PLH, gold) for symbol, gold in zip(row, y, strict=True))


def test_each_sentence_is_mixed_by_itself_at_the_given_rates():
    empty, learner = mixture(seeds_of(0, 20_000), alpha=0.3, beta=0.8)
    assert empty.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert learner.float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (empty & learner).float().mean().item() == pytest.approx(0.24, abs=0.02)
    for rate in (0.0, 1.0):
        assert all((side == bool(rate)).all() for side in mixture(seeds_of(0, 1000), rate, rate))

    batch = batch_of(32, seed=6)
    _, passes = trace(build("levenshtein", alpha=0.5, beta=0.5), batch, seed=6)
    empty, learner = mixture(seeds_of(6, 32), 0.5, 0.5)
    assert len(passes.canvases[1].tokens) == int((~empty).sum())
    left = rows_of(passes.canvases[2])
    assert all(left[i] == [BOS, EOS] for i in range(32) if empty[i] and learner[i])
    target = bounded(batch.tgt, batch.tgt_len)
    dropped = random_tokens(target, seeds_of(6, 32), DROP)
    hidden = random_tokens(target, seeds_of(6, 32), DRAFT)
    assert torch.equal(passes.canvases[0].tokens, target.tokens.masked_fill(hidden, PLH)[~empty])
    drafted = {int(i): k for k, i in enumerate((~empty).nonzero()[:, 0])}
    drafts, keep = rows_of(passes.canvases[1]), []
    for i in range(32):
        if not learner[i]:
            assert left[i] == oracle.without(rows_of(target)[i], dropped[i, : target.lengths[i]].tolist())
        elif not empty[i]:  # of its own draft, not of another row's
            kept = iter(drafts[drafted[i]])
            assert all(token in kept for token in left[i])
            keep.append(i)
    assert keep


def test_the_number_of_dropped_tokens_is_uniform_from_none_to_all():
    n, length = 6000, 5
    target = bounded(torch.full((n, 7), A), torch.full((n,), length))
    sets = random_tokens(target, seeds_of(1, n), DROP)
    assert not sets[:, 0].any()
    assert not sets[:, length + 1 :].any()  # eos and padding
    sizes = Counter(sets.sum(1).tolist())
    assert sorted(sizes) == list(range(length + 1))
    assert all(count == pytest.approx(n / (length + 1), rel=0.1) for count in sizes.values())
    assert sets[:, 1 : length + 1].float().mean(0).tolist() == pytest.approx([0.5] * length, abs=0.03)
    assert (sets != random_tokens(target, seeds_of(1, n), DRAFT)).any(1).float().mean() > 0.5


# Objective


@pytest.mark.parametrize(("limit", "canvases"), [(255, 1), (1, 1), (255, 3)])
def test_loss_is_that_of_three_loops_over_the_experts_plain_scripts(limit, canvases):
    items = [*pairs(10, seed=7), EncodedPair([A], [B] * 6), EncodedPair([B], [])]
    batch = collate(items)
    model = build("levenshtein", alpha=0.4, beta=0.6, max_placeholders=limit, canvases=canvases)
    model.deletion.weight.data *= 20
    losses, passes = trace(model, batch, seed=8)
    _, drafts, insertion, opened = passes.canvases
    _, draft_states, insertion_states, opened_states = passes.states
    targets = [whole(y) for y in targets_of(batch) for _ in range(canvases)]
    empty, _ = mixture(seeds_of(8, 12 * canvases), 0.4, 0.6)
    aims = [y for y, none in zip(targets, empty.tolist(), strict=True) if not none and len(y) > 2]

    deletions = []
    for states, row, y in zip(draft_states, rows_of(drafts), aims, strict=True):
        delete, _ = oracle.expert(row, y)
        for k in range(1, len(row) - 1):
            deletions.append(cross_entropy(model.deletion(states[k]), torch.tensor(int(delete[k]))))
    placeholders, tokens, expected = [], [], []
    for i, (row, y) in enumerate(zip(rows_of(insertion), targets, strict=True)):
        _, missing = oracle.expert(row, y)
        missing = [slot[:limit] for slot in missing]
        for k in range(len(row) - 1):
            pair = torch.cat([insertion_states[i, k], insertion_states[i, k + 1]])
            placeholders.append(cross_entropy(model.placeholder(pair), torch.tensor(len(missing[k]))))
        expected.append(oracle.with_inserted(row, [[PLH] * len(slot) for slot in missing]))
        gold = iter([token for slot in missing for token in slot])
        for k, symbol in enumerate(expected[-1]):
            if symbol == PLH:
                tokens.append(cross_entropy(model.output(opened_states[i, k]), torch.tensor(next(gold))))
    assert rows_of(opened) == expected
    sentences = [i for i in range(len(targets)) if not empty[i] and len(targets[i]) > 2]
    for i, states, canvas in [
        *zip(sentences, draft_states, rows_of(drafts), strict=True),
        *zip(range(len(targets)), insertion_states, rows_of(insertion), strict=True),
    ]:
        source = torch.tensor([items[i // canvases].source])
        memory = model.read(source, torch.tensor([source.shape[1]]))
        alone = model.decoder(torch.tensor([canvas]), torch.tensor([len(canvas)]), memory)[0]
        torch.testing.assert_close(states[: len(canvas)], alone, atol=1e-5, rtol=1e-4)
    assert limit > 1 or any(len(a) < len(b) for a, b in zip(expected, targets, strict=True)), "a slot was cut"
    means = [torch.stack(part).mean().item() for part in (deletions, placeholders, tokens)]
    assert [losses.parts[p].item() for p in ("deletion", "placeholder", "token")] == pytest.approx(means, rel=1e-4)
    assert losses.total.item() == pytest.approx(sum(means), rel=1e-4)
    assert losses.num_tokens == sum(len(p.target) for p in items)


def test_under_autocast_the_roll_in_takes_no_gradient_away():
    """Weights that were first cast without gradient must not be taken from autocast's cache with it."""
    model = build("levenshtein", alpha=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.loss(batch_of(8, seed=4), torch.Generator().manual_seed(0))
    losses.total.backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    assert set(norms) == set(dict(model.named_parameters()))
    assert all(norm > 0 for name, norm in norms.items() if "weight" in name)


def test_label_smoothing_is_for_tokens_only():
    batch = batch_of(6, seed=9)
    plain, smooth = (
        build("levenshtein", label_smoothing=s).loss(batch, torch.Generator().manual_seed(0)) for s in (0.0, 0.2)
    )
    assert {k: v.item() for k, v in plain.parts.items()} == {k: v.item() for k, v in smooth.parts.items()}
    assert plain.total.item() == pytest.approx(sum(v.item() for v in plain.parts.values()), rel=1e-5)
    assert smooth.total.item() != pytest.approx(plain.total.item(), rel=1e-4)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_targets_without_tokens_train_the_empty_canvas(rate):
    model = build("levenshtein", alpha=rate, beta=rate)
    losses = model.loss(collate([EncodedPair([A], []), EncodedPair([B, C], [])]), torch.Generator().manual_seed(0))
    losses.total.backward()
    assert losses.num_tokens == 0
    assert losses.parts["deletion"] == losses.parts["token"] == 0
    assert losses.parts["placeholder"] > 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
