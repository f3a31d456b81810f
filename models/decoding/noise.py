"""Counter-based noise: a value depends on (seed, position, column) alone, never on what else is in the batch."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform_noise(seeds: Tensor, position: int | Tensor, size: int) -> Tensor:
    """Return noise [n, size] float64, strictly between 0 and 1, for rows with `seeds` [n] int64 at `position`.

    position: one for all rows, or [n, 1] int64.
    """
    columns = torch.arange(size, device=seeds.device)
    mixed = _mix(_mix(_mix(seeds)[:, None] + position) + columns)
    return ((mixed >> 11) & (2**40 - 1)).double().add_(0.5) / 2**40


def gumbel_noise(seeds: Tensor, position: int | Tensor, size: int) -> Tensor:
    """Return standard Gumbel noise [n, size] float32 for rows with `seeds` [n] int64 at `position` (one, or [n, 1])."""
    return -(-uniform_noise(seeds, position, size).log()).log().float()


def draw_seeds(rng: torch.Generator, count: int) -> Tensor:
    """Return `count` seeds [n] int64 drawn from `rng`, on its device: one per sentence of a training batch.

    An objective that draws its noise by these seeds gives a sentence the same loss however the batch is padded.
    """
    return torch.randint(2**62, (count,), generator=rng, device=rng.device)


def row_seeds(src: Tensor, src_len: Tensor, seed: int) -> Tensor:
    """Return one int64 seed per source, from `seed` and what stands in src within src_len [b].

    src: [b, s] ids, or [b, s, features] float32, of which every bit counts.
    """
    if src.is_floating_point():
        columns = torch.arange(src.shape[2], device=src.device)
        src = _mix(src.float().contiguous().view(torch.int32).long() + columns * 2**32).sum(2)
    positions = torch.arange(src.shape[1], device=src.device)
    coded = _mix(_mix(src + 1) + positions)
    coded = coded.masked_fill(positions >= src_len[:, None], 0)
    return _mix(coded.sum(1) + seed)


def _mix(x: Tensor) -> Tensor:
    """Scramble int64 values (the finaliser of SplitMix64, Steele et al. 2014, with arithmetic shifts masked)."""
    x = x + -7046029254386353131
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -4658895280553007687
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -7723592293110705685
    return x ^ ((x >> 31) & (2**33 - 1))
