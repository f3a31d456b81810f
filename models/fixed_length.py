"""Outputs of a given length, so that what decoding costs can be measured on models that nobody has trained.

An untrained model ends a sentence anywhere. With `output_length: source` it decodes as always, all its heads included,
but what it says of lengths, ends and stops is overruled: an output has as many tokens as its source. So every family
does the same work, whatever its weights.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from models.interface import BLANK, NUM_SPECIAL, Options


class LengthSettings(Options):
    """The field of every family's Settings that fixes the length of outputs."""

    output_length: Literal["model", "source"] = "model"
    """Who says how many tokens an output has: the model, or the source, which is for measuring the speed of untrained
    models: outputs are as long as their sources (text only), and decoders that stop early make all their rounds. Other
    engines need sentences of one length in a batch, as `random_text` has them."""

    @property
    def fixed(self) -> bool:
        """Whether the source says it."""
        return self.output_length == "source"

    def unfit(self, modality: str) -> str | None:
        """Speech has no tokens to count."""
        return "output_length source needs sources of text" if self.fixed and modality != "text" else None


def spaced_out(alignment: Tensor, frames: Tensor, lengths: Tensor) -> Tensor:
    """Return alignments [b, f] that collapse to exactly `lengths` [b] symbols: their own at even distances, else blank.

    frames: [b] frames that count, at least twice the lengths. A blank where a symbol is wanted becomes the first symbol
    of the vocabulary, which is as good as any that an untrained model gives.
    """
    distance = (frames // lengths.clamp(min=1)).clamp(min=1)[:, None]
    at = torch.arange(alignment.shape[1], device=alignment.device)
    wanted = (at % distance == 0) & (at < distance * lengths[:, None])
    symbols = alignment.masked_fill(alignment == BLANK, NUM_SPECIAL)
    return torch.where(wanted, symbols, BLANK)


def refused_frames(settings: LengthSettings, upsampling: int | None) -> str | None:
    """Return why a model of frames cannot give as many tokens as the source has; None if it can."""
    if settings.fixed and upsampling == 1:
        return "output_length source needs upsampling of 2 or more, so that there is a blank between two tokens"
    return None
