import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.batching import TrainingBatches, bucket, collate, pad, pad_sources
from bench.preparation import EncodedPair
from models.interface import PAD


def test_pad_and_collate():
    ids, lengths = pad([[7, 8, 9], [], [7]])
    assert ids.tolist() == [[7, 8, 9], [PAD] * 3, [7, PAD, PAD]]
    assert lengths.tolist() == [3, 0, 1]
    assert pad([[]])[0].shape == (1, 1)
    batch = collate([EncodedPair([7], [8, 9]), EncodedPair([7, 7], [8])])
    assert batch.src.tolist() == [[7, PAD], [7, 7]]
    assert batch.tgt_len.tolist() == [2, 1]


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 60), st.integers(1, 9))
def test_bucket_covers_all_once_within_its_limits(sizes, max_tokens, max_sentences):
    batches = bucket(sizes, range(len(sizes)), max_tokens, max_sentences)
    assert [i for b in batches for i in b] == list(range(len(sizes)))
    for b in batches:
        assert len(b) <= max_sentences
        assert len(b) == 1 or max(max(sizes[i], 1) for i in b) * len(b) <= max_tokens


def pairs(n):
    rng = np.random.default_rng(0)
    return [EncodedPair([7] * int(rng.integers(1, 20)), [8] * int(rng.integers(1, 20))) for _ in range(n)]


def test_an_epoch_holds_every_pair_once_and_epochs_differ():
    batches = TrainingBatches(pairs(300), 100, 50, seed=1, window=100)
    first, second = batches.epoch(0), batches.epoch(1)
    assert sorted(i for b in first for i in b) == list(range(300))
    assert first != second
    assert first == TrainingBatches(pairs(300), 100, 50, seed=1, window=100).epoch(0)
    assert first != TrainingBatches(pairs(300), 100, 50, seed=2, window=100).epoch(0)


def test_sentences_of_equal_length_meet_others_in_each_epoch():
    batches = TrainingBatches([EncodedPair([7], [8])] * 64, 8, 4, seed=1)
    assert {frozenset(b) for b in batches.epoch(0)} != {frozenset(b) for b in batches.epoch(1)}


def test_the_stream_goes_on_from_any_position():
    batches = TrainingBatches(pairs(60), 100, 50, seed=1)
    stream = batches.stream(0, 0)
    whole = [next(stream) for _ in range(2 * len(batches.epoch(0)))]
    epoch, position, _ = whole[5]
    resumed = batches.stream(epoch, position)
    for e, p, batch in whole[6:]:
        e2, p2, again = next(resumed)
        assert (e, p, batch.src.tolist()) == (e2, p2, again.src.tolist())


def test_padding_is_small():
    made = pairs(2000)
    batches = TrainingBatches(made, 512, 512, seed=1)
    real = padded = 0
    for b in batches.epoch(0):
        padded += max(batches.sizes[i] for i in b) * len(b)
        real += sum(batches.sizes[i] for i in b)
    assert real / padded > 0.9


def test_longer_sources_come_in_epoch_by_epoch():
    plain = TrainingBatches(pairs(300), 100, 50, seed=1, window=100)
    batches = TrainingBatches(pairs(300), 100, 50, seed=1, window=100, curriculum=3)
    order = np.argsort(batches.sizes, kind="stable")
    for number, count in enumerate([100, 200, 300]):
        assert sorted(i for b in batches.epoch(number) for i in b) == sorted(order[:count])
    assert batches.epoch(2) == plain.epoch(2)
    assert batches.epoch(3) == plain.epoch(3)
    assert batches.epoch(0) != TrainingBatches(pairs(300), 100, 50, seed=2, window=100, curriculum=3).epoch(0)
    assert len([i for b in TrainingBatches(pairs(2), 100, 50, seed=1, curriculum=9).epoch(0) for i in b]) == 1


def test_no_pairs_is_an_error():
    with pytest.raises(ValueError, match="no training pairs"):
        TrainingBatches([], 10, 10, 1)


def recordings(*frames):
    return [np.full((n, 3), i + 1, dtype=np.float16) for i, n in enumerate(frames)]


def test_recordings_are_padded_with_zeros_to_float32():
    src, src_len = pad_sources(recordings(2, 0, 4))
    assert src.shape == (3, 4, 3)
    assert str(src.dtype) == "torch.float32"
    assert src_len.tolist() == [2, 0, 4]
    assert src[:, :, 0].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [3, 3, 3, 3]]
    assert pad_sources(recordings(0))[0].shape == (1, 1, 3)
    batch = collate([EncodedPair(frames, [8]) for frames in recordings(2, 3)])
    assert batch.src.shape == (2, 3, 3)
    assert batch.tgt.tolist() == [[8], [8]]


def test_batches_of_speech_are_cut_by_frames():
    pairs = [EncodedPair(frames, [8] * 9) for frames in recordings(*range(10, 60))]
    batches = TrainingBatches(pairs, max_tokens=1, max_sentences=50, seed=1, max_frames=120).epoch(0)
    assert sorted(i for b in batches for i in b) == list(range(50))
    assert all(max(10 + i for i in b) * len(b) <= 120 for b in batches)
    assert max(map(len, batches)) > 2
