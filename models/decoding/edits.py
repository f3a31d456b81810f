"""Edits of a canvas by insertion and deletion, batched: what an expert would do, and doing it.

The edits of the Levenshtein Transformer (Gu et al. 2019). A canvas holds bos ... eos; a slot is a pair of neighbours,
named by the position of its left one. The expert makes as few edits as there can be: it keeps a longest common
subsequence, so that the number of edits is the indel distance. Of equally short scripts two rules choose one:

- from left to right it keeps a token of the canvas if some shortest script does, and takes it for the first occurrence
  in what is left of the reference (so a token too many is deleted where it is repeated, not where it stands first);
- tokens that are missing are inserted right after the token kept before them: where tokens that are still to be deleted
  stand between two kept ones, in front of them.

The dynamic programme runs over the positions of the canvas, each a few operations on all sentences and all positions of
the reference; nothing is read back from the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.decoding.refinement import Canvas
from models.interface import BOS, EOS, PAD, PLH
from models.layers import padding_mask


@dataclass(frozen=True)
class Edits:
    """What the expert does to canvases [b, t]; see `expert_edits`."""

    delete: Tensor
    """[b, t] bool: tokens that go."""
    insert: Tensor
    """[b, t] int64: tokens that are missing between a position and the next one; 0 at a token that goes."""
    first: Tensor
    """[b, t] int64: where in the reference the first of them stands; the others follow it. Means nothing elsewhere."""


def bounded(tokens: Tensor, lengths: Tensor) -> Canvas:
    """Return the canvases, [b, t+2], that hold tokens [b, t] with lengths [b] between bos and eos, scored 0."""
    b, t = tokens.shape
    canvas = tokens.new_full((b, t + 2), PAD)
    canvas[:, 0] = BOS
    canvas[:, 1:-1] = tokens.masked_fill(~padding_mask(lengths, t), PAD)
    canvas.scatter_(1, lengths[:, None] + 1, EOS)
    return Canvas(canvas, lengths + 2, torch.zeros_like(canvas, dtype=torch.float32))


def inner(canvas: Canvas) -> Tensor:
    """Return [b, t] bool: the positions between bos and eos."""
    mask = padding_mask(canvas.lengths - 1, canvas.tokens.shape[1])
    mask[:, 0] = False
    return mask


def expert_edits(canvas: Canvas, reference: Canvas) -> Edits:
    """Return the fewest edits that turn canvases [b, t] into references [b, u], both with bos and eos, which stay."""
    (b, t), u = canvas.tokens.shape, reference.tokens.shape[1]
    lasts = torch.arange(u, device=canvas.tokens.device)
    # The reference runs backwards, so that its last q tokens are a prefix: column q-1 is its token u-q.
    equal = canvas.tokens[:, :, None] == reference.tokens.flip(1)[:, None, :]
    equal &= padding_mask(canvas.lengths, t)[:, :, None] & padding_mask(reference.lengths, u).flip(1)[:, None, :]
    # common[i][:, q]: length of a longest common subsequence of canvas[i:] and the last q tokens of the reference.
    below = canvas.lengths.new_zeros(b, u + 1)
    common = [below]
    for i in reversed(range(t)):
        below = below.clone()
        below[:, 1:] = torch.where(equal[:, i], common[-1][:, :-1] + 1, common[-1][:, 1:])
        below = below.cummax(1).values
        common.append(below)
    common.reverse()
    left = canvas.lengths.new_full((b, 1), u)  # tokens of the reference, padding included, that are still to come
    matches = []
    for i in range(t):
        nearest = torch.where(equal[:, i] & (lasts < left), lasts + 1, 0).amax(1, keepdim=True)  # as q; 0 is none
        worth = common[i + 1].gather(1, (nearest - 1).clamp(min=0)) + 1
        kept = (nearest > 0) & (worth == common[i].gather(1, left))
        matches.append(torch.where(kept, u - nearest, -1))
        left = torch.where(kept, nearest - 1, left)
    match = torch.cat(matches, dim=1)  # [b, t]: where in the reference a token is; -1: not
    keep = match >= 0
    ahead = torch.where(keep, match, reference.lengths[:, None])
    ahead = ahead.flip(1).cummin(1).values.flip(1)  # the match of the next token that is kept, itself included
    ahead = torch.cat([ahead[:, 1:], reference.lengths[:, None]], dim=1)
    insert = torch.where(keep, ahead - match - 1, 0)
    return Edits(~keep & padding_mask(canvas.lengths, t), insert, match + 1)


def missing_tokens(reference: Canvas, edits: Edits, counts: Tensor) -> Tensor:
    """Return the tokens [m] that belong in the placeholders of `insert_placeholders(canvas, counts)`, row by row.

    counts: [b, t], at most `edits.insert`: of a slot that gets fewer than it should, the first ones.
    """
    counts = counts.flatten()
    width = reference.tokens.shape[1]
    rows = torch.arange(len(reference.tokens), device=counts.device)[:, None] * width
    start = (edits.first + rows).flatten() - (counts.cumsum(0) - counts)  # less the number of placeholders before
    index = start.repeat_interleave(counts)
    return reference.tokens.flatten()[index + torch.arange(len(index), device=counts.device)]


def limited(counts: Tensor, room: Tensor) -> Tensor:
    """Return counts [b, t] cut to at most room [b] a row: the leftmost slots get theirs."""
    return counts.minimum((room[:, None] - (counts.cumsum(1) - counts)).clamp(min=0))


def apply_deletions(canvas: Canvas, delete: Tensor) -> Canvas:
    """Return the canvases [b, t] without the tokens where delete [b, t] is True; the width stays."""
    t = canvas.tokens.shape[1]
    keep = padding_mask(canvas.lengths, t) & ~delete
    return _moved(canvas, keep.cumsum(1) - 1, keep, keep.sum(1), t, PAD)


def insert_placeholders(canvas: Canvas, counts: Tensor) -> Canvas:
    """Return the canvases [b, t] with counts [b, t] placeholders after each position (eos: 0); as wide as needed."""
    t = canvas.tokens.shape[1]
    real = padding_mask(canvas.lengths, t)
    positions = torch.arange(t, device=counts.device) + counts.cumsum(1) - counts
    lengths = canvas.lengths + counts.sum(1)
    return _moved(canvas, positions, real, lengths, int(lengths.max()), PLH)


def fill(canvas: Canvas, ids: Tensor, log_probs: Tensor) -> Canvas:
    """Return the canvases with their m placeholders, row by row, replaced by ids [m], scored log_probs [m]."""
    empty = canvas.tokens == PLH
    scores = canvas.scores.masked_scatter(empty, log_probs.to(canvas.scores.dtype))
    return Canvas(canvas.tokens.masked_scatter(empty, ids), canvas.lengths, scores)


def _moved(canvas: Canvas, positions: Tensor, moved: Tensor, lengths: Tensor, width: int, filler: int) -> Canvas:
    """Return canvases [b, width] of `lengths` [b]: tokens where `moved` [b, t] at `positions` [b, t], else `filler`."""
    index = torch.where(moved, positions, width)  # what goes falls off the end
    shape = (len(lengths), width + 1)
    tokens = canvas.tokens.new_full(shape, filler).scatter(1, index, canvas.tokens)[:, :width]
    scores = canvas.scores.new_zeros(shape).scatter(1, index, canvas.scores)[:, :width]
    return Canvas(tokens.masked_fill(~padding_mask(lengths, width), PAD), lengths, scores)
