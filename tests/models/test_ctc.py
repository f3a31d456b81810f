import pytest
import torch

from bench.batching import collate
from bench.preparation import EncodedPair
from models.ctc import Settings
from models.interface import BLANK, NUM_SPECIAL, PAD
from models.layers import padding_mask
from tests.models.families import batch_of, build, pairs
from tests.oracles.ctc import best_alignments, collapse, small

A, B = NUM_SPECIAL, NUM_SPECIAL + 1


@pytest.mark.parametrize("cross_attention", [True, False])
def test_padding_changes_no_frame(cross_attention):
    model = build("ctc", cross_attention=cross_attention)
    batch = batch_of(6, seed=1)
    with torch.inference_mode():
        hidden, frames = model._frames(batch.src, batch.src_len)
        for i, n in enumerate(batch.src_len.tolist()):
            alone, count = model._frames(batch.src[i : i + 1, :n], batch.src_len[i : i + 1])
            assert frames[i] == count[0] == n * model.upsample.factor
            torch.testing.assert_close(hidden[i, : frames[i]], alone[0], atol=1e-5, rtol=1e-5)


def test_greedy_is_the_collapsed_best_alignment_and_its_probability():
    model = build("ctc", seed=2)
    batch = batch_of(5, seed=2)
    with torch.inference_mode():
        decoded = model.decode(batch.src, batch.src_len, Settings())
        hidden, frames = model._frames(batch.src, batch.src_len)
        log_probs = model.output(hidden).log_softmax(-1)
    for i in range(5):
        best = log_probs[i, : frames[i]].max(-1)
        renumbered = [0 if s < NUM_SPECIAL else s for s in best.indices.tolist()]
        assert decoded.tokens[i, : decoded.lengths[i]].tolist() == list(collapse(renumbered))[: model.max_target_length]
        assert decoded.scores[i].item() == pytest.approx(best.values.sum().item(), abs=1e-3)
    assert decoded.iterations.tolist() == [1] * 5


def test_beam_score_is_at_most_the_likelihood_of_its_output_and_at_least_greedys():
    model = build("ctc", seed=4)
    items = pairs(8, seed=4)
    batch = collate(items)
    with torch.inference_mode():
        greedy = model.decode(batch.src, batch.src_len, Settings())
        beam = model.decode(batch.src, batch.src_len, Settings(beam=8))
        rows = [r[:n] for r, n in zip(beam.tokens.tolist(), beam.lengths.tolist(), strict=True)]
        likelihood = model.log_likelihood(collate([EncodedPair(p.source, r) for p, r in zip(items, rows, strict=True)]))
    assert (beam.scores <= likelihood + 1e-3).all()
    assert (beam.scores >= greedy.scores - 1e-3).all()


def test_infeasible_pairs_are_counted_and_add_no_gradient():
    model = build("ctc", upsampling=1)
    possible, impossible = EncodedPair([A, B, A], [A, B]), EncodedPair([A, B], [A, A])  # AA needs three frames
    rng = torch.Generator()
    both = model.loss(collate([possible, impossible]), rng)
    assert both.counts == {"infeasible": 1}
    assert both.num_tokens == 4
    alone = model.loss(collate([possible]), rng)
    assert both.total.item() * 4 == pytest.approx(alone.total.item() * 2, rel=1e-5)
    assert model.log_likelihood(collate([impossible])).item() == float("-inf")


def test_loss_is_the_negative_log_likelihood_per_token():
    model = build("ctc")
    batch = batch_of(6)
    with torch.inference_mode():
        feasible = model.log_likelihood(batch)
        expected = -feasible[feasible.isfinite()].sum() / batch.tgt_len.sum()
        assert model.loss(batch, torch.Generator()).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_outputs_are_cut_at_the_length_limit():
    model = build("ctc", upsampling=3)
    long = batch_of(4, longest=16)
    with torch.inference_mode():
        decoded = model.decode(long.src, long.src_len, Settings(beam=2))
    assert (decoded.lengths <= model.max_target_length).all()
    assert (decoded.tokens[~padding_mask(decoded.lengths, decoded.tokens.shape[1])] == 0).all()


def test_best_alignments_are_those_of_enumeration():
    model = build("ctc", seed=5, upsampling=2)
    items = [
        EncodedPair([A, B, B], [A, A]),
        EncodedPair([B], [A, B, A]),
        EncodedPair([A, B], [B]),
        EncodedPair([A], []),
    ]
    batch = collate(items)
    with torch.inference_mode():
        paths, feasible = model.best_alignment(batch)
        hidden, frames = model._frames(batch.src, batch.src_len)
        logits = model.output(hidden)[:, :, [BLANK, A, B]]
    assert feasible.tolist() == [True, False, True, True]  # ABA does not fit into two frames
    for i, pair in enumerate(items):
        n = int(frames[i])
        _, winners = best_alignments(logits[i, :n].tolist(), small(pair.target))
        assert not winners or tuple(small(paths[i, :n].tolist())) in winners
        assert (paths[i, n if winners else 0 :] == PAD).all()
