import math
from dataclasses import replace

import pytest
import torch

from bench.batching import collate, pad
from bench.preparation import EncodedPair
from models.ctc import Settings as CTCSettings
from models.decoding.noise import draw_seeds
from models.decoding.refinement import Canvas, refine_until_done
from models.imputer import BlockCommitter, Config, Settings, roll_in
from models.interface import BLANK, MASK, NUM_SPECIAL, PAD
from models.weights import weights_of
from tests.models.families import batch_of, build, labelled, pairs
from tests.oracles import ctc as oracle

A, B = NUM_SPECIAL, NUM_SPECIAL + 1


def imputer(seed=0, **changes):
    """A small model that looks at the partial alignment, as a trained one does."""
    model = build("imputer", seed, **changes)
    torch.nn.init.normal_(model.committed.weight, std=0.3)
    return model


# Roll-in


def counts_per_block(shown, frames, size):
    """How many of the real frames are shown, block by block."""
    return [int(shown[i : min(i + size, frames)].sum()) for i in range(0, frames, size)]


@pytest.mark.parametrize("size", [1, 3, 8])
def test_roll_in_shows_the_same_number_of_frames_in_every_block(size):
    frames = torch.arange(0, 30).repeat(40)
    shown = roll_in(frames, 31, size, draw_seeds(torch.Generator().manual_seed(0), len(frames)))
    drawn = {n: set() for n in range(30)}
    for row, n in zip(shown, frames.tolist(), strict=True):
        assert not row[n:].any()
        counts = counts_per_block(row, n, size)
        r = max(counts, default=0)
        widths = [min(size, n - i) for i in range(0, n, size)]
        assert counts == [min(r, width) for width in widths]
        drawn[n].add(r)
    for n in range(30):  # from nothing to all but one: what the passes of decoding meet
        assert drawn[n] <= set(range(max(min(size, n), 1)))
    assert set().union(*(drawn[n] for n in range(size, 30))) == set(range(size))


def test_roll_in_draws_counts_and_places_evenly():
    n = 24_000
    shown = roll_in(torch.full((n,), 8), 8, 4, draw_seeds(torch.Generator().manual_seed(1), n)).float()
    counts = shown[:, :4].sum(1)
    for r in range(4):
        assert (counts == r).float().mean().item() == pytest.approx(1 / 4, abs=0.015)
    # Given r, a frame of a block is shown with probability r / 4, in both blocks with its square: they are independent.
    for r in (1, 2, 3):
        chosen = shown[counts == r]
        assert chosen.mean(0).tolist() == pytest.approx([r / 4] * 8, abs=0.03)
        assert (chosen[:, 0] * chosen[:, 4]).mean().item() == pytest.approx((r / 4) ** 2, abs=0.03)


def test_roll_in_does_not_depend_on_padding():
    frames, seeds = torch.tensor([20, 5, 9]), torch.tensor([3, 1, 4])
    wide = roll_in(frames, 33, 8, seeds)
    assert wide[:, :20].equal(roll_in(frames, 20, 8, seeds))
    assert wide[1:2, :9].equal(roll_in(frames[1:2], 9, 8, seeds[1:2]))


# Objective


def tiny():
    """Pairs of at most six frames (two a position), the last without an alignment, and alignments for the others."""
    items = [([A, B, A], [B, B]), ([B, A, B], [A, B, A]), ([A, B], [B]), ([B], [A]), ([A, A], []), ([A], [B, A, B])]
    labels = [
        [B, BLANK, B, B, BLANK, BLANK],
        [BLANK, A, A, B, BLANK, A],
        [BLANK, BLANK, B, B],
        [A, BLANK],
        [BLANK] * 4,
        [],
    ]
    return replace(collate([EncodedPair(*p) for p in items]), labels=pad(labels)[0])


@pytest.mark.parametrize("cross_attention", [True, False])
def test_loss_is_the_sum_over_the_alignments_that_agree_with_what_is_shown(cross_attention):
    model = imputer(upsampling=2, block_size=3, cross_attention=cross_attention)
    batch = tiny()
    seen = 0
    for seed in range(12):
        losses = model.loss(batch, torch.Generator().manual_seed(seed))
        seeds = draw_seeds(torch.Generator().manual_seed(seed), 6)
        shown = roll_in(batch.src_len * 2, 6, 3, seeds)
        expected = torch.zeros(())
        for i in range(5):
            n, s = int(batch.src_len[i]) * 2, int(batch.src_len[i])
            label, shows = batch.labels[i, :n].tolist(), shown[i, :n].tolist()
            canvas = [symbol if show else MASK for symbol, show in zip(label, shows, strict=True)]
            source = model.encoder(batch.src[i : i + 1, :s], batch.src_len[i : i + 1])
            states, mask = source.states, source.mask
            inputs = model.upsample(states)[0]
            partial = torch.stack([model.committed.weight @ model.embedding.tokens.weight[c] for c in canvas])
            crossed = model.decoder.project_memory(states) if cross_attention else None
            x = (inputs + partial * math.sqrt(32))[None]
            log_probs = model.output(model.decoder(x, memory=crossed, memory_mask=mask)[0]).log_softmax(-1)
            revealed = oracle.small([symbol if show else BLANK for symbol, show in zip(label, shows, strict=True)])
            revealed = [symbol if show else None for symbol, show in zip(revealed, shows, strict=True)]
            target = oracle.small(batch.tgt[i, : batch.tgt_len[i]].tolist())
            expected = expected + oracle.constrained_nll(log_probs[:, [BLANK, A, B]], target, revealed)
            seen += sum(shows)
        assert losses.num_tokens == 10
        assert losses.counts == {"infeasible": 1}
        assert losses.total.item() == pytest.approx(expected.item() / 10, abs=1e-5)
        parameters = list(model.parameters())
        got = torch.autograd.grad(losses.total, parameters)
        for g, w in zip(got, torch.autograd.grad(expected / 10, parameters), strict=True):
            torch.testing.assert_close(g, w, atol=1e-4, rtol=1e-3)
    assert seen > 50


def test_shown_frames_and_pairs_without_alignment_give_the_states_no_gradient():
    model = imputer(upsampling=2, block_size=3)
    batch = tiny()
    states = []
    model.decoder.register_forward_hook(lambda _, __, output: (output.retain_grad(), states.append(output))[1])
    for seed in range(4):
        model.loss(batch, torch.Generator().manual_seed(seed)).total.backward()
        shown = roll_in(batch.src_len * 2, 6, 3, draw_seeds(torch.Generator().manual_seed(seed), 6))
        gradient = states.pop().grad.abs().sum(-1)
        free = ~shown & (torch.arange(6) < 2 * batch.src_len[:, None])
        free[5] = False
        assert (gradient[~free] == 0).all()
        assert (gradient[free] > 0).all()


def test_labels_that_are_missing_or_wrong_are_no_loss():
    model = imputer()
    items = [*pairs(3, seed=4), EncodedPair([A], [])]
    batch = labelled("imputer", collate(items))
    rng = torch.Generator
    empty = replace(batch, labels=torch.full_like(batch.labels, PAD))
    losses = model.loss(empty, rng().manual_seed(0))
    assert losses.counts == {"infeasible": 4}
    assert losses.total.item() == 0
    with pytest.raises(ValueError, match="labels"):
        model.loss(replace(batch, labels=None), rng())
    # One label row contradicts its target: another symbol throughout. Whatever is shown of it, nothing fits.
    batch.labels[0] = torch.where(batch.labels[0] == PAD, PAD, NUM_SPECIAL + 19)
    batch.tgt[0].clamp_(max=NUM_SPECIAL + 18)
    counts = [model.loss(batch, rng().manual_seed(s)).counts["infeasible"] for s in range(8)]
    assert set(counts) == {0, 1}  # 0 if r = 0


# Initialisation


def test_training_starts_as_the_ctc_model():
    model = build("imputer", block_size=4)
    ctc = model.companion("ctc")
    batch = batch_of(6, seed=3)
    for parameter in ctc.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    model.begin_training()
    given, own = weights_of(ctc), weights_of(model)
    assert own.keys() - given.keys() == {"committed.weight"}
    for name, x in given.items():
        assert torch.equal(own[name], x), name
        assert own[name].data_ptr() != x.data_ptr(), "a copy, not the companion's own"
    # One pass that commits all is then CTC's greedy decoding.
    with torch.inference_mode():
        decoded = model.decode(batch.src, batch.src_len, Settings(iterations=1))
        greedy = ctc.decode(batch.src, batch.src_len, CTCSettings())
    assert decoded.tokens.tolist() == greedy.tokens.tolist()
    torch.testing.assert_close(decoded.scores, greedy.scores, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"upsampling": 2}, {"decoder_layers": 2}, {"cross_attention": False}])
def test_a_ctc_model_of_another_shape_is_refused(changes):
    model = build("imputer")
    model.companions["ctc"] = build("ctc", **changes)
    before = weights_of(model)["embedding.tokens.weight"].clone()
    with pytest.raises(ValueError, match=r"companion 'ctc' must have one shape, but (decoder|upsample)\."):
        model.begin_training()
    assert torch.equal(weights_of(model)["embedding.tokens.weight"], before)
    model.companions.clear()
    with pytest.raises(ValueError, match="needs a companion"):
        model.begin_training()
    assert Config().needs() == {"ctc"}


# Decoding


class Script:
    """Proposes, in pass p for frame i of sentence s, symbol 10 + p with a confidence that is a fixed random number."""

    def __init__(self, table):
        self.table = table  # [passes, n, f]
        self.rows = torch.arange(table.shape[1])
        self.seen = []

    def propose(self, canvas, positions):
        i = len(self.seen)
        full = torch.full((self.table.shape[1], canvas.shape[1]), -1)
        full[self.rows] = canvas
        self.seen.append(full)
        return torch.full_like(positions, 10 + i), self.table[i, self.rows].gather(1, positions)

    def select(self, rows):
        self.rows = self.rows[rows]


def block_decoding(table, frames, size, passes):
    """The twin: one sentence, lists and sorting. Returns symbols, scores and passes."""
    symbols, scores = [MASK] * frames, [0.0] * frames
    for p in range(passes):
        for start in range(0, frames, size):
            block = [i for i in range(start, min(start + size, frames)) if symbols[i] == MASK]
            quota = (p + 1) * size // passes - p * size // passes
            for i in sorted(block, key=lambda i: -table[p][i])[:quota]:
                symbols[i], scores[i] = 10 + p, table[p][i]
        if MASK not in symbols:
            return symbols, scores, p + 1
    raise AssertionError("something is left")


@pytest.mark.parametrize(("size", "passes"), [(8, 8), (8, 4), (8, 3), (8, 5), (8, 1), (3, 2), (1, 1), (7, 7)])
def test_passes_commit_the_most_confident_frames_of_every_block(size, passes):
    frames = torch.tensor([24, 17, 8, 7, 3, 1, 0, 23])
    table = -torch.rand(passes, 8, 24, generator=torch.Generator().manual_seed(size + passes))
    script = Script(table)
    real = torch.arange(24) < frames[:, None]
    canvas = Canvas(torch.where(real, MASK, PAD), frames, torch.zeros(8, 24))
    canvas, iterations = refine_until_done(BlockCommitter(script, size, passes, ragged=True), canvas, passes)
    for i, n in enumerate(frames.tolist()):
        symbols, scores, count = block_decoding(table[:, i].tolist(), n, size, passes)
        assert canvas.tokens[i].tolist() == symbols + [PAD] * (24 - n)
        assert canvas.scores[i].tolist() == pytest.approx(scores + [0.0] * (24 - n))
        assert iterations[i] == count
        # Each frame is written once: from the pass that commits it on it holds the symbol of that pass.
        for p, seen in enumerate(script.seen[:count]):
            committed = [symbol < 10 + p for symbol in symbols]
            assert seen[i, :n].tolist() == [s if c else MASK for s, c in zip(symbols, committed, strict=True)]
    assert iterations.max() == len(script.seen) == passes


@pytest.mark.parametrize("iterations", [1, 2, 3, 8, 20])
def test_passes_and_scores_of_the_model(iterations):
    model = imputer(seed=1, upsampling=2)
    sources = [[A] * n for n in (1, 2, 3, 4, 9, 16)] + [[]]
    src, src_len = pad(sources)
    passes = {"encoder": 0, "decoder": 0}
    for part, modules in model.observed_modules().items():
        modules[0].register_forward_hook(lambda *_, part=part: passes.__setitem__(part, passes[part] + 1))
    with torch.inference_mode():
        decoded = model.decode(src, src_len, Settings(iterations=iterations))
    k = min(iterations, 8)
    assert passes == {"encoder": 1, "decoder": k}
    # The first pass after which floor(i * 8 / k) frames cover the sentence.
    first = [next(i for i in range(1, k + 1) if i * 8 // k >= min(2 * len(s), 8)) for s in sources]
    assert decoded.iterations.tolist() == first
    assert decoded.scores[-1] == 0
    assert (decoded.scores[:-1] < 0).all()


def test_decoding_by_hand():
    # One sentence at a time in plain code: in each block the most confident frame, be its symbol blank or not.
    model = imputer(seed=5, upsampling=2, block_size=4)
    # Untrained, it has a few favourites: one of them lends blank its weights, now a little ahead, now behind.
    weight = model.embedding.tokens.weight.data
    weight[BLANK] = weight[18] + 0.05 * torch.randn(32)
    committed = []
    for pair in pairs(8, seed=8):
        src, src_len = pad([pair.source])
        n = 2 * len(pair.source)
        canvas, score = torch.full((n,), MASK), 0.0
        with torch.inference_mode():
            source = model.encoder(src, src_len)
            states, mask = source.states, source.mask
            inputs, memory = model.upsample(states), model.decoder.project_memory(states)
            while (canvas == MASK).any():
                x = inputs + model.committed(model.embedding.tokens(canvas[None]) * math.sqrt(32))
                logits = model.output(model.decoder(x, memory=memory, memory_mask=mask))[0]
                log_probs, symbols = logits.log_softmax(-1).max(-1)
                for start in range(0, n, 4):
                    left = [i for i in range(start, min(start + 4, n)) if canvas[i] == MASK]
                    if left:
                        i = max(left, key=lambda i: log_probs[i].item())
                        canvas[i] = symbols[i]
                        score += log_probs[i].item()
            decoded = model.decode(src, src_len, Settings(iterations=4))
        expected = oracle.collapse(oracle.small(canvas.tolist()))
        assert tuple(oracle.small(decoded.tokens[0].tolist())) == expected
        assert decoded.scores.item() == pytest.approx(score, abs=1e-3)
        committed += canvas.tolist()
    assert {BLANK} < set(committed)
