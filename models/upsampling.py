"""Frames for alignment models: more positions than the source has, so that a target with its blanks fits in them.

As in Libovicky & Helcl 2018 each encoder state is projected to k frames; sinusoids then tell the frames apart.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from models.encoder import convolution_width
from models.interface import DataSpec
from models.layers import BackboneConfig, Stack, sinusoids
from models.linear import Linear


class FrameConfig(BackboneConfig):
    """Shape of a model that has layers over frames: those of the decoder."""

    upsampling: int | None = Field(None, ge=1)
    """Frames per encoder position; by default 3 for text, and 1 for speech, which has more of them than it needs."""
    cross_attention: bool | None = None
    """Whether the layers over frames also attend to the encoder's states; by default on text and not on speech, where
    each frame is such a state."""


def frames_per_position(upsampling: int | None, data: DataSpec) -> int:
    """Return `upsampling` or, if it is None, what sources of `data` need: text 3, speech, long as it is, 1."""
    return upsampling or (3 if data.modality == "text" else 1)


def attends_to_source(config: FrameConfig, data: DataSpec) -> bool:
    """Return `cross_attention` of `config` or, if it is None, its default for sources of `data`."""
    return data.modality == "text" if config.cross_attention is None else config.cross_attention


def frame_layers(config: FrameConfig, data: DataSpec) -> Stack:
    """Return the layers over frames, with convolutions where the encoder's have them."""
    width = convolution_width(config.convolution, data)
    cross = attends_to_source(config, data)
    return Stack(config.decoder_layers, *config.layer_shape, cross=cross, convolution=width)


class Upsampler(Linear):
    """Projects each encoder state to `factor` frames and adds the frames' positions."""

    positions: Tensor
    """[f, d] position codes of as many frames as the longest source has."""

    def __init__(self, dim: int, factor: int, max_source_length: int) -> None:
        super().__init__(dim, factor * dim)
        self.factor = factor
        self.register_buffer("positions", sinusoids(max_source_length * factor, dim), persistent=False)

    def forward(self, states: Tensor) -> Tensor:  # type: ignore[override]  # nothing is added to frames
        """Return the inputs of all frames, [b, f, d] with f = s * factor, for encoder states [b, s, d].

        Position i becomes frames i * factor to (i + 1) * factor - 1; with n source positions the first n * factor
        frames are real.
        """
        b, s, d = states.shape
        frames: Tensor = super().forward(states).view(b, s * self.factor, d) + self.positions[: s * self.factor]
        return frames
