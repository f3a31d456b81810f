"""The backbone that every family shares: embeddings, layers, encoder and decoder stacks.

Transformer of Vaswani et al. 2017, pre-norm by default (Xiong et al. 2020). Letters in shapes: see `models.interface`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from models.attention import Attention, Block, KeyValues
from models.dropout import Dropout
from models.interface import PAD, Options
from models.linear import Linear
from models.native.stack import run_layers


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
    convolution: int | None = Field(None, ge=0)
    """Positions that the convolution of an encoder layer (Gulati et al. 2020) sees, an odd number; 0 for none, as is
    the default for text; that for speech is 15. Layers over frames (CTC, Imputer) have the same."""

    ENCODER: ClassVar = ("encoder_layers", "model_dim", "num_heads", "ffn_dim", "norm", "subsampling", "convolution")
    """Fields in which models with the same encoder agree."""

    @field_validator("convolution")
    @classmethod
    def _centred(cls, width: int | None) -> int | None:
        return centred(width)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.model_dim % self.num_heads or self.model_dim % 2:
            raise ValueError(f"model_dim {self.model_dim} must be even and divisible by num_heads {self.num_heads}")
        return self

    @property
    def layer_shape(self) -> tuple[int, int, int, float, str]:
        """What every layer of a stack is built from; see `Stack`."""
        return (self.model_dim, self.num_heads, self.ffn_dim, self.dropout, self.norm)


def centred(width: int | None) -> int | None:
    """Return the width of a convolution, which is odd (or 0 for none): it sees as much of the past as of the future.

    Raises:
        ValueError: it is even.
    """
    if width and width % 2 == 0:
        raise ValueError(f"convolution must be an odd number of positions or 0, not {width}")
    return width


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
        self.dropout = Dropout(dropout)
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


class FeedForward(nn.Module):
    """Position-wise two-layer network with ReLU."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.inner = Linear(dim, hidden)
        self.outer = Linear(hidden, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """[b, t, d] -> [b, t, d]; `added` [b, t, d] is added to the result."""
        result: Tensor = self.outer(self.dropout(self.inner(x, relu=True)), added=added)
        return result


class Convolution(nn.Module):
    """The convolution module of the Conformer (Gulati et al. 2020): a gate, a depthwise convolution, a swish.

    Deviation: layer norm in place of batch norm, so that no sentence depends on its batch.
    """

    def __init__(self, dim: int, width: int) -> None:
        """Build for `width` positions, an odd number."""
        super().__init__()
        self.inner = Linear(dim, 2 * dim)
        # Two-dimensional, for the one-dimensional kernels for CPUs take four times as long.
        self.depthwise = nn.Conv2d(dim, dim, (1, width), padding=(0, width // 2), groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.outer = Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None, added: Tensor | None = None) -> Tensor:
        """[b, s, d] -> [b, s, d]; what `mask` [b, 1, 1, s] leaves out counts as zero.

        `added` [b, s, d] is added to the result.
        """
        gated = F.glu(self.inner(x), dim=-1)
        if mask is not None:
            gated = gated * mask[:, 0, 0, :, None]
        mixed = self.depthwise(gated[:, None].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[:, 0]
        result: Tensor = self.outer(F.silu(self.norm(mixed)), added=added)
        return result


class Layer(nn.Module):
    """Self-attention, optional convolution and cross-attention, feed-forward; each with residual, dropout, norm."""

    def __init__(
        self, dim: int, heads: int, hidden: int, dropout: float, norm: str, cross: bool, convolution: int = 0
    ) -> None:
        super().__init__()
        if norm not in ("pre", "post"):
            raise ValueError(f"norm must be 'pre' or 'post', not {norm!r}")
        self.pre_norm = norm == "pre"
        self.self_attention = Attention(dim, heads)
        self.convolution = Convolution(dim, convolution) if convolution else None
        self.cross_attention = Attention(dim, heads) if cross else None
        self.feed_forward = FeedForward(dim, hidden, dropout)
        self.norm_self = nn.LayerNorm(dim)
        self.norm_convolution = nn.LayerNorm(dim) if convolution else None
        self.norm_cross = nn.LayerNorm(dim) if cross else None
        self.norm_feed = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        self_mask: Tensor | None = None,
        causal: bool = False,
        memory: tuple[Tensor, Tensor] | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Run on x [b, t, d]; `memory` holds the projected keys and values of the cross-attention."""
        x = self._after(x, self.norm_self, lambda h, added: self.self_attention(h, h, self_mask, causal, added))
        if self.convolution is not None and self.norm_convolution is not None:
            convolution = self.convolution
            x = self._after(x, self.norm_convolution, lambda h, added: convolution(h, self_mask, added))
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
        x = self._after(x, self.norm_self, lambda h, added: self.self_attention.step(h, cache, block, added))
        return self._rest(x, memory, memory_mask)

    def _rest(self, x: Tensor, memory: tuple[Tensor, Tensor] | None, memory_mask: Tensor | None) -> Tensor:
        cross = self.cross_attention
        if cross is not None and self.norm_cross is not None:
            assert memory is not None
            keys, values = memory
            x = self._after(
                x, self.norm_cross, lambda h, added: cross.attend(h, keys, values, memory_mask, added=added)
            )
        return self._after(x, self.norm_feed, self.feed_forward)

    def _after(self, x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
        """Return x [b, t, d] after `sublayer(input, added)` with residual, dropout and norm."""
        if self.pre_norm and not self.training:
            return sublayer(norm(x), x)  # nothing stands between the last product and the sum
        update = self.dropout(sublayer(norm(x) if self.pre_norm else x, None))
        return x + update if self.pre_norm else norm(x + update)  # type: ignore[no-any-return]


class Stack(nn.Module):
    """A stack of layers with the final norm that pre-norm needs; encoder, AR decoder and NAT decoder alike."""

    def __init__(
        self,
        depth: int,
        dim: int,
        heads: int,
        hidden: int,
        dropout: float,
        norm: str = "pre",
        cross: bool = False,
        convolution: int = 0,
    ) -> None:
        """Build `depth` layers; `convolution` is the width of theirs, and 0 for none."""
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, heads, hidden, dropout, norm, cross, convolution) for _ in range(depth))
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
        states = run_layers(self, x, self_mask, causal, None, memory, memory_mask)
        if states is not None:
            return self.final_norm(states)  # type: ignore[no-any-return]
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
        states = run_layers(self, x, None, False, caches, memory, memory_mask) if block is None else None
        if states is not None:
            return self.final_norm(states)  # type: ignore[no-any-return]
        for i, layer in enumerate(self.layers):
            crossed = None if memory is None else memory[i]
            x = layer.step(x, caches[i], crossed, memory_mask, block)  # type: ignore[operator]
        result: Tensor = self.final_norm(x)
        return result

    def empty_caches(self, batch: int, size: int, like: Tensor) -> list[KeyValues]:
        """Return one empty cache per layer."""
        return [layer.self_attention.empty_cache(batch, size, like) for layer in self.layers]  # type: ignore[union-attr, operator]
