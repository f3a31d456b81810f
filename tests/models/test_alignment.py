import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.alignment import best_alignment, collapse, ctc_loss, required_frames
from models.interface import BLANK, NUM_SPECIAL, PAD, UNK
from models.output import OutputLayer
from tests.oracles import ctc as oracle
from tests.oracles.ctc import small

A, B, C = NUM_SPECIAL, NUM_SPECIAL + 1, NUM_SPECIAL + 2
OTHERS = [i for i in range(NUM_SPECIAL) if i != BLANK]


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


def random_targets(b, t, generator):
    """Targets over two symbols, so that repeats abound, of lengths 0 to t."""
    lengths = torch.randint(0, t + 1, (b,), generator=generator)
    target = torch.randint(A, A + 2, (b, t), generator=generator)
    return target.masked_fill(torch.arange(t) >= lengths[:, None], PAD), lengths


@pytest.mark.parametrize("seed", range(12))
def test_best_alignment_equals_enumeration(seed):
    generator = torch.Generator().manual_seed(seed)
    b, f = 16, 6
    layer = output_layer(NUM_SPECIAL + 3, 5, seed)
    hidden = torch.randn(b, f + 1, 5, generator=generator)  # the last frame is padding for everyone
    target, lengths = random_targets(b, 4, generator)
    frames = torch.randint(0, f + 1, (b,), generator=generator)
    paths, feasible = best_alignment(layer, hidden, frames, target, lengths)
    assert feasible.any()
    assert not feasible.all()
    for i in range(b):
        n = int(frames[i])
        logits = layer(hidden[i, :n])[:, [BLANK, A, B, C]].tolist()
        best, winners = oracle.best_alignments(logits, small(target[i, : lengths[i]].tolist()))
        assert feasible[i] == (best is not None)
        assert (paths[i, n if winners else 0 :] == PAD).all()
        if winners:
            assert tuple(small(paths[i, :n].tolist())) in winners


@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("seed", range(8))
def test_constrained_loss_and_gradient_equal_enumeration(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    b, f = 20, 6
    layer = output_layer(NUM_SPECIAL + 3, 5, seed)
    hidden = (scale * torch.randn(b, f + 1, 5, generator=generator)).requires_grad_()  # peaked, if scale is large
    target, lengths = random_targets(b, 4, generator)
    frames = torch.randint(0, f + 1, (b,), generator=generator)
    # Half of the frames of some alignment are shown; in every fifth sentence a frame then contradicts it.
    paths, _ = best_alignment(layer, torch.randn(b, f + 1, 5, generator=generator), frames, target, lengths)
    revealed = paths.masked_fill(torch.rand(b, f + 1, generator=generator) < 0.5, PAD)
    revealed[::5, 0] = C
    total, nll, feasible = ctc_loss(layer, hidden, frames, target, lengths, revealed)
    got = torch.autograd.grad(total, [hidden, layer.weight])
    expected = []
    for i in range(b):
        log_probs = layer(hidden[i, : frames[i]])[:, [BLANK, A, B, C]].log_softmax(-1)
        shown = [None if r == PAD else small([r])[0] for r in revealed[i, : frames[i]].tolist()]
        expected.append(oracle.constrained_nll(log_probs, small(target[i, : lengths[i]].tolist()), shown))
    assert feasible.tolist() == [e is not None for e in expected]
    assert feasible.sum() >= 5
    assert not feasible[::5].all()
    assert [n for n in nll.tolist() if n < math.inf] == pytest.approx(
        [e.item() for e in expected if e is not None], abs=1e-3
    )
    reference = torch.stack([e for e in expected if e is not None]).sum()
    assert total.item() == pytest.approx(reference.item(), rel=1e-5, abs=1e-4)
    for g, w in zip(got, torch.autograd.grad(reference, [hidden, layer.weight]), strict=True):
        torch.testing.assert_close(g, w, atol=1e-3, rtol=1e-3)
    hidden_gradient = got[0]
    assert (hidden_gradient[revealed != PAD] == 0).all()
    assert (hidden_gradient[~feasible] == 0).all()
    assert (hidden_gradient[(revealed == PAD) & (torch.arange(f + 1) < frames[:, None])] != 0).any()


def test_nothing_revealed_is_plain_ctc_and_all_revealed_costs_nothing():
    generator = torch.Generator().manual_seed(1)
    layer = output_layer(NUM_SPECIAL + 3, 5, 1)
    hidden = torch.randn(12, 6, 5, generator=generator, requires_grad=True)
    target, lengths = random_targets(12, 4, generator)
    frames = torch.randint(1, 7, (12,), generator=generator)
    args = (layer, hidden, frames, target, lengths)
    plain, _, feasible = ctc_loss(*args)
    free, _, free_feasible = ctc_loss(*args, torch.full((12, 6), PAD))
    assert free_feasible.tolist() == feasible.tolist()
    torch.testing.assert_close(free, plain)
    torch.testing.assert_close(torch.autograd.grad(free, hidden), torch.autograd.grad(plain, hidden))
    paths, _ = best_alignment(*args)
    shown, nll, _ = ctc_loss(*args, paths)
    assert nll[feasible].tolist() == pytest.approx([0.0] * int(feasible.sum()), abs=1e-6)
    assert not torch.autograd.grad(shown, hidden)[0].any()


def test_constrained_loss_survives_peaked_logits():
    # The revealed symbol is the one that the model finds least likely, by a hundred nats and more.
    layer = OutputLayer(torch.nn.Parameter(torch.eye(NUM_SPECIAL + 2)), banned=OTHERS)
    hidden = torch.zeros(1, 5, NUM_SPECIAL + 2)
    hidden[0, :, A] = 200.0
    hidden[0, 2, B] = 300.0
    hidden.requires_grad_()
    revealed = torch.tensor([[PAD, B, PAD, PAD, BLANK]])
    with torch.autograd.set_detect_anomaly(True):
        total, _, feasible = ctc_loss(
            layer, hidden, torch.tensor([5]), torch.tensor([[B, A]]), torch.tensor([2]), revealed
        )
        total.backward()
    assert feasible.all()
    # Free frames 0, 2, 3 read (B or blank), B, A at best: 200 below the best symbol at frame 0, two ways to get it.
    assert total.item() == pytest.approx(200.0 - math.log(2), abs=1e-3)
    assert hidden.grad.isfinite().all()


def test_empty_targets_and_sources():
    layer = output_layer(NUM_SPECIAL + 3, 5, 3)
    hidden = torch.randn(2, 3, 5, requires_grad=True)
    frames, target, lengths = torch.tensor([3, 0]), torch.zeros(2, 0, dtype=torch.long), torch.tensor([0, 0])
    blanks = layer(hidden[0]).log_softmax(-1)[:, BLANK]
    for revealed, expected in ((None, -blanks.sum()), (torch.tensor([[PAD, BLANK, PAD]] * 2), -blanks[0] - blanks[2])):
        total, nll, feasible = ctc_loss(layer, hidden, frames, target, lengths, revealed)
        total.backward()
        assert feasible.all()
        assert nll.tolist() == pytest.approx([expected.item(), 0.0], abs=1e-4)
    paths, feasible = best_alignment(layer, hidden, frames, target, lengths)
    assert paths.tolist() == [[BLANK] * 3, [PAD] * 3]
    assert feasible.all()


def test_targets_that_cannot_be_emitted_are_infeasible():
    layer = output_layer(NUM_SPECIAL + 3, 5, 4)
    hidden = torch.randn(2, 12, 5, requires_grad=True)
    target = torch.tensor([[UNK, A, UNK, B, UNK, A, UNK], [A, B, A, B, A, B, A]])
    lengths, frames = torch.tensor([7, 7]), torch.tensor([12, 12])
    for revealed in (None, torch.full((2, 12), PAD)):
        with torch.autograd.set_detect_anomaly(True):
            total, nll, feasible = ctc_loss(layer, hidden, frames, target, lengths, revealed)
        assert feasible.tolist() == [False, True]
        assert nll[0] == math.inf
        assert total.item() == pytest.approx(nll[1].item(), rel=1e-5)
        gradients = torch.autograd.grad(total, [hidden, layer.weight])
        assert not gradients[0][0].any()
        assert not gradients[1][UNK].any()
        assert all(gradient.isfinite().all() for gradient in gradients)
    paths, feasible = best_alignment(layer, hidden, frames, target, lengths)
    assert feasible.tolist() == [False, True]
    assert (paths[0] == PAD).all()


def test_padding_of_targets_gets_no_gradient():
    # A padding column takes part in no alignment; its own logit may be anything.
    layer = output_layer(NUM_SPECIAL + 3, 5, 5)
    layer.weight.data[PAD] = 40.0
    hidden = torch.ones(1, 3, 5)
    target, lengths = torch.tensor([[A, PAD, PAD]]), torch.tensor([1])
    total, _, _ = ctc_loss(layer, hidden, torch.tensor([3]), target, lengths)
    (gradient,) = torch.autograd.grad(total, layer.weight)
    assert not gradient[PAD].any()
