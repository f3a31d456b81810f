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

from models.native.library import Library, load_library, usable

if TYPE_CHECKING:
    from models.attention import KeyValues
    from models.layers import Stack

MOST_ROWS = 8
"""Rows times positions up to which C is faster; as many as it has tiles for."""
WORK_PER_THREAD = 2**15
"""Multiplications of the smallest product of a layer that make another thread pay."""
FLOAT = 4
OWN = ("models.layers", "models.attention", "models.linear", "models.dropout", "torch.nn.modules.normalization")
"""Where what C does is defined; a subclass from elsewhere may do more."""


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
        *((name, c_int64) for name in ("self_stride", "cross_stride", "pre_norm", "causal", "threads", "available")),
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
    if not 0 < b * t <= MOST_ROWS or x.dtype != torch.float32 or x.device.type != "cpu" or not usable():
        return None
    prepared = _prepare(stack)
    if (
        prepared is None
        or d != prepared.call.d
        or not _by_key(self_mask, b, t)
        or not _memory_fits(prepared, memory, memory_mask, b)
        or not _caches_fit(prepared, caches, b, t)
    ):
        return None
    available = torch.get_num_threads()
    threads = max(1, min(available, b * t * d * d // WORK_PER_THREAD))
    if threads > 1 and not prepared.library.threaded:
        return None
    result = x.clone(memory_format=torch.contiguous_format)
    call = _Call.from_buffer_copy(prepared.call)  # another thread may decode too
    call.x, call.b, call.t, call.causal = result.data_ptr(), b, t, causal
    call.threads, call.available = threads, available
    call.self_mask, call.self_stride = _pointer(self_mask)
    if caches is None:
        call.caches, call.cached = None, 0
    else:
        call.caches, call.cached = _cache_array(caches), caches[0].length
    if memory is None:
        call.memories, call.m, call.s = None, 1, 0
    else:
        keys = memory[0][0]
        call.memories, call.m, call.s = _memory_array(memory), keys.shape[0], keys.shape[2]
    call.cross_mask, call.cross_stride = _pointer(memory_mask)
    size = prepared.library.code.scratch_floats(byref(call))
    scratch = torch.empty(size, dtype=torch.float32, device="cpu")
    call.scratch = scratch.data_ptr()
    prepared.library.code.run_layers(byref(call))
    for cache in caches or ():
        cache.length += t
    return result


def _by_key(mask: Tensor | None, rows: int, size: int) -> bool:
    """Return whether a mask says of each of `size` keys whether it counts, to all queries and heads of a row alike."""
    return mask is None or (
        mask.dtype == torch.bool
        and mask.shape[1:] == (1, 1, size)
        and mask.shape[0] in (1, rows)
        and (size == 1 or mask.stride(3) == 1)
    )


def _memory_fits(prepared: _Prepared, memory: list[tuple[Tensor, Tensor]] | None, mask: Tensor | None, b: int) -> bool:
    """Return whether cross-attention, if there is any, has what it attends to, laid out as C reads it."""
    if memory is None or not prepared.crossed:
        return memory is None and not prepared.crossed
    m, _, s, _ = shape = memory[0][0].shape
    heads, width = prepared.call.heads, prepared.call.d // prepared.call.heads
    return (
        len(memory) == prepared.call.depth
        and shape[1] == heads
        and shape[3] == width
        and s > 0
        and m > 0
        and b % m == 0
        and _by_key(mask, m, s)
        and all(
            keys.dtype == values.dtype == torch.float32
            and keys.shape == values.shape == shape
            and keys.stride() == values.stride()
            and keys.stride(3) == 1
            for keys, values in memory
        )
    )


def _caches_fit(prepared: _Prepared, caches: list[KeyValues] | None, b: int, t: int) -> bool:
    """Return whether there is room for the next position of each row in the cache of every layer."""
    if caches is None:
        return True
    heads, width, length = prepared.call.heads, prepared.call.d // prepared.call.heads, caches[0].length
    return (
        t == 1
        and len(caches) == prepared.call.depth
        and all(
            cache.length == length < cache.both.shape[3]
            and cache.both.shape[:3] == (2, b, heads)
            and cache.both.shape[4] == width
            and cache.both.dtype == torch.float32
            and cache.both.stride(4) == 1
            for cache in caches
        )
    )


def _pointer(mask: Tensor | None) -> tuple[int | None, int]:
    """Return the address of a mask and the stride between its rows: none if it has one for all."""
    if mask is None:
        return None, 0
    return mask.data_ptr(), mask.stride(0) if mask.shape[0] > 1 else 0


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

    def __init__(self, stack: Stack, library: Library) -> None:
        layers: Sequence[Any] = list(stack.layers)
        first = layers[0]
        self.library = library
        self.modules = layers
        self.slots = [(part._parameters, name) for part in _parts(stack) for name in ("weight", "bias")]
        self.addresses = self.where()
        self.crossed = first.cross_attention is not None
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
        """Return the addresses of all parameters; other parameters may have come in their places."""
        return [parameters[name].data_ptr() for parameters, name in self.slots]  # type: ignore[union-attr]


_prepared: weakref.WeakKeyDictionary[Stack, _Prepared] = weakref.WeakKeyDictionary()


def _prepare(stack: Stack) -> _Prepared | None:
    """Return the stack's weights for C; None for a stack that does more than C does, or without C."""
    prepared = _prepared.get(stack)
    if (
        prepared is not None
        and not stack.training
        and prepared.modules == list(stack.layers)
        and prepared.addresses == prepared.where()
    ):
        return prepared
    library = load_library()
    if library is None or stack.training or not _known(stack):
        return None
    prepared = _prepared[stack] = _Prepared(stack, library)
    return prepared


def _parts(stack: Stack) -> list[nn.Module]:
    """Return the linear maps and norms of the layers."""
    layers: Sequence[Any] = list(stack.layers)
    return [part for layer in layers for part in layer.modules() if not list(part.children()) and part._parameters]


def _known(stack: Stack) -> bool:
    """Return whether C does all that the layers of `stack` do, on weights that it can read."""
    layers: Sequence[Any] = list(stack.layers)
    modules = [module for layer in layers for module in layer.modules()]
    if not layers or {type(module).__name__ for module in layers} != {"Layer"}:
        return False
    first = layers[0]
    kinds = {type(first), type(first.self_attention), type(first.feed_forward), type(first.dropout)}
    kinds |= {type(first.self_attention.query), nn.LayerNorm}
    shapes = {
        (layer.pre_norm, layer.self_attention.heads, layer.feed_forward.inner.out_features, layer.training)
        for layer in layers
    }
    norms = {module.eps for module in modules if isinstance(module, nn.LayerNorm)}
    return (
        {type(module) for module in modules} <= kinds
        and all(kind.__module__ in OWN for kind in kinds)
        and len(shapes) == len(norms) == 1
        and len({layer.cross_attention is None for layer in layers}) == 1
        and all(layer.convolution is None for layer in layers)
        and not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
        and all(_plain(part) for part in _parts(stack))
    )


def _plain(part: nn.Module) -> bool:
    """Return whether `part` has a weight and a bias that C can read."""
    return {"weight", "bias"} == part._parameters.keys() and all(
        p is not None and p.dtype == torch.float32 and p.device.type == "cpu" and p.is_contiguous()
        for p in part._parameters.values()
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
