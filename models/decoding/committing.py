"""Refiners that commit tokens for good: what is filled and kept is never masked again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from models.decoding.refinement import Canvas, MaskFiller, lowest
from models.interface import MASK


class Committing:
    """Fills every mask, and keeps an equal share of the masks there were at the start, the most confident ones."""

    def __init__(self, network: MaskFiller, masks: Tensor, steps: int) -> None:
        """Fill `masks` [n] masks per row in `steps` rounds; a row of fewer masks fills one in each round."""
        self.network = network
        self.masks = masks
        self.steps = steps

    def refine(self, canvas: Canvas, iteration: int) -> tuple[Canvas, Tensor]:
        """Commit N // K tokens of a row's N masks in each of K rounds, one more in the first N % K."""
        share = self.masks // self.steps + (iteration < self.masks % self.steps)
        return _commit(self.network, canvas, lambda doubt: lowest(doubt, share))

    def select(self, rows: Tensor) -> None:
        """Keep `rows`."""
        self.masks = self.masks.index_select(0, rows)
        self.network.select(rows)


class CommittingAbove:
    """Fills every mask, and keeps the tokens whose probability is above a threshold, at least one (Fast-dLLM)."""

    def __init__(self, network: MaskFiller, threshold: float) -> None:
        self.network = network
        self.threshold = threshold

    def refine(self, canvas: Canvas, iteration: int) -> tuple[Canvas, Tensor]:
        """Commit tokens to masks; a row without masks is done."""
        one = torch.ones_like(canvas.lengths)
        return _commit(self.network, canvas, lambda doubt: lowest(doubt, one) | (doubt < -math.log(self.threshold)))

    def select(self, rows: Tensor) -> None:
        """Keep `rows` of the network's state."""
        self.network.select(rows)


def _commit(network: MaskFiller, canvas: Canvas, choose: Callable[[Tensor], Tensor]) -> tuple[Canvas, Tensor]:
    """Return canvases of which those masks are filled that `choose` takes by doubt [n, t], and which have no mask left.

    Doubt is minus a log-probability; what is no mask has infinite doubt.
    """
    masked = canvas.tokens == MASK
    filled = network.fill(canvas)
    masked &= ~choose((-filled.scores).masked_fill(~masked, float("inf")))
    return replace(filled, tokens=filled.tokens.masked_fill(masked, MASK)), ~masked.any(1)
