"""Dropout (Srivastava et al. 2014) that does not cost a sixth of training on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GRAIN = 2**16
"""On a CPU the rate is a multiple of 1 / GRAIN: each element is kept or dropped by 16 random bits."""


class _SixteenBitDropout(torch.autograd.Function):
    """Dropout by 16 bits an element: a generator call decides on four, where PyTorch's kernel makes one for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        low = dropped - GRAIN // 2  # int16 starts at -GRAIN / 2
        keep = (bits.view(torch.int16)[: x.numel()].view(x.shape) >= low).view(torch.uint8)
        ctx.save_for_backward(keep)
        ctx.scale = GRAIN / (GRAIN - dropped)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (gradient * keep).mul_(ctx.scale), None


def dropout(x: Tensor, p: float) -> Tensor:
    """Return x [...] with elements set to zero at rate `p`, 0 <= p < 1, and the others scaled by 1 / (1 - p).

    Draws from the global generator, so that a seed gives the same masks again.
    """
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = round(p * GRAIN)
    if not dropped:
        return x
    result: Tensor = _SixteenBitDropout.apply(x, min(dropped, GRAIN - 1))  # type: ignore[no-untyped-call]
    return result


class Dropout(nn.Module):
    """`dropout` in training, nothing else."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """[...] -> [...]."""
        return dropout(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        """The rate, as `nn.Dropout` shows it."""
        return f"p={self.p}"
