"""A CTC output on the encoder of another model, trained beside it (Watanabe et al. 2017)."""

from __future__ import annotations

from torch import Tensor, nn

from models.alignment import ctc_loss
from models.encoder import Encoded
from models.interface import BOS, EOS, MASK, PAD, PLH, UNK, Batch, DataSpec, Losses
from models.output import OutputLayer
from models.upsampling import Upsampler, frames_per_position


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


def ctc_head(
    ctc_weight: float, embedding: Tensor, max_positions: int, data: DataSpec, upsampling: int | None = None
) -> CTCHead | None:
    """Return the CTC output on an encoder of up to `max_positions` positions, or None if it has no weight.

    upsampling: frames per position; by default what `frames_per_position` says.
    """
    if not ctc_weight:
        return None
    return CTCHead(embedding, frames_per_position(upsampling, data), max_positions, data.max_target_length)


def with_ctc(losses: Losses, head: CTCHead, ctc_weight: float, source: Encoded, batch: Batch) -> Losses:
    """Return the losses of a decoder weighed with the CTC loss per target token."""
    total, infeasible = head.loss(source, batch)
    total = total / max(losses.num_tokens, 1)
    parts = {**losses.parts, "ctc": total.detach()}
    mixed = (1 - ctc_weight) * losses.total + ctc_weight * total
    return Losses(mixed, losses.num_tokens, parts, {"infeasible": infeasible})
