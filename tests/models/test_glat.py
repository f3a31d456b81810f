import itertools
import math
from dataclasses import replace

import pytest
import torch

from bench.batching import collate, pad
from bench.preparation import EncodedPair
from models.alignment import best_alignment
from models.glancing import GlancingConfig, reveal
from models.glat import GLAT, Config, Settings
from models.glat_ctc import Settings as CTCSettings
from models.interface import BLANK, NUM_SPECIAL, PAD, Batch
from models.layers import padding_mask
from tests.models.families import SPEC, VOCAB, batch_of, build, pairs
from tests.oracles import ctc

NAMES = ["glat", "glat_ctc"]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def passes(model, batch, seed=0):
    """The losses, and per pass of the decoder stack its inputs [b, t, d] and its states [b, t, d]."""
    seen = []
    hook = model.decoder.stack.register_forward_hook(lambda _, args, states: seen.append((args[0].detach(), states)))
    losses = model.loss(batch, rng(seed))
    hook.remove()
    assert len(seen) == 2
    return losses, seen


# What is revealed


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 1.0])
def test_floor_of_ratio_times_errors_are_revealed(ratio):
    b, t = 60, 9
    lengths = torch.randint(0, t + 1, (b,), generator=rng(1))
    real = padding_mask(lengths, t)
    target = torch.randint(7, 10, (b, t), generator=rng(2))
    prediction = torch.randint(7, 10, (b, t), generator=rng(3))
    revealed = reveal(prediction, target, real, ratio, torch.rand((b, t), generator=rng(4)))
    assert not (revealed & ~real).any()
    for i, n in enumerate(lengths.tolist()):
        errors = sum(int(prediction[i, j] != target[i, j]) for j in range(n))
        assert int(revealed[i].sum()) == math.floor(ratio * errors)
    assert not reveal(target, target, real, ratio, torch.rand((b, t), generator=rng(4))).any()


def test_every_set_of_positions_is_equally_likely_whether_the_first_pass_got_them_right_or_not():
    n = 10_000
    target = torch.full((n, 7), 9)
    prediction = target.clone()
    prediction[:, :4] = 8  # four errors reveal two
    real = padding_mask(torch.full((n,), 5), 7)
    revealed = reveal(prediction, target, real, 0.5, torch.rand((n, 7), generator=rng()))
    for pair in itertools.combinations(range(5), 2):
        share = revealed[:, pair].all(1).double().mean()
        assert share == pytest.approx(1 / 10, abs=0.012)  # four standard deviations


def test_the_ratio_falls_linearly_with_training():
    config = GlancingConfig()
    assert [config.glancing_ratio(p) for p in (0, 0.25, 0.5, 1)] == pytest.approx([0.5, 0.45, 0.4, 0.3])


@pytest.mark.parametrize("name", NAMES)
def test_progress_lowers_what_is_revealed(name):
    model = build(name)
    batch = batch_of(32, seed=1)
    start = model.loss(batch, rng()).parts["revealed"]
    model.progress = 1.0
    assert model.loss(batch, rng()).parts["revealed"] < 0.8 * start


# The two passes


@pytest.mark.parametrize("name", NAMES)
def test_both_passes_have_the_same_dropout(name):
    model = build(name, dropout=0.3, glancing_start=0.0).train()
    batch = batch_of(6, seed=2)
    _, ((_, first), (_, second)) = passes(model, batch)
    assert torch.equal(first, second)
    assert second.requires_grad
    assert not first.requires_grad
    _, ((_, other), _) = passes(model, batch)
    assert not torch.equal(first, other), "the test needs dropout"


@pytest.mark.parametrize("name", NAMES)
def test_the_first_pass_costs_no_weight_its_gradient_under_autocast(name):
    """Autocast keeps the weights that it cast in the first pass; they must still lead to the parameters."""
    batch = batch_of(6, seed=1)

    def gradients(cache_enabled):
        model = build(name, label_smoothing=0.5)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache_enabled):
            total = model.loss(batch, rng()).total
        total.backward()
        return {k: p.grad for k, p in model.named_parameters()}

    cached, uncached = gradients(True), gradients(False)
    for key, gradient in uncached.items():
        assert cached[key] is not None, key
        torch.testing.assert_close(cached[key], gradient, atol=1e-2, rtol=5e-2)


def embedded(model, ids):
    return model.embedding.tokens(ids) * model.embedding.scale


def test_glat_shows_target_tokens_in_place_of_copies_and_learns_the_others():
    model = build("glat", label_smoothing=0.0, length_loss_weight=0.5)
    batch = collate([*pairs(12, seed=3), EncodedPair([NUM_SPECIAL], [])])
    losses, ((first, guess), (second, states)) = passes(model, batch)
    states.retain_grad()
    losses.total.backward()
    total, shown = 0.0, 0
    length_log_probs = model.encode(batch.src, batch.src_len)[1].detach()
    for i, (source, target) in enumerate(_rows(batch)):
        s, t = len(source), len(target)
        prediction = model.output(guess[i, :t]).argmax(-1).tolist()
        errors = sum(p != y for p, y in zip(prediction, target, strict=True))
        copied = [source[int(j * (s - 1) / max(t - 1, 1) + 0.5)] for j in range(t)]
        positions = model.embedding.positions[:t]
        torch.testing.assert_close(first[i, :t], embedded(model, torch.tensor(copied, dtype=torch.long)) + positions)
        # A state that no gradient reaches belongs to a position that the loss leaves out: one that was shown.
        revealed = [j for j in range(t) if not states.grad[i, j].any()]
        assert len(revealed) == errors // 2
        mixed = [target[j] if j in revealed else copied[j] for j in range(t)]
        torch.testing.assert_close(second[i, :t], embedded(model, torch.tensor(mixed, dtype=torch.long)) + positions)
        log_probs = model.output(states[i].detach()).log_softmax(-1).detach()
        total -= sum(float(log_probs[j, target[j]]) for j in range(t) if j not in revealed)
        total -= 0.5 * float(length_log_probs[i, t]) if t else 0.0
        shown += len(revealed)
    assert losses.total.item() == pytest.approx(total / losses.num_tokens, rel=1e-4)
    assert losses.parts["revealed"].item() == pytest.approx(shown / losses.num_tokens)
    assert shown > 5


def _rows(batch):
    for i in range(len(batch.src)):
        yield batch.src[i, : batch.src_len[i]].tolist(), batch.tgt[i, : batch.tgt_len[i]].tolist()


def test_glat_ctc_shows_frames_of_the_best_alignment_and_learns_the_whole_target():
    model = build("glat_ctc", glancing_start=0.7)
    repeats = EncodedPair([NUM_SPECIAL], [NUM_SPECIAL] * 3)  # five frames needed, three there
    batch = collate([*pairs(10, seed=4), repeats, EncodedPair([NUM_SPECIAL, 9], [])])
    losses, ((first, guess), (second, states)) = passes(model, batch)
    assert losses.counts == {"infeasible": 1}
    total, blanks, symbols = 0.0, 0, 0
    for i, (source, target) in enumerate(_rows(batch)):
        frames = 3 * len(source)
        changed = (first[i] != second[i]).any(-1).nonzero()[:, 0].tolist()
        if source == repeats.source and target == repeats.target:
            assert not changed
            continue
        tgt, tgt_len = pad([target])
        alignment, _ = best_alignment(model.output, guess[i : i + 1, :frames], torch.tensor([frames]), tgt, tgt_len)
        prediction = model.output(guess[i, :frames]).argmax(-1)
        errors = int((prediction != alignment[0]).sum())
        assert len(changed) == math.floor(0.7 * errors)
        assert all(j < frames for j in changed)
        shown = embedded(model, alignment[0]) + model.upsample.positions[:frames]
        torch.testing.assert_close(second[i, changed], shown[changed])
        blanks += sum(int(alignment[0, j]) == BLANK for j in changed)
        symbols += sum(int(alignment[0, j]) != BLANK for j in changed)
        log_probs = model.output(states[i, :frames]).log_softmax(-1).detach()
        total += torch.nn.functional.ctc_loss(
            log_probs, tgt[0, : len(target)], torch.tensor(frames), tgt_len[0], blank=BLANK, reduction="sum"
        ).item()
    assert blanks > 0
    assert symbols > 0
    assert losses.total.item() == pytest.approx(total / losses.num_tokens, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_empty_targets_has_a_loss(name):
    model = build(name).train()
    losses = model.loss(collate([EncodedPair([NUM_SPECIAL], []), EncodedPair([], [])]), rng())
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert losses.num_tokens == 0


# Decoding and likelihood


@pytest.mark.parametrize("length_beam", [1, 4])
def test_glat_decodes_the_best_of_the_likeliest_lengths_in_one_pass(length_beam):
    model = build("glat", seed=5)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    sources = [p.source for p in pairs(16, seed=5)]
    lengths_chosen = []
    with torch.inference_mode():
        decoded = model.decode(*pad(sources), Settings(length_beam=length_beam))
        for i, source in enumerate(sources):
            memory, length_log_probs = model.encode(*pad([source]))
            ranked = length_log_probs[0].argsort(descending=True)[:length_beam].tolist()
            candidates = []
            for t in ranked:
                copied = [source[int(j * (len(source) - 1) / max(t - 1, 1) + 0.5)] for j in range(t)]
                states = model.decoder(torch.tensor([copied]), torch.tensor([t]), memory)[0]
                best, tokens = model.output(states).log_softmax(-1).max(-1)
                candidates.append((float(best.mean()), tokens.tolist()))
            score, tokens = max(candidates)
            assert decoded.tokens[i, : decoded.lengths[i]].tolist() == tokens
            assert decoded.scores[i].item() == pytest.approx(score, abs=1e-4)
            lengths_chosen.append(ranked.index(len(tokens)))
    assert decoded.iterations.tolist() == [1] * 16
    assert any(lengths_chosen) == (length_beam > 1)


def test_glat_likelihoods_of_all_targets_of_a_length_sum_to_that_lengths_probability():
    model = build("glat", seed=6)
    symbols = range(NUM_SPECIAL, VOCAB)
    source = [8, 9, 10]
    targets = [*([a] for a in symbols), *([a, b] for a in symbols for b in symbols)]
    src, src_len = pad([source])
    tgt, tgt_len = pad(targets)
    with torch.inference_mode():
        probability = model.log_likelihood(Batch(src, src_len, tgt, tgt_len)).exp()
        lengths = model.encode(src, src_len)[1][0].exp()
    assert probability[tgt_len == 1].sum().item() == pytest.approx(lengths[1].item(), rel=1e-3)
    assert probability[tgt_len == 2].sum().item() == pytest.approx(lengths[2].item(), rel=1e-3)
    assert model.log_likelihood(Batch(src, src_len, tgt[:1], torch.tensor([0]))).item() == float("-inf")


def test_glat_gives_a_target_that_is_longer_than_any_it_can_write_no_probability():
    config = Config(encoder_layers=1, decoder_layers=1, model_dim=8, num_heads=1, ffn_dim=8)
    model = GLAT(config, replace(SPEC, max_target_length=3)).eval()
    tgt, tgt_len = pad([[8, 9, 10], [8, 9, 10, 11]])
    with torch.inference_mode():
        likelihood = model.log_likelihood(Batch(*pad([[8]]), tgt, tgt_len))
    assert torch.isfinite(likelihood).tolist() == [True, False]


@pytest.mark.parametrize("name", NAMES)
def test_likelihood_of_several_targets_of_a_source(name):
    model = build(name, seed=7)
    batch = batch_of(4, seed=7)
    twice = Batch(batch.src, batch.src_len, batch.tgt.repeat_interleave(2, 0), batch.tgt_len.repeat_interleave(2))
    twice.tgt_len[1::2] = 1
    with torch.inference_mode():
        together = model.log_likelihood(twice)
        longer = model.log_likelihood(batch)
        shorter = model.log_likelihood(Batch(batch.src, batch.src_len, batch.tgt, torch.ones_like(batch.tgt_len)))
    torch.testing.assert_close(together, torch.stack([longer, shorter], 1).flatten(), atol=1e-4, rtol=1e-4)


def test_glat_ctc_decodes_the_collapsed_best_alignment():
    model = build("glat_ctc", seed=8)
    sources = [p.source for p in pairs(8, seed=8)]
    src, src_len = pad(sources)
    with torch.inference_mode():
        decoded = model.decode(src, src_len, CTCSettings())
        for i, source in enumerate(sources):
            inputs, frames, memory = model._inputs(*pad([source]))
            best = model.output(model.decoder.run(inputs, frames, memory)[0]).log_softmax(-1).max(-1)
            renumbered = [ctc.BLANK if s == BLANK else s for s in best.indices.tolist()]
            assert (
                decoded.tokens[i, : decoded.lengths[i]].tolist()
                == list(ctc.collapse(renumbered))[: SPEC.max_target_length]
            )
            assert decoded.scores[i].item() == pytest.approx(best.values.sum().item(), abs=1e-3)
            assert (decoded.tokens[i, decoded.lengths[i] :] == PAD).all()
