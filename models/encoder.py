"""The source side that every encoder-decoder family shares, and what its decoder attends to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.frontend import SpeechFrontend, TextFrontend, make_frontend
from models.interface import DataSpec
from models.layers import BackboneConfig, Embedding, Stack, padding_mask


@dataclass(frozen=True)
class Memory:
    """An encoded source as cross-attention sees it: keys and values per layer, projected once."""

    layers: list[tuple[Tensor, Tensor]]
    """Keys and values of each decoder layer, [b, h, s, k] each."""
    mask: Tensor
    """[b, 1, 1, s] bool: real source positions."""

    def select(self, sentences: Tensor) -> Memory:
        """Return the memory of `sentences` [m], in that order."""
        layers = [(k.index_select(0, sentences), v.index_select(0, sentences)) for k, v in self.layers]
        return Memory(layers, self.mask.index_select(0, sentences))


@dataclass(frozen=True)
class Encoded:
    """An encoded source."""

    states: Tensor
    """[b, s, d] states of the encoder."""
    lengths: Tensor
    """[b] int64: positions that are real. For speech they are fewer than the source's frames."""
    mask: Tensor
    """[b, 1, 1, s] bool: what may be attended to. Of a source without positions it is the first, which is padding:
    else attention would have nothing to attend to."""
    content: Tensor
    """[b, s, d] what the encoder read at each position, without position codes."""


class SourceEncoder(nn.Module):
    """Turns sources into inputs, and encodes them."""

    def __init__(self, frontend: TextFrontend | SpeechFrontend, stack: Stack) -> None:
        super().__init__()
        self.frontend = frontend
        self.stack = stack

    @property
    def max_length(self) -> int:
        """Most positions that a source gives."""
        return self.frontend.max_length

    def forward(self, src: Tensor, src_len: Tensor) -> Encoded:
        """Encode sources (see `models.interface.Batch`)."""
        content, lengths = self.frontend.content(src, src_len)
        mask = memory_mask(lengths, content.shape[1])
        return Encoded(self.stack(self.frontend.place(content), self_mask=mask), lengths, mask, content)

    def with_summary(self, src: Tensor, src_len: Tensor, token: Tensor) -> tuple[Encoded, Tensor]:
        """Encode sources behind an extra first position whose embedding is `token` [d].

        Returns what `forward` returns, without the extra position, and that one's state, [b, d], which summarises the
        source.
        """
        content, lengths = self.frontend.content(src, src_len)
        x = torch.cat([token.expand(content.shape[0], 1, -1), self.frontend.place(content)], dim=1)
        states = self.stack(x, self_mask=padding_mask(lengths + 1, x.shape[1])[:, None, None, :])
        return Encoded(states[:, 1:], lengths, memory_mask(lengths, content.shape[1]), content), states[:, 0]


def memory_mask(lengths: Tensor, size: int) -> Tensor:
    """Return [b, 1, 1, size] bool: which positions of encoded sources with `lengths` [b] may be attended to."""
    return padding_mask(lengths.clamp(min=1), size)[:, None, None, :]


def source_encoder(config: BackboneConfig, data: DataSpec, embedding: Embedding) -> SourceEncoder:
    """Return the encoder that every family with a `BackboneConfig` has; `embedding` is that of the target's ids."""
    frontend = make_frontend(data, embedding, config.subsampling, config.dropout)
    width = convolution_width(config.convolution, data)
    return SourceEncoder(frontend, Stack(config.encoder_layers, *config.layer_shape, convolution=width))


def convolution_width(convolution: int | None, data: DataSpec) -> int:
    """Return `convolution` or, if it is None, the width that sources of `data` want: text 0 (none), speech 15."""
    if convolution is None:
        return 0 if data.modality == "text" else 15
    return convolution


class CanvasDecoder(nn.Module):
    """A decoder stack without causal mask: every position of a canvas sees all of it, and the source."""

    def __init__(self, embedding: Embedding, stack: Stack) -> None:
        super().__init__()
        self.embedding = embedding
        self.stack = stack

    def remember(self, source: Encoded) -> Memory:
        """Return the memory of an encoded source."""
        return Memory(self.stack.project_memory(source.states), source.mask)

    def forward(self, canvas: Tensor, lengths: Tensor, memory: Memory) -> Tensor:
        """Return states [n, t, d] of canvases [n, t] of which the first `lengths` [n] positions are real.

        n is the b of `memory`, or a multiple of it: then n/b consecutive canvases (the candidates of a sentence)
        share a source. A canvas of length 0 counts as one position, whose state means nothing.
        """
        return self.run(self.embedding(canvas), lengths, memory)

    def run(self, x: Tensor, lengths: Tensor, memory: Memory) -> Tensor:
        """Do the same from inputs [n, t, d] that are embedded already, positions included."""
        mask = padding_mask(lengths.clamp(min=1), x.shape[1])[:, None, None, :]
        states: Tensor = self.stack(x, self_mask=mask, memory=memory.layers, memory_mask=memory.mask)
        return states
