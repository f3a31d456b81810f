"""SpecAugment (Park et al. 2019): training on features of which random stretches of time and frequency are masked."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.configs import SpecAugment


def spec_augment(src: Tensor, src_len: Tensor, config: SpecAugment, rng: torch.Generator) -> Tensor:
    """Return features [b, s, m] with masks of 0, which is the mean of normalised features.

    src_len: [b] frames; all randomness comes from `rng`, on the device of `src`.
    """
    b, s, m = src.shape
    widest = (src_len * config.time_share).long().clamp(max=config.time_width)
    hidden_frames = _masks(src_len, widest, config.time_masks, s, rng)
    bins = torch.full((b,), m, device=src.device)
    hidden_bins = _masks(bins, bins.clamp(max=config.frequency_width), config.frequency_masks, m, rng)
    return src.masked_fill(hidden_frames[:, :, None] | hidden_bins[:, None, :], 0.0)


def _masks(sizes: Tensor, widest: Tensor, count: int, width: int, rng: torch.Generator) -> Tensor:
    """Return [b, width] bool: `count` masks a row, of uniform width 0..widest [b], uniform within sizes [b]."""
    shape = (len(sizes), count, 1)
    draws = [torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64) for _ in range(2)]
    length = (draws[0] * (widest[:, None, None] + 1)).long()
    start = (draws[1] * (sizes[:, None, None] - length + 1)).long()
    positions = torch.arange(width, device=sizes.device)
    return ((positions >= start) & (positions < start + length)).any(1)
