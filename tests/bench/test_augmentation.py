"""SpecAugment: how many frames and features are masked, where, and by which draws."""

import torch

from bench.augmentation import spec_augment
from bench.configs import SpecAugment

CONFIG = SpecAugment(time_masks=1, time_width=10, time_share=0.5, frequency_masks=0)


def augmented(config, lengths, seed=0, width=40, features=8):
    src = torch.ones(len(lengths), width, features)
    return spec_augment(src, torch.tensor(lengths), config, torch.Generator().manual_seed(seed))


def test_a_time_mask_hides_all_features_of_neighbouring_frames():
    for row in augmented(CONFIG, [40] * 200):
        hidden = (row == 0).all(1)
        assert torch.equal(hidden, (row == 0).any(1))
        places = hidden.nonzero()[:, 0].tolist()
        assert places == list(range(places[0], places[-1] + 1)) if places else True


def test_widths_are_uniform_from_zero_to_the_widest():
    counts = (augmented(CONFIG, [40] * 4000)[:, :, 0] == 0).sum(1).bincount(minlength=11)
    assert len(counts) == 11
    assert (counts > 4000 / 11 * 0.75).all()
    assert (counts < 4000 / 11 * 1.25).all()


def test_masks_lie_within_the_recording_and_cover_no_more_than_their_share():
    rows = augmented(CONFIG, [12] * 2000)
    assert not (rows[:, 12:] == 0).any()
    hidden = (rows[:, :, 0] == 0).sum(1)
    assert hidden.max() == 6  # half of twelve frames
    assert (rows[:, 0, 0] == 0).any()
    assert (rows[:, 11, 0] == 0).any()


def test_a_frequency_mask_hides_all_frames_of_neighbouring_features():
    config = SpecAugment(time_masks=0, frequency_masks=2, frequency_width=3)
    rows = augmented(config, [40] * 500)
    hidden = (rows == 0).all(1)
    assert torch.equal(hidden, (rows == 0).any(1))
    assert hidden.sum(1).max() == 6
    assert hidden.any(0).all()


def test_the_generator_decides_and_a_recording_without_frames_is_no_error():
    config = SpecAugment()
    lengths = [40, 0, 3]
    assert torch.equal(augmented(config, lengths, seed=1), augmented(config, lengths, seed=1))
    assert not torch.equal(augmented(config, lengths, seed=1), augmented(config, lengths, seed=2))
