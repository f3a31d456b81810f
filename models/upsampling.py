"""Frames for alignment models: more positions than the source has, so that a target with its blanks fits in them.

As in Libovicky & Helcl 2018 each encoder state is projected to k frames; sinusoids then tell the frames apart.
"""

from __future__ import annotations

from torch import Tensor

from models.interface import DataSpec
from models.layers import sinusoids
from models.linear import Linear


def frames_per_position(upsampling: int | None, data: DataSpec) -> int:
    """Return `upsampling` or, if it is None, what sources of `data` need: text 3, speech, long as it is, 1."""
    return upsampling or (3 if data.modality == "text" else 1)


def attends_to_source(cross_attention: bool | None, data: DataSpec) -> bool:
    """Return `cross_attention` or, if it is None, whether layers over frames want it: on text yes, on speech no."""
    return data.modality == "text" if cross_attention is None else cross_attention


class Upsampler(Linear):
    """Projects each encoder state to `factor` frames and adds the frames' positions."""

    positions: Tensor
    """[f, d] position codes of as many frames as the longest source has."""

    def __init__(self, dim: int, factor: int, max_source_length: int) -> None:
        super().__init__(dim, factor * dim)
        self.factor = factor
        self.register_buffer("positions", sinusoids(max_source_length * factor, dim), persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """Return the inputs of all frames, [b, f, d] with f = s * factor, for encoder states [b, s, d].

        Position i becomes frames i * factor to (i + 1) * factor - 1; with n source positions the first n * factor
        frames are real.
        """
        b, s, d = states.shape
        frames: Tensor = super().forward(states).view(b, s * self.factor, d) + self.positions[: s * self.factor]
        return frames
