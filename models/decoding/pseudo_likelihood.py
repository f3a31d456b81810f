"""Whole outputs judged by a conditional masked language model: pseudo-log-likelihood (Salazar et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from models.encoder import CanvasDecoder, Memory
from models.interface import MASK
from models.layers import padding_mask
from models.output import OutputLayer

MOST_POSITIONS = 2**15
"""Positions of canvases that are judged at a time, unless one sentence has more."""


def pseudo_log_likelihood(
    decoder: CanvasDecoder, output: OutputLayer, memory: Memory, tokens: Tensor, lengths: Tensor, maskings: int
) -> Tensor:
    """Return the sum over an output's tokens of their log-probability given others and the source, [n] float32.

    Each output is masked `maskings` times, every time each so-manieth token of it, and all of these canvases are filled
    in one pass. As many maskings as tokens hide one token at a time, as the paper does, for the most work; with one
    masking no token knows of another.

    Args:
        decoder: fills masks.
        output: says with what.
        memory: the b encoded sources.
        tokens: [n, t]; n is b or a multiple of it: then n/b consecutive outputs belong to a source.
        lengths: [n] tokens that count.
        maskings: canvases of each output.
    """
    b, t = len(memory.mask), tokens.shape[1]
    of_source, counts = tokens.view(b, -1, t), lengths.view(b, -1)
    each = max(1, of_source.shape[1] * min(maskings, t) * t)
    judged = []
    for sources in torch.split(torch.arange(b, device=tokens.device), max(1, MOST_POSITIONS // each)):
        n = counts[sources].flatten()
        longest = int(n.max())
        part = of_source[sources, :, :longest].flatten(0, 1)  # [m, t']
        judged.append(_of_few(decoder, output, memory.select(sources), part, n, min(maskings, max(longest, 1))))
    return torch.cat(judged) if judged else torch.zeros(0, device=tokens.device)


def _of_few(
    decoder: CanvasDecoder, output: OutputLayer, memory: Memory, tokens: Tensor, lengths: Tensor, maskings: int
) -> Tensor:
    """Do it for as many outputs as memory has room for."""
    m, t = tokens.shape
    place = torch.arange(t, device=tokens.device)
    group = place % maskings
    hidden = group == torch.arange(maskings, device=tokens.device)[:, None]  # [k, t]
    canvases = tokens[:, None].masked_fill(hidden, MASK).flatten(0, 1)  # [m * k, t]
    states = decoder(canvases, lengths.repeat_interleave(maskings), memory).view(m, maskings, t, -1)
    at = states[:, group, place]  # [m, t, d]
    log_probs = output.log_probs_of(at.flatten(0, 1), tokens.flatten()).view(m, t)
    return log_probs.where(padding_mask(lengths, t), 0.0).sum(1)
