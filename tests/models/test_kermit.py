"""KERMIT: one stack over the pair, in one direction or in both."""

import pytest
import torch

from bench.batching import collate
from bench.batching import pad as pad_rows
from bench.decoding import decode_batch
from bench.preparation import EncodedPair
from models.interface import BOS, EOS, NUM_SPECIAL, PAD
from models.kermit import Config, Settings
from tests.models.families import SPEC, batch_of, build, pairs
from tests.models.test_insertion import learned, memorise, naive_loss, scaled, without_repeats


def decode(model, sources, **options):
    return [o.tokens for o in decode_batch(model.eval(), sources, Settings(**options), "float32")]


def enclosed(ids):
    return torch.tensor([[BOS, *ids, EOS]])


@pytest.mark.parametrize("termination", ["slot", "sequence"])
def test_loss_equals_a_loop_over_sentences_and_slots(termination):
    model = scaled(build("kermit", termination=termination, tau=0.8))
    batch = collate([*pairs(12, seed=1), EncodedPair([NUM_SPECIAL], []), EncodedPair([], [NUM_SPECIAL] * 3)])

    def slots_of(row, canvas):
        given = enclosed(batch.src[row, : batch.src_len[row]].tolist())
        lengths = torch.tensor([given.shape[1]]), torch.tensor([canvas.shape[1]])
        return model.head(model.read(given, lengths[0], canvas, lengths[1], torch.tensor([False])))

    losses = model.loss(batch, torch.Generator().manual_seed(5))
    expected = naive_loss(model, batch, torch.Generator().manual_seed(5), slots_of, termination, tau=0.8)
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses.num_tokens == batch.tgt_len.sum()


def test_the_stack_is_as_deep_as_encoder_and_decoder_and_the_only_one():
    model = build("kermit", encoder_layers=2, decoder_layers=1)
    assert len(model.decoder.layers) == 3
    assert model.observed_modules() == {"decoder": [model.decoder]}
    assert all(layer.cross_attention is None for layer in model.decoder.layers)


def test_it_has_no_encoder_to_convolve():
    assert Config(convolution=0).convolution == 0
    with pytest.raises(ValueError, match="convolution 3 has no place"):
        Config(convolution=3)


def test_a_pair_reads_the_same_in_a_padded_batch_whatever_the_padding_holds():
    model = scaled(build("kermit"))
    alone = model.read(enclosed([9, 8]), torch.tensor([4]), enclosed([10]), torch.tensor([3]), torch.tensor([False]))
    given = torch.tensor([[BOS, 9, 8, EOS, 11, 12], [BOS, 9, 8, 7, 7, EOS]])
    canvas = torch.tensor([[BOS, 10, EOS, 13], [BOS, 10, 11, EOS]])
    lengths = torch.tensor([4, 6]), torch.tensor([3, 4])
    together = model.read(given, lengths[0], canvas, lengths[1], torch.tensor([False, True]))
    torch.testing.assert_close(together[:1, :3], alone, atol=1e-5, rtol=1e-5)


def test_a_canvas_sees_what_is_given_and_which_side_it_is():
    model = scaled(build("kermit"))

    def states(given, reverse):
        lengths = torch.tensor([len(given) + 2]), torch.tensor([3])
        return model.read(enclosed(given), lengths[0], enclosed([10]), lengths[1], torch.tensor([reverse]))

    assert not torch.allclose(states([9, 8], False), states([8, 9], False), atol=1e-3)
    assert not torch.allclose(states([9, 8], False), states([9, 8], True), atol=1e-3)


def test_a_pair_reads_the_same_whichever_side_is_the_canvas():
    model = scaled(build("kermit"))
    read = []
    model.decoder.register_forward_hook(lambda module, args, output: read.append(output))
    source, target = enclosed([9, 8, 7, 12]), enclosed([10, 11])
    lengths = torch.tensor([6]), torch.tensor([4])
    model.read(source, lengths[0], target, lengths[1], torch.tensor([False]))
    model.read(target, lengths[1], source, lengths[0], torch.tensor([True]))
    torch.testing.assert_close(read[0], torch.cat([read[1][:, 4:], read[1][:, :4]], dim=1), atol=1e-4, rtol=1e-4)


def seen_in_training(model, items, seed=0):
    """What `loss` reads: for each pair the given side, the canvas, and whether the target is the given side."""
    seen = []
    read = model.read
    model.read = lambda *args: seen.append(args) or read(*args)
    model.loss(collate(items), torch.Generator().manual_seed(seed))
    model.read = read
    given, given_len, canvas, lengths, reverse = seen[0]
    return [
        (g[:n].tolist(), c[:m].tolist(), r)
        for g, n, c, m, r in zip(given, given_len.tolist(), canvas, lengths.tolist(), reverse.tolist(), strict=True)
    ]


def is_subsequence(part, whole):
    rest = iter(whole)
    return all(token in rest for token in part)


@pytest.mark.parametrize("joint", [False, True])
def test_a_joint_model_is_trained_in_both_directions(joint):
    items = [EncodedPair(p.target, p.source) if i % 2 else p for i, p in enumerate(pairs(200, seed=1))]
    rows = seen_in_training(build("kermit", joint=joint, canvases=1), items)
    for item, (given, canvas, reverse) in zip(items, rows, strict=True):
        full, partial = (item.target, item.source) if reverse else (item.source, item.target)
        assert given == [BOS, *full, EOS]
        assert canvas[0] == BOS
        assert canvas[-1] == EOS
        assert is_subsequence(canvas[1:-1], partial)
    share = sum(reverse for _, _, reverse in rows) / len(rows)
    assert 0.4 < share < 0.6 if joint else share == 0


def test_the_reverse_direction_draws_canvases_up_to_the_complete_source():
    items = [EncodedPair([NUM_SPECIAL, NUM_SPECIAL + 1, NUM_SPECIAL + 2], [NUM_SPECIAL + 5])] * 400
    rows = seen_in_training(build("kermit", joint=True, canvases=1), items)
    sizes = [len(canvas) - 2 for _, canvas, reverse in rows if reverse]
    assert set(sizes) == {0, 1, 2, 3}
    assert {len(canvas) - 2 for _, canvas, reverse in rows if not reverse} == {0, 1}


def test_the_reverse_loss_is_that_of_the_swapped_pair(monkeypatch):
    """With every pair drawn to be reversed, a pair is trained as its mirror image with the segments exchanged."""
    model = scaled(build("kermit", joint=True))
    batch = batch_of(8, seed=3)
    mirror = type(batch)(batch.tgt, batch.tgt_len, batch.src, batch.src_len)
    noise = model.loss.__globals__["uniform_noise"]

    def losses(batch, direction):
        def fixed(seeds, stream, size):
            return noise(seeds, stream, size) if stream == 0 else torch.full((len(seeds), 1), direction)

        monkeypatch.setattr("models.kermit.uniform_noise", fixed)
        return model.loss(batch, torch.Generator().manual_seed(0))

    reverse = losses(batch, 0.0)
    model.segments.weight.data = model.segments.weight.data.flip(0)
    forward = losses(mirror, 1.0)
    scale = mirror.tgt_len.sum() / batch.tgt_len.sum()  # both are per target token
    assert reverse.total.item() == pytest.approx((forward.total * scale).item(), rel=1e-4)
    assert reverse.num_tokens == batch.tgt_len.sum()


def test_the_reverse_is_refused_to_a_model_of_one_direction():
    with pytest.raises(ValueError, match="joint"):
        decode(build("kermit"), [[NUM_SPECIAL]], reverse=True)


def test_outputs_end_at_the_limit_of_their_side():
    model = scaled(build("kermit", joint=True))
    for reverse, limit in ((False, SPEC.max_target_length), (True, SPEC.max_source_length)):
        decoded = decode(model, [[NUM_SPECIAL], []], reverse=reverse, eos_penalty=1e6)
        assert [len(tokens) for tokens in decoded] == [limit, limit]
    longest = [NUM_SPECIAL] * max(SPEC.max_source_length, SPEC.max_target_length)
    assert decode(model, [longest], reverse=True)
    with pytest.raises(ValueError, match="limit"):
        decode(model, [[*longest, NUM_SPECIAL]])


@pytest.mark.parametrize("options", [{"mode": "serial"}, {"reverse": True}, {"reverse": True, "mode": "serial"}])
def test_every_way_of_decoding_is_the_same_in_any_batch(options):
    model = learned("kermit", joint=True)
    sources = [p.source for p in pairs(16, seed=1)] + [[]]
    together = decode(model, sources, **options)
    assert together == [decode(model, [s], **options)[0] for s in sources]
    assert len({len(tokens) for tokens in together}) > 1, "the test needs rows that stop in different rounds"


def test_every_pass_reads_the_whole_pair_once():
    model = scaled(build("kermit"))
    widths = []
    model.decoder.register_forward_hook(lambda module, args, output: widths.append(output.shape[1]))
    with torch.inference_mode():
        decoded = model.decode(*pad_rows([[9, 8, 7]]), Settings(eos_penalty=1e6, iterations=3))
    assert widths == [5 + 2, 5 + 3, 5 + 5]  # bos 9 8 7 eos; 0, 1 and 3 tokens between bos and eos
    assert decoded.iterations.tolist() == [3]
    assert (decoded.tokens != PAD).all()


def test_a_joint_model_memorises_both_directions():
    items = [EncodedPair(list(dict.fromkeys(p.source)), p.target) for p in without_repeats(16, seed=8)]
    items = [p for p in items if len(p.target) > 3][:6]  # short ones are alike, and then have several sources
    assert len(items) == 6
    model = build("kermit", joint=True, model_dim=64, ffn_dim=128)
    sources, targets = [p.source for p in items], [p.target for p in items]
    memorise(
        model,
        items,
        lambda: decode(model, sources) == targets and decode(model, targets, reverse=True) == sources,
    )
