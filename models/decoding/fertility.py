"""Fertilities, the number of times that each source token is copied (Gu et al. 2018): drawn, scored, applied."""

from __future__ import annotations

import torch
from torch import Tensor

from models.decoding.noise import uniform_noise


def copied_positions(fertility: Tensor, width: int) -> Tensor:
    """Return the source position that each of `width` decoder positions copies, [n, width]; s beyond the last copy.

    fertility: [n, s] int64.
    """
    positions = torch.arange(width, device=fertility.device).repeat(fertility.shape[0], 1)
    return torch.searchsorted(fertility.cumsum(1), positions, right=True)


def average_fertility(log_probs: Tensor) -> Tensor:
    """Return rounded expectations [b, s] of fertilities with log-probabilities [b, s, 1 + most]."""
    values = torch.arange(log_probs.shape[-1], device=log_probs.device, dtype=log_probs.dtype)
    # Not a matrix product, which autocast would make in bfloat16 just before rounding.
    return (log_probs.exp() * values).sum(-1).round().long()


def sampled_fertility(log_probs: Tensor, seeds: Tensor, count: int) -> Tensor:
    """Return `count` samples [b, count, s] of fertilities with log-probabilities [b, s, 1 + most].

    seeds: [b] int64. A sample depends on its seed, its number and the position alone.
    """
    b, s, classes = log_probs.shape
    stream = torch.arange(count, device=seeds.device).repeat(b)[:, None]
    uniform = uniform_noise(seeds.repeat_interleave(count), stream, s).view(b, count, s)
    mass = log_probs.double().exp().cumsum(-1)
    drawn = torch.searchsorted(mass, (uniform.transpose(1, 2) * mass[..., -1:]).contiguous(), right=True)
    return drawn.clamp(max=classes - 1).transpose(1, 2)


def log_prob_of(log_probs: Tensor, fertility: Tensor) -> Tensor:
    """Return the entries of log_probs [b, s, 1 + most] at fertility [b, s], [b, s]."""
    return log_probs.gather(2, fertility[..., None])[..., 0]
