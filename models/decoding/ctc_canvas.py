"""The output of CTC as a canvas to go on from: its tokens, and how sure it is of each."""

from __future__ import annotations

import torch
from torch import Tensor

from models.alignment import collapse, token_begins
from models.decoding.refinement import Canvas
from models.encoder import Encoded
from models.interface import BLANK
from models.joint_ctc import CTCHead
from models.layers import padding_mask


def ctc_canvas(head: CTCHead, source: Encoded) -> Canvas:
    """Return the collapsed best alignment of each source, [b, t]; a token's score is that of its surest frame."""
    frames = source.lengths * head.upsample.factor
    states = head.upsample(source.states)
    ids, log_probs = head.output.most_probable(states.flatten(0, 1))
    alignment, log_probs = ids.view(states.shape[:2]), log_probs.view(states.shape[:2])
    tokens, lengths = collapse(alignment, frames)
    scores = surest_frames(alignment, log_probs, frames, tokens.shape[1])
    most = head.max_target_length
    return Canvas(tokens[:, :most], lengths.clamp(max=most), scores[:, :most])


def surest_frames(alignment: Tensor, log_probs: Tensor, frames: Tensor, width: int) -> Tensor:
    """Return the highest log-probability among the frames of each token that an alignment collapses to, [b, width].

    Args:
        alignment: [b, f] symbols.
        log_probs: [b, f], those of the symbols.
        frames: [b] frames that count.
        width: most tokens of a row; beyond a row's tokens the result is 0.
    """
    begins = token_begins(alignment, frames)
    voiced = (alignment != BLANK) & padding_mask(frames, alignment.shape[1])
    rank = torch.where(voiced, begins.cumsum(1) - 1, width)  # a spare last column takes the other frames
    highest = log_probs.new_full((len(alignment), width + 1), float("-inf"))
    highest = highest.scatter_reduce(1, rank, log_probs, "amax")[:, :width]
    return highest.masked_fill(~padding_mask(begins.sum(1), width), 0.0)
