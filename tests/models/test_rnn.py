import itertools

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import pad

from bench.batching import collate
from bench.batching import pad as pad_rows
from bench.preparation import EncodedPair
from models import recurrent
from models.decoding.autoregressive import greedy
from models.decoding.beam import beam_search
from models.interface import BOS, EOS, NUM_SPECIAL, PAD, Batch
from models.layers import padding_mask
from models.recurrent import Attention
from models.rnn import Config, Settings
from tests.models.families import SPEC, batch_of, build, pairs
from tests.oracles import rnn as oracle

CELLS = ("rnn", "gru", "lstm")
ATTENTIONS = ("none", "additive", "dot")
VARIANTS = list(itertools.product(CELLS, ATTENTIONS))
A = NUM_SPECIAL

every_variant = pytest.mark.parametrize(("cell", "attention"), VARIANTS)


def made(cell, attention, scale=1.5, **changes):
    """A model whose outputs are far from uniform, so that a small mistake shows."""
    model = build("rnn", cell=cell, attention=attention, **changes)
    for parameter in model.parameters():
        parameter.data.mul_(scale)
    return model


def teacher_forced(model, batch):
    """Logits [n, t+1, v] of one pass over all of the target."""
    n = batch.tgt.shape[0]
    inputs = torch.cat([torch.full((n, 1), BOS), batch.tgt], dim=1)
    start = model.encode(batch.src, batch.src_len)
    state, source = start.state, start.annotations
    return model.output(model.read(inputs, state, source)[0])


def decode(model, sources, settings):
    src, src_len = pad_rows(sources)
    with torch.inference_mode():
        decoded = model.decode(src, src_len, settings)
    return [row[:n] for row, n in zip(decoded.tokens.tolist(), decoded.lengths.tolist(), strict=True)]


@every_variant
@pytest.mark.parametrize(("encoder_layers", "decoder_layers"), [(1, 1), (2, 3)])
def test_a_padded_batch_computes_what_the_papers_write(cell, attention, encoder_layers, decoder_layers):
    model = made(cell, attention, encoder_layers=encoder_layers, decoder_layers=decoder_layers, model_dim=16)
    for name, parameter in model.named_parameters():  # biases that are told apart
        if "bias" in name:
            parameter.data.normal_(std=0.3)
    items = [*pairs(3, seed=1, longest=6), EncodedPair([], [A]), EncodedPair([A, A + 1], [])]
    with torch.inference_mode():
        got = teacher_forced(model, collate(items))
    emittable = torch.isfinite(model.output.ban)
    assert emittable.nonzero()[:, 0].tolist() == [EOS, *range(NUM_SPECIAL, SPEC.vocab_size)]
    for row, item in zip(got, items, strict=True):
        expected = oracle.logits(model, cell, attention, decoder_layers, item.source, item.target)
        computed = row[: len(item.target) + 1]
        torch.testing.assert_close(computed[:, emittable].double(), expected[:, emittable], atol=1e-5, rtol=1e-5)


@every_variant
def test_steps_equal_the_teacher_forced_pass_on_the_same_prefix(cell, attention):
    model = made(cell, attention, encoder_layers=2, decoder_layers=3)
    batch = batch_of(5, seed=1)
    inputs = torch.cat([torch.full((5, 1), BOS), batch.tgt], dim=1)
    with torch.inference_mode():
        full = teacher_forced(model, batch)
        stepper = model.stepper(batch.src, batch.src_len)
        for i in range(inputs.shape[1]):
            torch.testing.assert_close(stepper.step(inputs[:, i]), full[:, i], atol=1e-5, rtol=1e-5)


@every_variant
def test_padding_changes_no_likelihood_whatever_it_holds(cell, attention):
    model = made(cell, attention, encoder_layers=2, decoder_layers=2)
    items = [*pairs(7, seed=2), EncodedPair([], [A, A + 1])]
    batch = collate(items)
    src, tgt = pad(batch.src, (0, 3)), pad(batch.tgt, (0, 5))
    src.masked_fill_(~padding_mask(batch.src_len.clamp(min=1), src.shape[1]), A + 3)
    tgt.masked_fill_(~padding_mask(batch.tgt_len, tgt.shape[1]), A + 3)
    with torch.inference_mode():
        together = model.log_likelihood(batch)
        wider = model.log_likelihood(Batch(src, batch.src_len, tgt, batch.tgt_len))
        torch.testing.assert_close(wider, together, atol=1e-4, rtol=1e-5)
        alone = torch.cat([model.log_likelihood(collate([p])) for p in items])
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)


@every_variant
def test_several_targets_of_a_source_are_scored_as_if_alone(cell, attention):
    model = made(cell, attention)
    sources = [p.source for p in pairs(3, seed=3)]
    targets = [p.target for p in pairs(12, seed=4)]  # four consecutive ones per source
    src, src_len = pad_rows(sources)
    with torch.inference_mode():
        together = model.log_likelihood(Batch(src, src_len, *pad_rows(targets)))
        alone = [model.log_likelihood(collate([EncodedPair(sources[i // 4], t)])) for i, t in enumerate(targets)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-5)


def replaced(model, change):
    """The likelihoods of some pairs when `change` alters what the encoder returns."""
    hook = model.encoder.register_forward_hook(lambda *args: change(*args[-1]))
    with torch.inference_mode():
        likelihoods = model.log_likelihood(batch_of(4, seed=5))
    hook.remove()
    return likelihoods


@every_variant
def test_only_attention_sees_more_of_the_encoder_than_its_last_state(cell, attention):
    model = made(cell, attention, encoder_layers=2)
    as_is = replaced(model, lambda states, lengths, last: (states, lengths, last))
    other_states = replaced(model, lambda states, lengths, last: (states.flip(0), lengths, last))
    other_last = replaced(model, lambda states, lengths, last: (states, lengths, tuple(p.flip(0) for p in last)))
    assert ((other_states - as_is).abs().max() > 1e-2) == (attention != "none")
    if attention == "none":
        assert torch.equal(other_states, as_is)
    assert (other_last - as_is).abs().min() > 1e-4


@every_variant
def test_every_part_and_direction_of_the_last_state_reaches_the_decoder(cell, attention):
    model = made(cell, attention, encoder_layers=2)
    as_is = replaced(model, lambda states, lengths, last: (states, lengths, last))
    for part, quarter in itertools.product(range(2 if cell == "lstm" else 1), range(4)):  # two layers, two directions

        def without(states, lengths, last, part=part, quarter=quarter):
            kept = [x.clone() for x in last]
            kept[part].unflatten(1, (4, -1))[:, quarter] = 0
            return states, lengths, tuple(kept)

        assert (replaced(model, without) - as_is).abs().min() > 1e-5


@pytest.mark.parametrize("kind", ["additive", "dot"])
def test_attention_weights_sum_to_one_and_are_zero_on_padding(kind):
    attention = Attention(kind, 8)
    src_len = torch.tensor([5, 2, 0])
    states, query = torch.randn(3, 5, 8), torch.randn(6, 4, 8)  # two rows a sentence
    with torch.inference_mode():
        context, weights = attention(query, attention.annotate(states, src_len))
        assert weights.shape == (6, 4, 5)
        torch.testing.assert_close(weights.sum(-1), torch.ones(6, 4))
        for row in range(6):
            real = max(1, int(src_len[row // 2]))  # an empty sentence has its first position
            assert (weights[row, :, :real] > 0).all()
            assert (weights[row, :, real:] == 0).all()
            torch.testing.assert_close(context[row], weights[row] @ states[row // 2])


@every_variant
def test_reordered_states_continue_the_right_prefix(cell, attention):
    model = made(cell, attention, decoder_layers=2)
    batch = batch_of(3, seed=2)
    first = torch.arange(A, A + 6)  # three sentences, two beams each
    rows, kept = torch.tensor([5, 4, 1, 1]), torch.tensor([2, 0])  # 2 with beams exchanged, 0 with one beam twice

    def logits(rows):
        stepper = model.stepper(batch.src, batch.src_len, beam=2)
        stepper.step(torch.full((6,), BOS))
        stepper.step(first)
        stepper.select(rows, kept)
        return stepper.step(torch.full((4,), A + 5))

    with torch.inference_mode():
        got = logits(rows)
        for row, origin in enumerate(rows.tolist()):
            sentence = slice(origin // 2, origin // 2 + 1)
            alone = model.stepper(batch.src[sentence], batch.src_len[sentence])
            for token in (BOS, first[origin].item()):
                alone.step(torch.tensor([token]))
            torch.testing.assert_close(got[row : row + 1], alone.step(torch.tensor([A + 5])), atol=1e-5, rtol=1e-5)
        unmoved = logits(torch.tensor([4, 5, 0, 1]))  # far off: the test sees a forgotten reorder
        assert (unmoved - got)[:3, NUM_SPECIAL:].abs().amax(1).min() > 1e-3


@every_variant
def test_greedy_equals_beam_search_with_one_beam(cell, attention):
    model = made(cell, attention, scale=2)
    batch = batch_of(12, seed=6)
    limits = torch.full((12,), 12)
    with torch.inference_mode():
        one = greedy(model.stepper(batch.src, batch.src_len), limits)
        beam = beam_search(model.stepper(batch.src, batch.src_len), limits, 1, alpha=0.0)
    assert one.lengths.max() > 1
    assert one.tokens.tolist() == beam.tokens.tolist()
    torch.testing.assert_close(one.scores, beam.scores, atol=1e-4, rtol=1e-5)


@every_variant
@pytest.mark.parametrize("settings", [Settings(), Settings(beam=4), Settings(sample=True)])
def test_a_sentence_decodes_the_same_in_any_batch(cell, attention, settings):
    model = made(cell, attention, decoder_layers=2)
    sources = [*[p.source for p in pairs(15, seed=7)], []]
    together = decode(model, sources, settings)
    assert together == [decode(model, [s], settings)[0] for s in sources]
    assert together[::-1] == decode(model, sources[::-1], settings)
    assert any(together), "the test needs outputs that are not empty"
    assert all(t >= NUM_SPECIAL for tokens in together for t in tokens)


@every_variant
@pytest.mark.parametrize("settings", [Settings(), Settings(beam=5, alpha=0.0)])
def test_decoding_scores_are_likelihoods(cell, attention, settings):
    model = made(cell, attention)
    items = pairs(12, seed=8)
    batch = collate(items)
    with torch.inference_mode():
        decoded = model.decode(batch.src, batch.src_len, settings)
        rows = [row[:n] for row, n in zip(decoded.tokens.tolist(), decoded.lengths.tolist(), strict=True)]
        again = model.log_likelihood(collate([EncodedPair(p.source, row) for p, row in zip(items, rows, strict=True)]))
    torch.testing.assert_close(decoded.scores, again, atol=1e-3, rtol=1e-4)


@every_variant
def test_gradients_are_finite_and_reach_every_parameter(cell, attention):
    model = build("rnn", cell=cell, attention=attention, dropout=0.1, label_smoothing=0.1, decoder_layers=2).train()
    items = [*pairs(6, seed=9), EncodedPair([], [A]), EncodedPair([A], [])]
    with torch.autograd.set_detect_anomaly(True):
        model.loss(collate(items), torch.Generator()).total.backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name
    assert not model.embedding.tokens.weight.grad[PAD].any()


@every_variant
def test_memorises_16_pairs(cell, attention):
    model = build("rnn", cell=cell, attention=attention, model_dim=64, decoder_layers=2)
    items = pairs(16, seed=10, longest=6)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batch, targets = collate(items), [p.target for p in items]
    for _ in range(30):
        model.train()
        for _ in range(20):
            optimizer.zero_grad()
            model.loss(batch, torch.Generator()).total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if decode(model.eval(), [p.source for p in items], Settings()) == targets:
            return
    pytest.fail("not memorised")


def test_loss_is_the_likelihood_of_tokens_and_eos_per_token_and_smoothing_changes_only_the_objective():
    plain, smooth = build("rnn"), build("rnn", label_smoothing=0.3)
    batch = batch_of(4)
    with torch.inference_mode():
        expected = -plain.log_likelihood(batch).sum().item() / batch.tgt_len.sum().item()
        one, other = (m.loss(batch, torch.Generator()) for m in (plain, smooth))
    assert one.total.item() == pytest.approx(expected, rel=1e-5)
    for losses in (one, other):
        assert losses.parts["cross_entropy"].item() == pytest.approx(expected, rel=1e-5)
    assert other.total.item() != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("t", [1, 4])  # a step, and a longer sequence, which takes another path
def test_dropout_acts_on_words_between_layers_and_on_features(attention, t):
    model = made("lstm", attention, dropout=0.5, encoder_layers=2, decoder_layers=3)
    batch, words = batch_of(4), torch.full((4, t), A)
    start = model.encode(batch.src, batch.src_len)
    state, source = start.state, start.annotations

    def changes(result):
        return not torch.equal(result(), result())

    assert not changes(lambda: model.encode(batch.src, batch.src_len).state[0])
    assert not changes(lambda: model.read(words, state, source)[0])
    model.encoder.train()
    assert changes(lambda: model.encode(batch.src, batch.src_len).state[0])
    model.decoder.train()
    if attention == "additive":
        assert changes(lambda: model.read(words, state, source)[0])
        model.decoder.dropout.p = 0.0  # that one acts above the first layer, the rest between the others
    assert changes(lambda: model.read(words, state, source)[0])
    model.eval()
    model.dropout.train()
    assert changes(lambda: model.read(words, state, source)[1][0])
    assert model.read(words, state, source)[0].eq(0).float().mean().item() == pytest.approx(0.5, abs=0.2)


@every_variant
def test_nothing_is_dropped_in_decoding(cell, attention):
    sources = [p.source for p in pairs(6, seed=11)]
    shape = {"encoder_layers": 2, "decoder_layers": 3}
    one, other = (decode(made(cell, attention, dropout=p, **shape), sources, Settings()) for p in (0.0, 0.5))
    assert one == other
    assert any(one)


def test_sources_of_the_limit_decode_and_longer_ones_are_refused():
    model = build("rnn")
    limit = SPEC.max_source_length
    assert len(decode(model, [[A] * limit], Settings())[0]) <= SPEC.max_target_length
    with pytest.raises(ValueError, match=f"source of {limit + 1} tokens exceeds the model's limit of {limit}"):
        model.decode(torch.full((1, limit + 1), A), torch.tensor([limit + 1]), Settings())


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("n", [1, 3])
def test_a_step_of_large_layers_is_pytorchs(cell, n, monkeypatch):
    torch.manual_seed(0)
    layers = recurrent._stack(cell, 7, 10, 2, 0.1).eval().requires_grad_(False)
    x, state = torch.randn(n, 7), tuple(torch.randn(2, n, 10) for _ in range(2 if cell == "lstm" else 1))
    assert layers.weight_ih_l0.numel() < recurrent.LARGE_WEIGHT
    expected, new = recurrent._step(layers, x, state)
    monkeypatch.setattr(recurrent, "LARGE_WEIGHT", 1)
    monkeypatch.setattr(recurrent, "STEPS", {})
    got, ours = recurrent._step(layers, x, state)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    for part, other in zip(ours, new, strict=True):
        torch.testing.assert_close(part, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_cells_of_other_devices_are_pytorchs(device, monkeypatch):
    asked = []
    monkeypatch.setattr(recurrent, "LARGE_WEIGHT", 1)
    monkeypatch.setattr(recurrent, "STEPS", {"GRU": lambda x, state, *weights: asked.append(1) or state})
    layers = recurrent._stack("gru", 7, 10, 1, 0.0).eval().to(device)
    recurrent._step(layers, torch.zeros(2, 7, device=device), (torch.zeros(1, 2, 10, device=device),))
    assert bool(asked) == (device != "cpu")


def test_gates_start_as_documented():
    model = build("rnn", cell="lstm", attention="additive", decoder_layers=2)
    for layers in (model.encoder.layers, model.decoder.first, model.decoder.layers):
        d = layers.hidden_size
        assert layers.bias_ih_l0.tolist() == [0.0] * d + [1.0] * d + [0.0] * 2 * d  # input, forget, cell, output
        assert not layers.bias_hh_l0.any()
        for gate in layers.weight_hh_l0.chunk(4):
            torch.testing.assert_close(gate @ gate.T, torch.eye(d), atol=1e-5, rtol=0)


def test_bad_options_name_the_field():
    with pytest.raises(ValidationError, match="model_dim 33 must be even"):
        Config(model_dim=33)
    with pytest.raises(ValidationError, match="sample needs beam 1, not 4"):
        Settings(sample=True, beam=4)
