"""Glancing training (Qian et al. 2021): the worse the first pass, the more of the target the second one sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor

from models.layers import BackboneConfig


class GlancingConfig(BackboneConfig):
    """Shape, and how much is revealed in training; a change means retraining."""

    glancing_start: float = Field(0.5, ge=0, le=1)
    """Share lambda of the first pass's errors that is revealed when training begins."""
    glancing_end: float = Field(0.3, ge=0, le=1)
    """The same when training ends; linear in between."""

    def glancing_ratio(self, progress: float) -> float:
        """Return lambda when `progress` (0-1) of the training budget is spent."""
        return self.glancing_start * (1 - progress) + self.glancing_end * progress


@contextmanager
def first_pass(device: torch.device) -> Iterator[None]:
    """Run a pass on `device` without gradient, whose dropout masks the pass after it draws again."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        yield


def reveal(prediction: Tensor, target: Tensor, real: Tensor, ratio: float, noise: Tensor) -> Tensor:
    """Return [b, t] bool: positions of the target that the second pass is shown.

    With d the Hamming distance between prediction and target, floor(ratio * d) of the real positions are drawn
    without replacement, right ones and wrong ones alike.

    Args:
        prediction: [b, t] ids of the first pass.
        target: [b, t] ids.
        real: [b, t] bool: positions that count.
        ratio: lambda, 0-1.
        noise: [b, t], uniform between 0 and 1.
    """
    distance = ((prediction != target) & real).sum(1)
    count = (distance.double() * ratio).long()
    rank = noise.masked_fill(~real, 2.0).argsort(1).argsort(1)
    return rank < count[:, None]
