"""Multi-head attention and its cache of keys and values. Letters in shapes: see `models.interface`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.linear import Linear


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
    """Keys and values of one attention layer, of which the first `length` positions are set."""

    both: Tensor
    """[2, n, h, size, k]: keys, then values."""
    length: int = 0
    spare: Tensor | None = None
    """Another such buffer, which rows are moved to and fro between: fresh memory costs ten times the move."""

    @property
    def keys(self) -> Tensor:
        """[n, h, size, k]."""
        return self.both[0]

    @property
    def values(self) -> Tensor:
        """[n, h, size, k]."""
        return self.both[1]

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
        if self.both.requires_grad and torch.is_grad_enabled():  # what follows has no gradient
            self.both = self.both.index_select(1, rows)
            return
        count = rows.shape[0]
        spare = torch.empty_like(self.both) if self.spare is None else self.spare
        kept = spare[:, :count]
        torch.index_select(self.both[:, :, :, : self.length], 1, rows, out=kept[:, :, :, : self.length])
        self.both, self.spare = kept, self.both[:, :count]


class Attention(nn.Module):
    """Multi-head scaled dot-product attention.

    No dropout on attention weights: it forces the slow path on CPU and gains nothing measurable at these sizes.
    Queries, keys and values start at 1/sqrt(2) of Xavier's scale, as in fairseq: speech leaves its plateau far sooner.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"model_dim {dim} is not divisible by num_heads {heads}")
        self.heads = heads
        self.query = Linear(dim, dim)
        self.key_value = Linear(dim, 2 * dim)
        self.output = Linear(dim, dim)
        for square in (self.query.weight, *self.key_value.weight.chunk(2)):
            nn.init.xavier_uniform_(square, gain=2**-0.5)
        nn.init.xavier_uniform_(self.output.weight)
        for layer in (self.query, self.key_value, self.output):
            nn.init.zeros_(layer.bias)

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of memory [b, s, d], each [b, h, s, k]."""
        b, s, _ = memory.shape
        keys, values = self.key_value(memory).view(b, s, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return keys, values

    def attend(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        added: Tensor | None = None,
    ) -> Tensor:
        """Attend from x [b, t, d] to keys and values [m, h, s, k]; `mask` [m, 1, 1|t, s] is True where allowed.

        `added` [b, t, d] is added to the result.

        b is m, or a multiple of it: then b/m consecutive rows of x (the beams or candidates of a sentence) share one
        row of keys and values, which is never copied; the mask must then be the same at each of their positions.
        """
        b, t, d = x.shape
        query = self.query(x).view(keys.shape[0], -1, self.heads, d // self.heads).transpose(1, 2)  # [m, h, t', k]
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=causal)
        result: Tensor = self.output(mixed.transpose(1, 2).reshape(b, t, d), added=added)
        return result

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        added: Tensor | None = None,
    ) -> Tensor:
        """Attend from x [b, t, d] to memory [b, s, d] -> [b, t, d]; `added` [b, t, d] is added to the result."""
        return self.attend(x, *self.project(memory), mask, causal, added)

    def step(self, x: Tensor, cache: KeyValues, block: Block | None = None, added: Tensor | None = None) -> Tensor:
        """Append the position x [b, 1, d] to the cache and attend to all positions so far -> [b, 1, d].

        With a `block` of m positions x is [b, m, d], each row's own positions are set and attended from. `added` is
        added to the result.
        """
        b, m, d = x.shape
        new = self.key_value(x).view(b, m, 2, self.heads, d // self.heads)
        if block is None:
            mask, end = None, cache.length + 1
            cache.both[:, :, :, cache.length] = new[:, 0].transpose(0, 1)
            cache.length = end
        else:
            mask, end = block.mask, block.mask.shape[-1]
            keys, values = new.permute(2, 0, 3, 1, 4)
            cache.put(keys, values, block.positions, end)
        keys, values = cache.both[:, :, :, :end]
        return self.attend(x, keys, values, mask, added=added)

    def empty_cache(self, batch: int, size: int, like: Tensor) -> KeyValues:
        """Return a cache for `batch` rows of up to `size` positions, with the device and dtype of `like`."""
        width = self.query.out_features // self.heads
        return KeyValues(like.new_empty(2, batch, self.heads, size, width))
