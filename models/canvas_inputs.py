"""What a decoder over canvases reads before anything is predicted: the source, copied to the target's length."""

from __future__ import annotations

import torch
from torch import Tensor

from models.interface import PAD
from models.layers import padding_mask


def uniform_copy(src: Tensor, src_len: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Return canvases [n, size] of `lengths` [n] that spread each source evenly over the target's positions.

    As in Gu et al. 2018, with both ends aligned: position i of m copies source position i * (|x| - 1) / (m - 1),
    rounded half up; the only position of m = 1 copies the first. Positions beyond the length hold PAD, as does all of
    a canvas whose source is empty.

    Args:
        src: [b, s] ids, s at least 1.
        src_len: [b].
        lengths: [n], n = b or a multiple: then n/b consecutive canvases (candidates) copy the same source.
        size: width of the canvases.
    """
    candidates = lengths.shape[0] // max(src.shape[0], 1)
    src, src_len = src.repeat_interleave(candidates, 0), src_len.repeat_interleave(candidates)
    last = (src_len - 1).clamp(min=0)[:, None]
    steps = (lengths - 1).clamp(min=1)[:, None]
    index = (2 * torch.arange(size, device=src.device) * last + steps) // (2 * steps)  # [n, size]
    copied = src.gather(1, torch.minimum(index, last))
    return copied.masked_fill(~padding_mask(lengths, size) | (src_len == 0)[:, None], PAD)
