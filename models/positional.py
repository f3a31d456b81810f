"""The decoder stack of Gu et al. 2018: no causal mask, no look at oneself, and an attention over positions.

Each layer has self-attention in which a position sees all others but not itself, attention whose queries and keys are
the position codes and whose values are the states, attention to the source, and a feed-forward network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import Attention
from models.layers import Layer, Stack, sinusoids
from models.linear import linear


class PositionalAttention(Attention):
    """Multi-head attention from positions to positions, which mixes the states that stand there."""

    def mix(self, x: Tensor, codes: Tensor, mask: Tensor, added: Tensor | None = None) -> Tensor:
        """Mix states x [n, t, d] by position codes [t, d]; `mask` [n, 1, 1, t] is True where allowed.

        `added` [n, t, d] is added to the result.
        """
        n, t, d = x.shape
        key_weight, value_weight = self.key_value.weight.chunk(2)
        key_bias, value_bias = self.key_value.bias.chunk(2)
        values = self._split(linear(x, value_weight, value_bias))  # [n, h, t, k]
        # Which position attends to which is the same in all rows, but for the mask.
        query = self._split(self.query(codes)[None]).expand(n, -1, -1, -1)
        keys = self._split(linear(codes, key_weight, key_bias)[None]).expand(n, -1, -1, -1)
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        result: Tensor = self.output(mixed.transpose(1, 2).reshape(n, t, d), added=added)
        return result

    def _split(self, x: Tensor) -> Tensor:
        """[n, t, d] -> [n, h, t, k]."""
        n, t, d = x.shape
        return x.view(n, t, self.heads, d // self.heads).transpose(1, 2)


class PositionalLayer(Layer):
    """A decoder layer with positional attention between self-attention and cross-attention."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float, norm: str) -> None:
        super().__init__(dim, heads, hidden, dropout, norm, cross=True)
        self.positional_attention = PositionalAttention(dim, heads)
        self.norm_positional = nn.LayerNorm(dim)

    def run(
        self,
        x: Tensor,
        codes: Tensor,
        others: Tensor,
        real: Tensor,
        memory: tuple[Tensor, Tensor],
        memory_mask: Tensor | None,
    ) -> Tensor:
        """Run on x [n, t, d] with position codes [t, d].

        others: [n, 1, t, t] bool, what each position's self-attention sees; real: [n, 1, 1, t] bool.
        """
        x = self._after(x, self.norm_self, lambda h, added: self.self_attention(h, h, others, added=added))
        mix = self.positional_attention.mix
        x = self._after(x, self.norm_positional, lambda h, added: mix(h, codes, real, added))
        return self._rest(x, memory, memory_mask)


class PositionalStack(Stack):
    """A stack of such layers for canvases of up to `max_length` positions."""

    codes: Tensor

    def __init__(
        self, depth: int, dim: int, heads: int, hidden: int, dropout: float, norm: str, max_length: int
    ) -> None:
        super().__init__(0, dim, heads, hidden, dropout, norm)
        self.layers = nn.ModuleList(PositionalLayer(dim, heads, hidden, dropout, norm) for _ in range(depth))
        self.register_buffer("codes", sinusoids(max_length, dim), persistent=False)

    def forward(
        self,
        x: Tensor,
        self_mask: Tensor | None = None,
        causal: bool = False,
        memory: list[tuple[Tensor, Tensor]] | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Run on x [n, t, d]; `self_mask` [n, 1, 1, t] is True at real positions. See `Stack`; never causal.

        The only position of a canvas has no other to see, so it sees itself.
        """
        assert self_mask is not None
        assert memory is not None
        assert not causal
        t = x.shape[1]
        itself = torch.eye(t, dtype=torch.bool, device=x.device)
        others = self_mask & (~itself | (self_mask.sum(-1, keepdim=True) == 1))
        for layer, crossed in zip(self.layers, memory, strict=True):
            x = layer.run(x, self.codes[:t], others, self_mask, crossed, memory_mask)  # type: ignore[operator]
        result: Tensor = self.final_norm(x)
        return result
