"""The backbone that every family shares: embeddings, attention with a KV cache, encoder and decoder stacks.

Transformer of Vaswani et al. 2017, pre-norm by default (Xiong et al. 2020). Letters in shapes: see `models.interface`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.interface import PAD, Options


class BackboneConfig(Options):
    """The shape that families have in common, under the same names; a family's Config adds its own fields."""

    encoder_layers: int = Field(6, ge=1)
    """Layers of the encoder."""
    decoder_layers: int = Field(6, ge=1)
    """Layers of the decoder."""
    model_dim: int = Field(512, ge=2)
    """Model width d."""
    num_heads: int = Field(8, ge=1)
    """Attention heads; divides model_dim."""
    ffn_dim: int = Field(2048, ge=1)
    """Hidden width of the feed-forward layers."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on embeddings, sublayer outputs and feed-forward activations."""
    norm: Literal["pre", "post"] = "pre"
    """Where layer norm stands: before each sublayer, or after its residual."""
    subsampling: Literal[1, 2, 4, 8] = 4
    """Feature frames per encoder position; speech only."""

    ENCODER: ClassVar = ("encoder_layers", "model_dim", "num_heads", "ffn_dim", "norm", "subsampling")
    """Fields in which models with the same encoder agree."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.model_dim % self.num_heads or self.model_dim % 2:
            raise ValueError(f"model_dim {self.model_dim} must be even and divisible by num_heads {self.num_heads}")
        return self

    @property
    def layer_shape(self) -> tuple[int, int, int, float, str]:
        """What every layer of a stack is built from; see `Stack`."""
        return (self.model_dim, self.num_heads, self.ffn_dim, self.dropout, self.norm)


def padding_mask(lengths: Tensor, size: int) -> Tensor:
    """Return [b, size] bool: True at real positions of sentences with `lengths` [b]."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def sinusoids(length: int, dim: int) -> Tensor:
    """Return the fixed position codes of Vaswani et al. 2017, [length, dim], sines then cosines."""
    if dim % 2:
        raise ValueError(f"model_dim must be even, not {dim}")
    rate = torch.exp(torch.arange(dim // 2) * (-math.log(10_000.0) / max(dim // 2 - 1, 1)))
    angle = torch.arange(length)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Embedding(nn.Module):
    """Token embeddings scaled by sqrt(d) plus sinusoidal positions, then dropout."""

    positions: Tensor

    def __init__(self, vocab_size: int, dim: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, dim, padding_idx=PAD)
        nn.init.normal_(self.tokens.weight, std=dim**-0.5)
        with torch.no_grad():
            self.tokens.weight[PAD].zero_()
        self.register_buffer("positions", sinusoids(max_length, dim), persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.scale = math.sqrt(dim)

    def forward(self, ids: Tensor, start: int = 0) -> Tensor:
        """Embed ids [b, t] that stand at positions start, start+1, ... -> [b, t, d].

        Raises:
            ValueError: a position beyond the model's length limit.
        """
        return self.place(self.tokens(ids) * self.scale, start)

    def place(self, content: Tensor, start: int = 0) -> Tensor:
        """Return what is embedded already, [n, t, d], with the codes of positions start, start+1, ..., after dropout.

        Raises:
            ValueError: a position beyond the model's length limit.
        """
        end = start + content.shape[1]
        if end > self.positions.shape[0]:
            raise ValueError(f"a sequence of {end} positions exceeds the model's limit of {self.positions.shape[0]}")
        placed: Tensor = self.dropout(content + self.positions[start:end])
        return placed

    def at(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Embed ids [b, t] that stand at `positions` [b, t], clamped to the model's limit -> [b, t, d]."""
        codes = self.positions[positions.clamp(max=self.positions.shape[0] - 1)]
        embedded: Tensor = self.dropout(self.tokens(ids) * self.scale + codes)
        return embedded


@dataclass(frozen=True)
class Block:
    """Where m new positions stand in caches whose rows differ in length; see `Block.after`."""

    positions: Tensor
    """[n, m] int64."""
    mask: Tensor
    """[n, 1, m, end] bool: the cached positions, new ones included, that each new one attends to."""

    @classmethod
    def after(cls, starts: Tensor, size: int, end: int) -> Self:
        """Return the block of `size` positions from starts [n] on, all of them below `end`.

        What a cache holds at or after a row's start is overwritten or masked: a step back costs nothing.
        """
        positions = starts[:, None] + torch.arange(size, device=starts.device)
        return cls(positions, torch.arange(end, device=starts.device) <= positions[:, None, :, None])


@dataclass
class KeyValues:
    """Keys and values of one attention layer, [n, h, size, k] each, of which the first `length` positions are set."""

    keys: Tensor
    values: Tensor
    length: int

    def put(self, keys: Tensor, values: Tensor, positions: Tensor, end: int) -> None:
        """Set keys and values [n, h, m, k] at positions [n, m], all below `end`, which the length then reaches.

        Rows differ in length, so that some are masked where others are set. There they hold zeros or what was put
        before: memory that nobody wrote may hold NaN, which no mask hides.
        """
        index = positions[:, None, :, None].expand_as(keys)
        for buffer, new in ((self.keys, keys), (self.values, values)):
            buffer[:, :, self.length : end] = 0
            buffer.scatter_(2, index, new)
        self.length = max(self.length, end)

    def select(self, rows: Tensor) -> None:
        """Keep the batch rows `rows` [m], m <= n, in that order; a row may repeat (beams). Moves only what is set."""
        self.keys = self._selected(self.keys, rows)
        self.values = self._selected(self.values, rows)

    def _selected(self, buffer: Tensor, rows: Tensor) -> Tensor:
        moved = buffer[:, :, : self.length].index_select(0, rows)
        buffer = buffer[: rows.shape[0]]
        buffer[:, :, : self.length] = moved
        return buffer


class Attention(nn.Module):
    """Multi-head scaled dot-product attention.

    No dropout on attention weights: it forces the slow path on CPU and gains nothing measurable at these sizes.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"model_dim {dim} is not divisible by num_heads {heads}")
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, dim)
        for layer in (self.query, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for half in self.key_value.weight.chunk(2):
            nn.init.xavier_uniform_(half)
        nn.init.zeros_(self.key_value.bias)

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of memory [b, s, d], each [b, h, s, k]."""
        b, s, _ = memory.shape
        keys, values = self.key_value(memory).view(b, s, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return keys, values

    def attend(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Attend from x [b, t, d] to keys and values [m, h, s, k]; `mask` [m, 1, 1|t, s] is True where allowed.

        b is m, or a multiple of it: then b/m consecutive rows of x (the beams or candidates of a sentence) share one
        row of keys and values, which is never copied; the mask must then be the same at each of their positions.
        """
        b, t, d = x.shape
        query = self.query(x).view(keys.shape[0], -1, self.heads, d // self.heads).transpose(1, 2)  # [m, h, t', k]
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=causal)
        result: Tensor = self.output(mixed.transpose(1, 2).reshape(b, t, d))
        return result

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Attend from x [b, t, d] to memory [b, s, d] -> [b, t, d]."""
        return self.attend(x, *self.project(memory), mask=mask, causal=causal)

    def step(self, x: Tensor, cache: KeyValues, block: Block | None = None) -> Tensor:
        """Append the position x [b, 1, d] to the cache and attend to all positions so far -> [b, 1, d].

        With a `block` of m positions x is [b, m, d], each row's own positions are set and attended from.
        """
        keys, values = self.project(x)
        if block is not None:
            end = block.mask.shape[-1]
            cache.put(keys, values, block.positions, end)
            return self.attend(x, cache.keys[:, :, :end], cache.values[:, :, :end], mask=block.mask)
        cache.keys[:, :, cache.length] = keys[:, :, 0]
        cache.values[:, :, cache.length] = values[:, :, 0]
        cache.length += 1
        return self.attend(x, cache.keys[:, :, : cache.length], cache.values[:, :, : cache.length])

    def empty_cache(self, batch: int, size: int, like: Tensor) -> KeyValues:
        """Return a cache for `batch` rows of up to `size` positions, with the device and dtype of `like`."""
        width = self.query.out_features // self.heads
        shape = (batch, self.heads, size, width)
        return KeyValues(like.new_empty(shape), like.new_empty(shape), 0)


class FeedForward(nn.Module):
    """Position-wise two-layer network with ReLU."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, hidden)
        self.outer = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.inner, self.outer):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[b, t, d] -> [b, t, d]."""
        result: Tensor = self.outer(self.dropout(F.relu(self.inner(x))))
        return result


class Layer(nn.Module):
    """Self-attention, optional cross-attention, feed-forward; each with residual, dropout and layer norm."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float, norm: str, cross: bool) -> None:
        super().__init__()
        if norm not in ("pre", "post"):
            raise ValueError(f"norm must be 'pre' or 'post', not {norm!r}")
        self.pre_norm = norm == "pre"
        self.self_attention = Attention(dim, heads)
        self.cross_attention = Attention(dim, heads) if cross else None
        self.feed_forward = FeedForward(dim, hidden, dropout)
        self.norm_self = nn.LayerNorm(dim)
        self.norm_cross = nn.LayerNorm(dim) if cross else None
        self.norm_feed = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        self_mask: Tensor | None = None,
        causal: bool = False,
        memory: tuple[Tensor, Tensor] | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Run on x [b, t, d]; `memory` holds the projected keys and values of the cross-attention."""
        h = self.norm_self(x) if self.pre_norm else x
        x = self._add(x, self.self_attention(h, h, mask=self_mask, causal=causal), self.norm_self)
        return self._rest(x, memory, memory_mask)

    def step(
        self,
        x: Tensor,
        cache: KeyValues,
        memory: tuple[Tensor, Tensor] | None,
        memory_mask: Tensor | None,
        block: Block | None = None,
    ) -> Tensor:
        """Run on the next position x [b, 1, d], or the `block` of them, with the cached earlier ones."""
        h = self.norm_self(x) if self.pre_norm else x
        x = self._add(x, self.self_attention.step(h, cache, block), self.norm_self)
        return self._rest(x, memory, memory_mask)

    def _rest(self, x: Tensor, memory: tuple[Tensor, Tensor] | None, memory_mask: Tensor | None) -> Tensor:
        if self.cross_attention is not None and self.norm_cross is not None:
            assert memory is not None
            h = self.norm_cross(x) if self.pre_norm else x
            x = self._add(x, self.cross_attention.attend(h, *memory, mask=memory_mask), self.norm_cross)
        h = self.norm_feed(x) if self.pre_norm else x
        return self._add(x, self.feed_forward(h), self.norm_feed)

    def _add(self, x: Tensor, update: Tensor, norm: nn.Module) -> Tensor:
        x = x + self.dropout(update)
        return x if self.pre_norm else norm(x)


class Stack(nn.Module):
    """A stack of layers with the final norm that pre-norm needs; encoder, AR decoder and NAT decoder alike."""

    def __init__(
        self, depth: int, dim: int, heads: int, hidden: int, dropout: float, norm: str = "pre", cross: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, heads, hidden, dropout, norm, cross) for _ in range(depth))
        self.final_norm = nn.LayerNorm(dim) if norm == "pre" else nn.Identity()

    def forward(
        self,
        x: Tensor,
        self_mask: Tensor | None = None,
        causal: bool = False,
        memory: list[tuple[Tensor, Tensor]] | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Run on x [b, t, d]. Masks broadcast to [b, h, t, s] and are True where attention is allowed."""
        for i, layer in enumerate(self.layers):
            x = layer(x, self_mask, causal, None if memory is None else memory[i], memory_mask)
        result: Tensor = self.final_norm(x)
        return result

    def project_memory(self, memory: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return per layer the cross-attention's keys and values of memory [b, s, d], each [b, h, s, k]."""
        return [layer.cross_attention.project(memory) for layer in self.layers]  # type: ignore[union-attr, operator]

    def step(
        self,
        x: Tensor,
        caches: list[KeyValues],
        memory: list[tuple[Tensor, Tensor]] | None = None,
        memory_mask: Tensor | None = None,
        block: Block | None = None,
    ) -> Tensor:
        """Run on the next position x [b, 1, d], or the `block` of them [b, m, d]; puts it into every layer's cache."""
        for i, layer in enumerate(self.layers):
            crossed = None if memory is None else memory[i]
            x = layer.step(x, caches[i], crossed, memory_mask, block)  # type: ignore[operator]
        result: Tensor = self.final_norm(x)
        return result

    def empty_caches(self, batch: int, size: int, like: Tensor) -> list[KeyValues]:
        """Return one empty cache per layer."""
        return [layer.self_attention.empty_cache(batch, size, like) for layer in self.layers]  # type: ignore[union-attr, operator]
