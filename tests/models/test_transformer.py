import pytest
import torch
from pydantic import ValidationError

from bench.batching import collate, pad
from models.attention import Attention
from models.interface import BOS, EOS, NUM_SPECIAL, UNK, Batch
from models.layers import Embedding, Stack
from models.transformer import Config, Settings, TransformerStepper
from tests.models.families import SPEC, batch_of, build, pairs


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_cached_steps_equal_the_full_forward_pass(norm):
    model = build("transformer", norm=norm, encoder_layers=2, decoder_layers=3)
    batch = batch_of(5, seed=1)
    b, t = batch.tgt.shape
    with torch.inference_mode():
        encoded = model.encoder(batch.src, batch.src_len)
        memory, mask = encoded.states, encoded.mask
        inputs = torch.cat([torch.full((b, 1), BOS), batch.tgt], dim=1)
        full = model.output(
            model.decoder(
                model.embedding(inputs), causal=True, memory=model.decoder.project_memory(memory), memory_mask=mask
            )
        )
        stepper = model.stepper(batch.src, batch.src_len, t + 1)
        for i in range(t + 1):
            torch.testing.assert_close(stepper.step(inputs[:, i]), full[:, i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_cached_blocks_at_each_row_s_own_position_equal_the_full_forward_pass(norm):
    model = build("transformer", norm=norm, encoder_layers=2, decoder_layers=3)
    items = pairs(8, seed=1)
    batch = collate([type(p)(p.source, [NUM_SPECIAL + (i * j) % 19 for j in range(12)]) for i, p in enumerate(items)])
    inputs = torch.cat([torch.full((8, 1), BOS), batch.tgt], dim=1)
    junk = torch.full((8, 4), NUM_SPECIAL + 19)
    with torch.inference_mode():
        encoded = model.encoder(batch.src, batch.src_len)
        memory, mask = encoded.states, encoded.mask
        states = model.decoder(
            model.embedding(inputs), causal=True, memory=model.decoder.project_memory(memory), memory_mask=mask
        )
        full = model.output(states)  # [8, 13, v]
        stepper = model.stepper(batch.src, batch.src_len, 20)
        for cache in stepper.caches:  # what memory may hold that nobody wrote
            cache.keys.fill_(float("nan"))
            cache.values.fill_(float("nan"))
        rows, done = torch.arange(8), torch.zeros(8, dtype=torch.long)
        # Of each block a row keeps its own number of tokens; the next block starts behind them and rolls back the rest.
        for kept in ([1, 2, 3, 4, 1, 2, 3, 4], [4, 1, 2, 1, 4, 3, 1, 1], [2, 4, 1, 1, 1, 4, 4, 1]):
            columns = done[:, None] + torch.arange(4)
            tokens = inputs[rows[:, None], columns.clamp(max=12)]
            got = stepper.step_block(tokens, done, int(done.max()) + 4)
            real = columns <= 12
            expected = full[rows[:, None], columns.clamp(max=12)]
            torch.testing.assert_close(got[real], expected[real], atol=1e-5, rtol=1e-5)
            done = done + torch.tensor(kept)[rows]
            stepper.step_block(junk[: len(rows)], done, int(done.max()) + 4)  # refused as a whole
            left = torch.arange(len(rows)) != 2  # a row leaves each time
            rows, done = rows[left], done[left]
            stepper.select(left.nonzero()[:, 0], left.nonzero()[:, 0])
        assert done.unique().numel() >= 4


def test_targets_that_share_a_source_have_the_likelihood_of_pairs():
    model = build("transformer", encoder_layers=2, decoder_layers=2)
    sources, targets = pairs(3, seed=5), pairs(12, seed=6)
    shared = collate([type(p)(sources[i // 4].source, p.target) for i, p in enumerate(targets)])
    src, src_len = pad([p.source for p in sources])
    expected = model.log_likelihood(shared)
    encoded = []
    model.encoder.stack.register_forward_hook(lambda *args: encoded.append(len(args[1][0])))
    got = model.log_likelihood(Batch(src, src_len, shared.tgt, shared.tgt_len))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)
    assert encoded == [3]  # each source once
    # By hand, from one distribution a position.
    for i in (0, 7, 11):
        stepper = model.stepper(*pad([sources[i // 4].source]), 20)
        total, last = 0.0, BOS
        for symbol in [*targets[i].target, EOS]:
            total += stepper.step(torch.tensor([last])).log_softmax(-1)[0, symbol].item()
            last = symbol
        assert got[i].item() == pytest.approx(total, rel=1e-4)


def test_targets_that_cannot_be_emitted_have_no_probability():
    model = build("transformer")
    batch = collate([type(p)(p.source, [*p.target, special]) for p, special in zip(pairs(2), (UNK, BOS), strict=True)])
    assert model.log_likelihood(batch).tolist() == [float("-inf")] * 2


def test_reordered_caches_continue_the_right_prefix():
    model = build("transformer")
    batch = batch_of(3, seed=2)
    first = torch.arange(NUM_SPECIAL, NUM_SPECIAL + 6)  # three sentences, two beams each
    kept = torch.tensor([2, 0])
    rows = torch.tensor([5, 4, 1, 1])  # sentence 2 with its beams exchanged, sentence 0 with one beam twice

    def logits(rows):
        stepper = model.stepper(batch.src, batch.src_len, 4, beam=2)
        stepper.step(torch.full((6,), BOS))
        stepper.step(first)
        stepper.select(rows, kept)
        return stepper.step(torch.full((4,), NUM_SPECIAL + 5))

    with torch.inference_mode():
        got = logits(rows)
        for row, origin in enumerate(rows.tolist()):
            sentence = origin // 2
            alone = model.stepper(batch.src[sentence : sentence + 1], batch.src_len[sentence : sentence + 1], 4)
            for token in (BOS, first[origin].item()):
                alone.step(torch.tensor([token]))
            expected = alone.step(torch.tensor([NUM_SPECIAL + 5]))
            torch.testing.assert_close(got[row : row + 1], expected, atol=1e-5, rtol=0)
        # The same without exchanging the caches of the beams is far off: the test sees a forgotten reorder.
        unmoved = logits(torch.tensor([4, 5, 0, 1]))
        assert (unmoved - got)[:3, NUM_SPECIAL:].abs().amax(1).min() > 1e-3


def test_beam_search_of_the_model_never_scores_below_greedy_and_scores_are_the_likelihoods():
    model = build("transformer", seed=3)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    items = pairs(12, seed=3)
    batch = collate(items)
    with torch.inference_mode():
        greedy = model.decode(batch.src, batch.src_len, Settings())
        beam = model.decode(batch.src, batch.src_len, Settings(beam=5, alpha=0.0))
        assert (beam.scores >= greedy.scores - 1e-4).all()
        for decoded in (greedy, beam):
            rows = [row[:n] for row, n in zip(decoded.tokens.tolist(), decoded.lengths.tolist(), strict=True)]
            rescored = collate([type(p)(p.source, row) for p, row in zip(items, rows, strict=True)])
            ended = decoded.lengths < (batch.src_len * 2 + 10).clamp(max=SPEC.max_target_length)
            likelihood = model.log_likelihood(rescored)
            torch.testing.assert_close(decoded.scores[ended], likelihood[ended], atol=1e-3, rtol=1e-4)


def test_encoder_and_decoder_depth_are_separate():
    model = build("transformer", encoder_layers=3, decoder_layers=1)
    assert (len(model.encoder.stack.layers), len(model.decoder.layers)) == (3, 1)


def test_label_smoothing_changes_the_objective_and_not_the_reported_cross_entropy():
    plain, smooth = build("transformer"), build("transformer", label_smoothing=0.3)
    rng = torch.Generator()
    a, b = (m.loss(batch_of(4), rng) for m in (plain, smooth))
    assert a.total.item() == pytest.approx(a.parts["cross_entropy"].item(), rel=1e-5)
    assert b.parts["cross_entropy"].item() == pytest.approx(a.parts["cross_entropy"].item(), rel=1e-5)
    assert b.total.item() != pytest.approx(a.total.item(), rel=1e-3)


def test_loss_is_the_likelihood_of_tokens_and_eos_per_token():
    model = build("transformer")
    batch = batch_of(4)
    with torch.inference_mode():
        expected = -model.log_likelihood(batch).sum() / batch.tgt_len.sum()
        assert model.loss(batch, torch.Generator()).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_bad_configs_name_the_field():
    with pytest.raises(ValidationError, match="model_dim 100 must be even and divisible by num_heads 8"):
        Config(model_dim=100)
    with pytest.raises(ValidationError, match="sample needs beam 1, not 4"):
        Settings(sample=True, beam=4)
    with pytest.raises(ValueError, match="norm must be 'pre' or 'post'"):
        Stack(1, 8, 2, 8, 0.0, norm="middle")
    with pytest.raises(ValueError, match="not divisible"):
        Attention(10, 3)
    with pytest.raises(ValueError, match="limit of 4"):
        Embedding(9, 4, 4, 0.0)(torch.zeros(1, 5, dtype=torch.long))


def test_cache_is_preallocated_once():
    model = build("transformer")
    batch = batch_of(2)
    stepper = model.stepper(batch.src, batch.src_len, 6)
    assert isinstance(stepper, TransformerStepper)
    where = [c.keys.data_ptr() for c in stepper.caches]
    with torch.inference_mode():
        for _ in range(6):
            stepper.step(torch.full((2,), EOS))
    assert [c.keys.data_ptr() for c in stepper.caches] == where


@pytest.mark.parametrize("beam", [1, 3])
def test_decoding_where_gradients_are_recorded_gives_the_same(beam):
    model, batch = build("transformer"), batch_of(6)
    settings = Settings(beam=beam)
    with torch.inference_mode():
        expected = model.decode(batch.src, batch.src_len, settings)
    decoded = model.decode(batch.src, batch.src_len, settings)
    assert len(set(decoded.lengths.tolist())) > 1, "the test needs sentences that leave the batch one by one"
    assert decoded.tokens.tolist() == expected.tokens.tolist()
    torch.testing.assert_close(decoded.scores.detach(), expected.scores)


def test_beams_move_between_two_buffers():
    """Fresh memory at each step would cost more than the move."""
    model = build("transformer")
    batch = batch_of(2)
    stepper = model.stepper(batch.src, batch.src_len, 6, beam=3)
    where = []
    with torch.inference_mode():
        for rows in ([1, 0, 2, 5, 5, 3], [0, 1, 2, 3, 4, 5], [3, 4, 5], [2, 2, 0]):
            tokens = torch.full((stepper.caches[0].keys.shape[0],), EOS)
            stepper.step(tokens)
            cache = stepper.caches[0]
            before = cache.both[:, :, :, : cache.length].clone()
            stepper.select(
                torch.tensor(rows), None if len(rows) == 6 or cache.keys.shape[0] == 3 else torch.tensor([1])
            )
            assert torch.equal(cache.both[:, :, :, : cache.length], before[:, rows])
            where.append(cache.both.data_ptr())
    assert len(set(where)) == 2
