"""What turns a source into the inputs of an encoder: embedded ids for text, subsampled features for speech.

The speech front end is a stack of one-dimensional convolutions over time, each with a gated linear unit and a stride of
2 (Synnaeve et al. 2020; as in the S2T Transformer of Wang et al. 2020), so that `subsampling` feature frames become one
position. What lies behind a recording's end is zeroed before every convolution: padding changes nothing.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dropout import Dropout
from models.interface import DataSpec
from models.layers import Embedding, padding_mask, sinusoids
from models.linear import Linear

KERNEL = 5
"""Frames that a convolution sees."""


class Frontend(Protocol):
    """The first part of an encoder."""

    limit: int
    """Longest source: tokens or frames."""
    max_length: int
    """Most positions that a source gives."""

    def content(self, src: Tensor, src_len: Tensor) -> tuple[Tensor, Tensor]:
        """Return what stands at each position, [b, s, d], without position codes, and how many are real, [b].

        Raises:
            ValueError: a source longer than `limit`.
        """
        ...

    def place(self, content: Tensor) -> Tensor:
        """Return contents [n, t, d] that stand at positions 0, 1, ... with their position codes, after dropout."""
        ...


class TextFrontend(nn.Module):
    """Ids as the embedding that targets share knows them."""

    def __init__(self, embedding: Embedding, max_length: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.limit = self.max_length = max_length

    def content(self, src: Tensor, src_len: Tensor) -> tuple[Tensor, Tensor]:
        """See `Frontend`; src: [b, s] ids."""
        _check(src, self.limit, "tokens")
        content: Tensor = self.embedding.tokens(src) * self.embedding.scale
        return content, src_len

    def place(self, content: Tensor) -> Tensor:
        """See `Frontend`."""
        return self.embedding.place(content)


class SpeechFrontend(nn.Module):
    """Feature frames, `subsampling` of them to a position."""

    positions: Tensor

    def __init__(self, num_features: int, dim: int, subsampling: int, max_frames: int, dropout: float) -> None:
        """Build for recordings of up to `max_frames` frames; `subsampling` is a power of two.

        Raises:
            ValueError: it is not, or there are no features.
        """
        super().__init__()
        if subsampling < 1 or subsampling & (subsampling - 1):
            raise ValueError(f"subsampling must be 1, 2, 4 or another power of two, not {subsampling}")
        if num_features < 1:
            raise ValueError(f"a speech front end needs features, and num_features is {num_features}")
        strides = [2] * (subsampling.bit_length() - 1) or [1]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(num_features if i == 0 else dim, 2 * dim, KERNEL, stride, padding=KERNEL // 2)
            for i, stride in enumerate(strides)
        )
        self.project = Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.limit = max_frames
        self.max_length = -(-max_frames // subsampling)
        self.register_buffer("positions", sinusoids(self.max_length, dim), persistent=False)
        self.dropout = Dropout(dropout)

    def content(self, src: Tensor, src_len: Tensor) -> tuple[Tensor, Tensor]:
        """See `Frontend`; src: [b, frames, features] float, src_len: [b] frames."""
        _check(src, self.limit, "frames")
        x, lengths = src.transpose(1, 2), src_len
        for convolution in self.convolutions:
            x = x * padding_mask(lengths, x.shape[2])[:, None]
            x = F.glu(convolution(x), dim=1)
            stride = convolution.stride[0]  # type: ignore[index]
            lengths = torch.div(lengths + (stride - 1), stride, rounding_mode="floor")
        content: Tensor = self.norm(self.project(x.transpose(1, 2)))
        return content, lengths

    def place(self, content: Tensor) -> Tensor:
        """See `Frontend`."""
        placed: Tensor = self.dropout(content + self.positions[: content.shape[1]])
        return placed


def make_frontend(
    data: DataSpec, embedding: Embedding, subsampling: int, dropout: float
) -> TextFrontend | SpeechFrontend:
    """Return the front end that sources of `data` need; `embedding` is that of the target's ids."""
    if data.modality == "text":
        return TextFrontend(embedding, data.max_source_length)
    dim = embedding.tokens.weight.shape[1]
    return SpeechFrontend(data.num_features, dim, subsampling, data.max_source_length, dropout)


def _check(src: Tensor, limit: int, unit: str) -> None:
    if src.shape[1] > limit:
        raise ValueError(f"a source of {src.shape[1]} {unit} exceeds the model's limit of {limit}")
