"""Hybrids of attention and CTC (Watanabe et al. 2017): what autoregressive families with a CTC output beside share."""

from __future__ import annotations

from torch import Tensor

from models.encoder import Encoded
from models.interface import Batch, DataSpec, Losses
from models.joint_ctc import CTCHead
from models.upsampling import frames_per_position


def ctc_head(ctc_weight: float, embedding: Tensor, max_positions: int, data: DataSpec) -> CTCHead | None:
    """Return the CTC output on an encoder of up to `max_positions` positions, or None if it has no weight."""
    if not ctc_weight:
        return None
    return CTCHead(embedding, frames_per_position(None, data), max_positions, data.max_target_length)


def with_ctc(losses: Losses, head: CTCHead, ctc_weight: float, source: Encoded, batch: Batch) -> Losses:
    """Return the losses of attention weighed with the CTC loss per target token."""
    total, infeasible = head.loss(source, batch)
    total = total / max(losses.num_tokens, 1)
    parts = {**losses.parts, "ctc": total.detach()}
    mixed = (1 - ctc_weight) * losses.total + ctc_weight * total
    return Losses(mixed, losses.num_tokens, parts, {"infeasible": infeasible})
