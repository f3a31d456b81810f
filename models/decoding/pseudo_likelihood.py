"""Whole outputs judged by a conditional masked language model: pseudo-log-likelihood (Salazar et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from models.encoder import CanvasDecoder, Memory
from models.interface import MASK
from models.layers import padding_mask
from models.output import OutputLayer

MOST_POSITIONS = 2**15
"""Positions of canvases that are judged at a time, unless one masking of the outputs of one sentence has more."""


def pseudo_log_likelihood(
    decoder: CanvasDecoder, output: OutputLayer, memory: Memory, tokens: Tensor, lengths: Tensor, maskings: int
) -> Tensor:
    """Return the sum over an output's tokens of their log-probability given others and the source, [n] float32.

    Each output is masked `maskings` times, every time each so-manieth token of it, and all of these canvases are filled
    side by side: one pass, if memory allows. As many maskings as tokens hide one token at a time, as in the paper, for
    the most work; with one masking no token knows of another. Nothing is said of the length: a sum over fewer tokens
    is the greater one, all else being equal, and that over none is 0.

    Args:
        decoder: fills masks.
        output: says with what.
        memory: the b encoded sources.
        tokens: [n, t]; n is b or a multiple of it: then n/b consecutive outputs belong to a source.
        lengths: [n] tokens that count.
        maskings: canvases of each output.
    """
    b = len(memory.mask)
    if not tokens.numel():
        return torch.zeros(len(tokens), device=tokens.device)
    each = len(tokens) // b
    longest = lengths.view(b, each).amax(1).tolist()
    size = max(1, MOST_POSITIONS // (each * min(maskings, tokens.shape[1]) * tokens.shape[1]))
    judged = []
    for start in range(0, b, size):
        sources = torch.arange(start, min(start + size, b), device=tokens.device)
        rows = slice(start * each, (start + len(sources)) * each)
        width = max(1, *longest[start : start + size])
        part, counts = tokens[rows, :width], lengths[rows]
        judged.append(_of_few(decoder, output, memory.select(sources), part, counts, min(maskings, width)))
    return torch.cat(judged)


def _of_few(
    decoder: CanvasDecoder, output: OutputLayer, memory: Memory, tokens: Tensor, lengths: Tensor, maskings: int
) -> Tensor:
    """Do it for the outputs of few sources."""
    m, t = tokens.shape
    total = torch.zeros(m, device=tokens.device)
    size = max(1, MOST_POSITIONS // (m * t))
    for start in range(0, maskings, size):
        k = min(size, maskings - start)
        hidden = [i for i in range(t) if start <= i % maskings < start + k]  # each in one of the k canvases
        place = torch.tensor(hidden, device=tokens.device)  # [p]
        which = place % maskings - start
        canvases = tokens[:, None].repeat(1, k, 1)  # [m, k, t]
        canvases[:, which, place] = MASK
        states = decoder(canvases.flatten(0, 1), lengths.repeat_interleave(k), memory).view(m, k, t, -1)
        at = states[:, which, place]  # [m, p, d]
        log_probs = output.log_probs_of(at.flatten(0, 1), tokens[:, place].flatten()).view(m, -1)
        total += log_probs.where(padding_mask(lengths, t)[:, place], 0.0).sum(1)
    return total
