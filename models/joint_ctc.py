"""A CTC output on the encoder of another model, trained beside it (Watanabe et al. 2017), and what it decodes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.alignment import collapse, ctc_loss, token_begins
from models.decoding.refinement import Canvas, most_probable
from models.encoder import Encoded
from models.interface import BLANK, BOS, EOS, MASK, PAD, PLH, UNK, Batch
from models.layers import padding_mask
from models.output import OutputLayer
from models.upsampling import Upsampler


class CTCHead(nn.Module):
    """A linear map from encoder states to frames, whose symbols share the embedding."""

    def __init__(self, weight: Tensor, factor: int, max_positions: int, max_target_length: int) -> None:
        """Give `factor` frames to each of up to `max_positions` encoder positions; `weight` [v, d] is the embedding."""
        super().__init__()
        self.upsample = Upsampler(weight.shape[1], factor, max_positions)
        self.output = OutputLayer(weight, banned=(PAD, BOS, EOS, UNK, MASK, PLH))
        self.max_target_length = max_target_length

    def loss(self, source: Encoded, batch: Batch) -> tuple[Tensor, int]:
        """Return the CTC loss summed over the batch, and how many targets have no alignment; they add nothing."""
        frames = source.lengths * self.upsample.factor
        total, _, feasible = ctc_loss(self.output, self.upsample(source.states), frames, batch.tgt, batch.tgt_len)
        return total, int((~feasible).sum())

    def greedy(self, source: Encoded) -> Canvas:
        """Return the collapsed best alignment of each source, [b, t]; a token's score is that of its surest frame."""
        frames = source.lengths * self.upsample.factor
        states = self.upsample(source.states)
        ids, log_probs = most_probable(self.output, states.flatten(0, 1))
        alignment, log_probs = ids.view(states.shape[:2]), log_probs.view(states.shape[:2])
        tokens, lengths = collapse(alignment, frames)
        scores = surest_frames(alignment, log_probs, frames, tokens.shape[1])
        most = self.max_target_length
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
