from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from bench.batching import collate, pad
from bench.preparation import EncodedPair
from models.decoding.refinement import Canvas, refine_until_done
from models.decoding.rewriting import Rewriter
from models.inat import Settings, corrupt
from models.interface import NUM_SPECIAL, PAD
from models.layers import padding_mask
from models.output import OutputLayer
from tests.models.families import VOCAB, batch_of, build, pairs
from tests.oracles import corruption


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def recorded(model, run):
    """What `run` returns, and per pass of the decoder the canvas it read and the states it gave."""
    seen = []
    hook = model.decoder.register_forward_hook(lambda _, args, states: seen.append((args[0].clone(), states)))
    result = run()
    hook.remove()
    return result, seen


# Corruption


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_corruption_is_the_papers_left_to_right_walk(rate):
    items = [list(range(NUM_SPECIAL, NUM_SPECIAL + n)) for n in range(9)] * 20
    tgt, tgt_len = pad(items)
    tgt = torch.cat([tgt, torch.full((len(tgt), 2), PAD)], dim=1)
    noise = torch.rand(tgt.shape, dtype=torch.float64, generator=rng(1))
    tokens = torch.randint(50, 90, tgt.shape, generator=rng(2))
    out = corrupt(tgt, tgt_len, noise, tokens, rate).tolist()
    for i, target in enumerate(items):
        expected = corruption.corrupt(target, noise[i].tolist(), tokens[i].tolist(), rate)
        assert out[i] == expected + [PAD] * (tgt.shape[1] - len(target))
    assert (out == tgt.tolist()) == (rate == 0)


def test_corruption_changes_the_share_of_tokens_that_the_rate_implies():
    # A third of `rate` replaces a token and a third swaps it with its successor; of the others those change that take
    # the token of their predecessor, which copied or swapped its own: 2/3 of `rate`.
    n, t, rate = 200, 300, 0.3
    tgt = (NUM_SPECIAL + torch.arange(t)).expand(n, t)
    noise = torch.rand((n, t), dtype=torch.float64, generator=rng())
    out = corrupt(tgt, torch.full((n,), t), noise, torch.zeros_like(tgt), rate)
    q = 2 * rate / 3
    assert (out != tgt)[:, 1:-1].double().mean() == pytest.approx(q + (1 - q) * q, abs=0.01)
    assert (out == 0).double().mean() == pytest.approx(rate / 3, abs=0.01)


# Training


def test_the_first_pass_reads_the_copied_source_and_later_ones_the_output_or_the_corrupted_reference():
    model = build("inat", training_passes=4, denoising_probability=0.25, corruption_rate=0.0).eval()
    batch = batch_of(120, seed=1)
    _, seen = recorded(model, lambda: model.loss(batch, rng()))
    assert len(seen) == 4
    assert seen[0][0][0].tolist() == _copy(batch, 0)
    real = padding_mask(batch.tgt_len, batch.tgt.shape[1])
    denoising, told_apart = [], []
    for (_, states), (canvas, _) in pairwise(seen):
        own = model.output(states).argmax(-1).masked_fill(~real, PAD)
        is_own, is_reference = (canvas == own).all(1), (canvas == batch.tgt).all(1)
        assert (is_own | is_reference).all()
        denoising.append(is_reference)
        told_apart.append(is_own != is_reference)  # an untrained network copies: it may be right
    share = torch.cat(denoising)[torch.cat(told_apart)].double()
    assert len(share) > 250
    assert share.mean() == pytest.approx(0.25, abs=0.08)  # three standard deviations
    assert not torch.equal(denoising[0], denoising[1])


def _copy(batch, row):
    n, m = int(batch.src_len[row]), int(batch.tgt_len[row])
    ids = [int(batch.src[row, int(i * (n - 1) / max(m - 1, 1) + 0.5)]) for i in range(m)]
    return ids + [PAD] * (batch.tgt.shape[1] - m)


def test_denoising_inputs_are_corrupted_at_the_rate_and_differ_from_pass_to_pass():
    model = build("inat", training_passes=3, denoising_probability=1.0, corruption_rate=0.3).eval()
    generator = rng(5)
    items = [
        EncodedPair([NUM_SPECIAL], (torch.randperm(VOCAB - NUM_SPECIAL, generator=generator) + NUM_SPECIAL).tolist())
        for _ in range(200)
    ]
    batch = collate(items)
    _, seen = recorded(model, lambda: model.loss(batch, rng()))
    first, second = (canvas for canvas, _ in seen[1:])
    assert not torch.equal(first, second)
    q = 0.2
    # A random token is the right one once in 20 times.
    expected = (q / 2) * 19 / 20 + q / 2 + (1 - q) * q
    for canvas in (first, second):
        assert (canvas != batch.tgt)[:, 1:-1].double().mean() == pytest.approx(expected, abs=0.03)
        assert canvas.min() >= NUM_SPECIAL


def test_loss_is_the_mean_over_passes_of_the_cross_entropy_of_all_tokens():
    model = build("inat", training_passes=3, label_smoothing=0.0, length_loss_weight=0.5).eval()
    batch = collate([*pairs(5, seed=2), EncodedPair([NUM_SPECIAL], [])])
    with torch.no_grad():
        losses, seen = recorded(model, lambda: model.loss(batch, rng()))
        _, length_log_probs = model.encode(batch.src, batch.src_len)
    total = 0.0
    for _, states in seen:
        log_probs = model.output(states).log_softmax(-1).detach()
        for row, n in enumerate(batch.tgt_len.tolist()):
            total -= sum(float(log_probs[row, i, batch.tgt[row, i]]) for i in range(n)) / 3
    lengths = -sum(float(length_log_probs[row, n]) for row, n in enumerate(batch.tgt_len.tolist()) if n)
    assert losses.num_tokens == int(batch.tgt_len.sum())
    assert losses.total.item() == pytest.approx((total + 0.5 * lengths) / losses.num_tokens, rel=1e-4)


def test_a_batch_of_empty_targets_has_a_loss():
    model = build("inat").train()
    losses = model.loss(collate([EncodedPair([NUM_SPECIAL], []), EncodedPair([], [])]), rng())
    losses.total.backward()
    assert losses.total.item() == losses.num_tokens == 0


# Decoding


@dataclass
class Caps:
    """Stands for an encoded source: per sentence, the id at which its tokens stop growing."""

    caps: torch.Tensor

    def select(self, rows):
        return Caps(self.caps[rows])


class Counting:
    """A decoder whose output is each token of the canvas plus one, up to the sentence's cap."""

    def __init__(self):
        self.rows = []

    def __call__(self, canvas, lengths, memory):
        self.rows.append(len(canvas))
        caps = memory.caps.repeat_interleave(len(canvas) // len(memory.caps))
        return torch.eye(64)[(canvas + 1).minimum(caps[:, None])] * 9


def test_each_row_stops_at_its_own_fixed_point_and_leaves_the_batch():
    # Two candidates a sentence. From 10, the cap c is written in pass c - 10 (in pass 1 at the latest) and confirmed by
    # the next one; at most 5 passes are made.
    caps = torch.tensor([11, 10, 30])
    tokens = torch.tensor([[10, 10], [10, PAD]] * 3)
    lengths = torch.tensor([2, 1] * 3)
    decoder = Counting()
    output = OutputLayer(torch.eye(64), banned=range(NUM_SPECIAL))
    start = Canvas(tokens, lengths, torch.zeros(6, 2))
    canvas, iterations = refine_until_done(Rewriter(decoder, output, Caps(caps), 2, stops=True), start, 5)
    assert canvas.tokens.tolist() == [[11, 11], [11, PAD], [10, 10], [10, PAD], [15, 15], [15, PAD]]
    assert iterations.tolist() == [2, 2, 1, 1, 5, 5]
    assert decoder.rows == [6, 4, 2, 2, 2]


def decode_one(model, source, limit, length):
    """Refine one sentence alone, with plain loops: tokens, mean log-probability and passes."""
    src, src_len = pad([source])
    memory, _ = model.encode(src, src_len)
    n = len(source)
    canvas = [source[int(i * (n - 1) / max(length - 1, 1) + 0.5)] for i in range(length)]
    for passes in range(1, limit + 1):  # noqa: B007
        states = model.decoder(torch.tensor([canvas]), torch.tensor([length]), memory)[0]
        best, new = model.output(states).log_softmax(-1).max(-1)
        stop = new.tolist() == canvas
        canvas = new.tolist()
        if stop:
            break
    return canvas, float(best.mean()), passes


@pytest.mark.parametrize("length_beam", [1, 3])
def test_decoding_is_that_of_sentences_alone(length_beam):
    model = build("inat", seed=3)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    sources = [p.source for p in pairs(24, seed=4)]
    src, src_len = pad(sources)
    seen = set()
    with torch.inference_mode():
        decoded = model.decode(src, src_len, Settings(iterations=6, length_beam=length_beam))
        for i, source in enumerate(sources):
            _, length_log_probs = model.encode(*pad([source]))
            lengths = length_log_probs[0].topk(length_beam).indices.tolist()
            candidates = [decode_one(model, source, 6, length) for length in lengths]
            tokens, score, _ = max(candidates, key=lambda c: c[1])
            assert decoded.tokens[i, : decoded.lengths[i]].tolist() == tokens
            assert (decoded.tokens[i, decoded.lengths[i] :] == PAD).all()
            assert decoded.scores[i].item() == pytest.approx(score, abs=1e-4)
            assert decoded.iterations[i] == max(c[2] for c in candidates)
            seen.add(int(decoded.iterations[i]))
    assert len(seen) > 1, "the test needs sentences that stop at different passes"
