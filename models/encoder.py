"""The source side that every encoder-decoder family shares, and what its decoder attends to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers import Embedding, Stack, padding_mask


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


class SourceEncoder(nn.Module):
    """Embeds source ids and encodes them."""

    def __init__(self, embedding: Embedding, stack: Stack) -> None:
        super().__init__()
        self.embedding = embedding
        self.stack = stack

    def forward(self, src: Tensor, src_len: Tensor) -> tuple[Tensor, Tensor]:
        """Encode src [b, s] -> states [b, s, d] and the mask of real positions, [b, 1, 1, s] bool.

        A sentence without tokens would leave attention nothing to attend to, so its first (padding) position counts.
        """
        mask = padding_mask(src_len.clamp(min=1), src.shape[1])[:, None, None, :]
        return self.stack(self.embedding(src), self_mask=mask), mask

    def with_summary(self, src: Tensor, src_len: Tensor, token: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode src [b, s] behind an extra first position whose embedding is `token` [d].

        Returns the states of the source [b, s, d], their mask [b, 1, 1, s] as `forward` gives it, and the state of
        the extra position, [b, d], which summarises the sentence.
        """
        x = torch.cat([token.expand(src.shape[0], 1, -1), self.embedding(src)], dim=1)
        mask = padding_mask(src_len + 1, src.shape[1] + 1)[:, None, None, :]
        states = self.stack(x, self_mask=mask)
        return states[:, 1:], padding_mask(src_len.clamp(min=1), src.shape[1])[:, None, None, :], states[:, 0]


class CanvasDecoder(nn.Module):
    """A decoder stack without causal mask: every position of a canvas sees all of it, and the source."""

    def __init__(self, embedding: Embedding, stack: Stack) -> None:
        super().__init__()
        self.embedding = embedding
        self.stack = stack

    def remember(self, states: Tensor, mask: Tensor) -> Memory:
        """Return the memory of encoder states [b, s, d] with their mask [b, 1, 1, s]."""
        return Memory(self.stack.project_memory(states), mask)

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
