"""The Insertion Transformer: its loss against a loop over slots, its terminations and ways of decoding."""

import math
from functools import cache

import pytest
import torch
from torch.nn.functional import pad

from bench.batching import collate
from bench.batching import pad as pad_rows
from bench.decoding import decode_batch
from bench.preparation import EncodedPair
from models.decoding.noise import draw_seeds, uniform_noise
from models.insertion import Settings
from models.interface import NUM_SPECIAL, Batch
from models.slots import roll_in
from tests.models.families import SPEC, VOCAB, batch_of, build, pairs
from tests.oracles import slots as oracle

WAYS = [("slot", "parallel"), ("slot", "serial"), ("sequence", "serial")]


def decode(model, sources, **options):
    return [o.tokens for o in decode_batch(model.eval(), sources, Settings(**options), "float32")]


def scaled(model):
    """The model with outputs far from uniform ones."""
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    return model


@cache
def learned(name, **config):
    """A model that has learned a little: its outputs differ in length, and the end is neither likely nor unlikely."""
    model = build(name, **config)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    rng = torch.Generator().manual_seed(0)
    batch = batch_of(16, seed=1)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(batch, rng).total.backward()
        optimizer.step()
    return model


def naive_loss(model, batch, rng, slots_of, termination, tau):
    """The objective, one sentence and one slot at a time; slots_of(pair, canvas) gives the slots of one canvas."""
    tgt, tgt_len = (torch.stack([x] * model.canvases, dim=1).flatten(0, 1) for x in (batch.tgt, batch.tgt_len))
    noise = uniform_noise(draw_seeds(rng, len(tgt)), 0, 1 + tgt.shape[1])
    rolled = roll_in(tgt, tgt_len, noise, model.leftmost)
    total = 0.0
    for row, length in enumerate(tgt_len.tolist()):
        target = tgt[row, :length].tolist()
        kept = {i for i in range(length) if not rolled.missing[row, i]}
        slots = slots_of(row // model.canvases, rolled.tokens[row : row + 1, : rolled.lengths[row]])[0]
        log_probs = model.head.output(slots).log_softmax(-1)
        wanted = oracle.slot_targets(target, kept, tau, termination)
        of_row = oracle.slot_loss(log_probs, wanted)
        if termination == "sequence":
            log_location = model.head.location(slots)[:, 0].log_softmax(0)
            places = [log_location[slot] for slot, symbols in enumerate(wanted) if symbols is not None]
            of_row = of_row - sum(places) / len(places)
        total = total + (length + 1) * of_row
    return total / int(tgt_len.sum())


@pytest.mark.parametrize(("alignment", "canvases"), [("drawn", 1), ("leftmost", 4)])
@pytest.mark.parametrize("termination", ["slot", "sequence"])
@pytest.mark.parametrize(("weighting", "tau"), [("uniform", None), ("binary_tree", 0.8)])
def test_loss_equals_a_loop_over_sentences_and_slots(termination, weighting, tau, alignment, canvases):
    options = {"alignment": alignment, "canvases": canvases, "span_weights": weighting, "tau": tau or 1.0}
    model = scaled(build("insertion", termination=termination, **options))
    batch = collate([*pairs(12, seed=1), EncodedPair([NUM_SPECIAL], []), EncodedPair([], [NUM_SPECIAL] * 3)])

    def slots_of(row, canvas):
        source = batch.src[row : row + 1, : max(int(batch.src_len[row]), 1)]
        memory = model.decoder.remember(model.encoder(source, batch.src_len[row : row + 1]))
        return model.head(model.decoder(canvas, torch.tensor([canvas.shape[1]]), memory))

    losses = model.loss(batch, torch.Generator().manual_seed(5))
    expected = naive_loss(model, batch, torch.Generator().manual_seed(5), slots_of, termination, tau)
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert sum(losses.parts.values()).item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses.num_tokens == batch.tgt_len.sum()


def test_sequence_finalisation_keeps_the_contract_of_training():
    model = build("insertion", termination="sequence", dropout=0.1).train()
    batch = batch_of(8, seed=4)
    with torch.autograd.set_detect_anomaly(True):
        model.loss(batch, torch.Generator().manual_seed(0)).total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()
    wider = Batch(pad(batch.src, (0, 3)), batch.src_len, pad(batch.tgt, (0, 5)), batch.tgt_len)
    losses = [model.loss(b, torch.Generator().manual_seed(0)).total.item() for b in (batch, wider)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_batch_of_empty_targets_teaches_to_end():
    model = build("insertion").train()
    losses = model.loss(collate([EncodedPair([NUM_SPECIAL], []), EncodedPair([], [])]), torch.Generator())
    losses.total.backward()
    assert losses.num_tokens == 0
    assert losses.total > 0
    assert torch.isfinite(losses.total)


@pytest.mark.parametrize(("termination", "mode"), WAYS)
def test_every_way_of_decoding_is_the_same_in_any_batch(termination, mode):
    model = learned("insertion", termination=termination)
    sources = [p.source for p in pairs(16, seed=1)] + [[]]
    together = decode(model, sources, mode=mode)
    assert together == [decode(model, [s], mode=mode)[0] for s in sources]
    assert len({len(tokens) for tokens in together}) > 1, "the test needs rows that stop in different rounds"
    for tokens in together:
        assert len(tokens) <= SPEC.max_target_length
        assert all(NUM_SPECIAL <= token < VOCAB for token in tokens)


def test_the_default_mode_is_the_one_that_the_model_learned():
    sources = [p.source for p in pairs(8, seed=1)]
    for termination, mode in (("slot", "parallel"), ("sequence", "serial")):
        model = learned("insertion", termination=termination)
        assert decode(model, sources) == decode(model, sources, mode=mode)
        assert any(decode(model, sources))
    with pytest.raises(ValueError, match="needs a model with termination 'slot'"):
        decode(model, sources, mode="parallel")


def test_an_eos_penalty_lengthens_outputs_up_to_the_limit():
    model = learned("insertion", termination="slot")
    sources = [p.source for p in pairs(16, seed=3)]
    lengths = [sum(map(len, decode(model, sources, eos_penalty=penalty))) for penalty in (0.0, 1.0, 1e6)]
    assert lengths[0] < lengths[1] < lengths[2] == 16 * SPEC.max_target_length


def test_a_limit_on_passes_ends_decoding():
    model = scaled(build("insertion"))
    src, src_len = pad_rows([p.source for p in pairs(8, seed=3)])
    with torch.inference_mode():
        for mode, longest in (("parallel", 2**3 - 1), ("serial", 3)):  # every pass at most doubles the slots
            decoded = model.decode(src, src_len, Settings(mode=mode, iterations=3, eos_penalty=1e6))
            assert decoded.iterations.tolist() == [3] * 8
            assert decoded.lengths.tolist() == [longest] * 8


def without_repeats(count, seed):
    """Pairs whose targets hold each token once."""
    return [EncodedPair(p.source, list(dict.fromkeys(p.target))) for p in pairs(count, seed, longest=8)]


def memorise(model, items, done, steps=1500):
    """Train until `done`, which is asked every 25 steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    rng = torch.Generator().manual_seed(0)
    batch = collate(items * 4)
    for step in range(steps):
        if step % 25 == 0 and done():
            return
        model.train()
        optimizer.zero_grad()
        model.loss(batch, rng).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    raise AssertionError(f"not memorised in {steps} steps")


def test_a_trained_tree_takes_logarithmically_many_rounds():
    items = without_repeats(8, seed=5)
    model = build("insertion", tau=0.1, model_dim=64, ffn_dim=128, canvases=4)
    sources, targets = [p.source for p in items], [p.target for p in items]
    memorise(model, items, lambda: decode(model, sources) == decode(model, sources, mode="serial") == targets)
    with torch.inference_mode():
        parallel = model.decode(*pad_rows(sources), Settings())
        serial = model.decode(*pad_rows(sources), Settings(mode="serial"))
    assert parallel.iterations.tolist() == [math.floor(math.log2(len(y))) + 2 for y in targets]
    assert serial.iterations.tolist() == [len(y) + 1 for y in targets]


def test_sequence_finalisation_memorises():
    items = pairs(8, seed=6, longest=6)
    model = build("insertion", termination="sequence", model_dim=64, ffn_dim=128)
    memorise(model, items, lambda: decode(model, [p.source for p in items]) == [p.target for p in items])
