"""The layers of a stack over few positions by one call of C (`kernels.c`), in place of dozens of PyTorch's for each.

A step of an autoregressive decoder for one sentence computes less than it takes to ask for it: at the size of
Transformer-base a third of the time is that of calls, with small models most of it. From `MOST_ROWS` positions on, as
in one pass of a non-autoregressive decoder, matrix products are what takes the time, and those of PyTorch are faster.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from ctypes import POINTER, Array, Structure, byref, c_double, c_int64, c_void_p
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.native.library import load_library, usable

if TYPE_CHECKING:
    from models.attention import KeyValues
    from models.layers import Stack

MOST_ROWS = 8
"""Rows times positions up to which C is faster."""
WORK_PER_THREAD = 2**15
"""Multiplications of the smallest product of a layer that make another thread pay."""
FLOAT = 4


class _Linear(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("outputs", c_int64), ("inputs", c_int64)]


class _Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class _Layer(Structure):
    _fields_ = [
        *((name, _Norm) for name in ("self_norm", "cross_norm", "feed_norm")),
        *((name, _Linear) for name in ("query", "key_value", "self_output")),
        *((name, _Linear) for name in ("cross_query", "cross_output", "inner", "outer")),
    ]


class _KeyValues(Structure):
    _fields_ = [("keys", c_void_p), ("values", c_void_p), *((n, c_int64) for n in ("row", "head", "position"))]


class _Call(Structure):
    _fields_ = [
        ("layers", POINTER(_Layer)),
        ("caches", POINTER(_KeyValues)),
        ("memories", POINTER(_KeyValues)),
        *((name, c_void_p) for name in ("self_mask", "cross_mask", "x", "scratch")),
        ("epsilon", c_double),
        *((name, c_int64) for name in ("depth", "b", "t", "d", "heads", "hidden", "cached", "m", "s")),
        *((name, c_int64) for name in ("self_stride", "cross_stride", "pre_norm", "causal", "threads")),
    ]


def run_layers(
    stack: Stack,
    x: Tensor,
    self_mask: Tensor | None = None,
    causal: bool = False,
    caches: list[KeyValues] | None = None,
    memory: list[tuple[Tensor, Tensor]] | None = None,
    memory_mask: Tensor | None = None,
) -> Tensor | None:
    """Return what the layers of `stack` make of x [b, t, d], before its final norm; None if PyTorch has to do it.

    caches: to which the positions of x are appended, and all of which they attend to; see `Stack.step`. Others as
    in `Stack.forward`.
    """
    b, t, d = x.shape
    if not 0 < b * t <= MOST_ROWS or x.dtype != torch.float32 or x.device.type != "cpu" or stack.training:
        return None
    prepared = _prepare(stack) if usable() else None
    if prepared is None or not _readable(self_mask, memory_mask, memory):
        return None
    result = x.clone(memory_format=torch.contiguous_format)
    call = _Call.from_buffer_copy(prepared.call)  # another thread may decode too
    call.x, call.b, call.t, call.causal = result.data_ptr(), b, t, causal
    call.threads = max(1, min(torch.get_num_threads(), b * t * d * d // WORK_PER_THREAD))
    call.self_mask, call.self_stride = _pointer(self_mask, b)
    if caches is None:
        call.caches, call.cached = None, 0
    else:
        call.caches, call.cached = _cache_array(caches), caches[0].length
    if memory is None:
        call.memories, call.m, call.s = None, 1, 0
    else:
        keys = memory[0][0]
        call.memories, call.m, call.s = _memory_array(memory), keys.shape[0], keys.shape[2]
    call.cross_mask, call.cross_stride = _pointer(memory_mask, call.m)
    scratch = torch.empty(prepared.library.scratch_floats(byref(call)))
    call.scratch = scratch.data_ptr()
    prepared.library.run_layers(byref(call))
    for cache in caches or ():
        cache.length += t
    return result


def _readable(self_mask: Tensor | None, memory_mask: Tensor | None, memory: list[tuple[Tensor, Tensor]] | None) -> bool:
    """Return whether masks are by key alone, [b, 1, 1, s], and all is laid out as C reads it."""
    for mask in (self_mask, memory_mask):
        if mask is not None and (
            mask.dtype != torch.bool or mask.shape[1:3] != (1, 1) or (mask.shape[3] > 1 and mask.stride(3) != 1)
        ):
            return False
    return all(
        keys.dtype == values.dtype == torch.float32 and keys.stride() == values.stride() and keys.stride(3) == 1
        for keys, values in memory or ()
    )


def _pointer(mask: Tensor | None, rows: int) -> tuple[int | None, int]:
    """Return the address of a mask and the stride between its rows: none if it has one for all."""
    if mask is None:
        return None, 0
    return mask.data_ptr(), mask.stride(0) if mask.shape[0] == rows > 1 else 0


def _cache_array(caches: Sequence[KeyValues]) -> Array[_KeyValues]:
    array = (_KeyValues * len(caches))()
    for entry, cache in zip(array, caches, strict=True):
        between, entry.row, entry.head, entry.position, _ = cache.both.stride()
        entry.keys = cache.both.data_ptr()
        entry.values = entry.keys + between * FLOAT
    return array


def _memory_array(memory: Sequence[tuple[Tensor, Tensor]]) -> Array[_KeyValues]:
    array = (_KeyValues * len(memory))()
    for entry, (keys, values) in zip(array, memory, strict=True):
        entry.keys, entry.values = keys.data_ptr(), values.data_ptr()
        entry.row, entry.head, entry.position, _ = keys.stride()
    return array


class _Prepared:
    """A stack's weights as C sees them, while they lie where they lay."""

    def __init__(self, stack: Stack, library: Any) -> None:
        layers: Sequence[Any] = list(stack.layers)
        first = layers[0]
        self.library = library
        self.parameters = [p for layer in layers for p in layer.parameters()]
        self.addresses = self.where()
        self.layers = (_Layer * len(layers))(*map(_layer, layers))
        self.call = _Call(
            layers=self.layers,
            epsilon=first.norm_self.eps,
            depth=len(layers),
            d=first.self_attention.query.in_features,
            heads=first.self_attention.heads,
            hidden=first.feed_forward.inner.out_features,
            pre_norm=first.pre_norm,
        )

    def where(self) -> list[int]:
        """Return the addresses of all parameters."""
        return [parameter.data_ptr() for parameter in self.parameters]


_prepared: weakref.WeakKeyDictionary[Stack, _Prepared | None] = weakref.WeakKeyDictionary()


def _prepare(stack: Stack) -> _Prepared | None:
    """Return the stack's weights for C; None for a stack that it does not know, or without C."""
    if stack in _prepared:
        prepared = _prepared[stack]
        if prepared is None or prepared.addresses == prepared.where():
            return prepared
    library = load_library()
    prepared = _Prepared(stack, library) if library is not None and _known(stack) else None
    _prepared[stack] = prepared
    return prepared


def _known(stack: Stack) -> bool:
    """Return whether C has all that the layers of `stack` do, on weights that it can read."""
    layers: Sequence[Any] = list(stack.layers)
    parameters = [p for layer in layers for p in layer.parameters()]
    shapes = {
        (layer.pre_norm, layer.self_attention.heads, layer.feed_forward.inner.out_features, layer.norm_self.eps)
        for layer in layers
    }
    return (
        len(shapes) == 1
        and all(layer.convolution is None for layer in layers)
        and all(p.dtype == torch.float32 and p.device.type == "cpu" and p.is_contiguous() for p in parameters)
    )


def _layer(layer: Any) -> _Layer:
    own, cross, feed = layer.self_attention, layer.cross_attention, layer.feed_forward
    result = _Layer(
        self_norm=_norm(layer.norm_self),
        feed_norm=_norm(layer.norm_feed),
        query=_linear(own.query),
        key_value=_linear(own.key_value),
        self_output=_linear(own.output),
        inner=_linear(feed.inner),
        outer=_linear(feed.outer),
    )
    if cross is not None:
        result.cross_norm = _norm(layer.norm_cross)
        result.cross_query, result.cross_output = _linear(cross.query), _linear(cross.output)
    return result


def _linear(layer: nn.Linear) -> _Linear:
    return _Linear(layer.weight.data_ptr(), layer.bias.data_ptr(), layer.out_features, layer.in_features)


def _norm(norm: nn.LayerNorm) -> _Norm:
    return _Norm(norm.weight.data_ptr(), norm.bias.data_ptr())
