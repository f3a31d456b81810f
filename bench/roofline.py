"""What decoding would cost at the least: its arithmetic, the bytes that it moves, and how fast the device does either.

The roofline model (Williams et al. 2009), operation by operation: a matrix product, attention or convolution takes no
less than its floating-point operations at the device's matrix rate, and no less than its inputs and outputs at the
device's bandwidth. Their sum bounds the time of decoding from below; the measured time over it says how much of it is
work and how much is everything else. What is element-wise is left out: it could be fused.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench.workload import SourceBatch, System
from models.linear import product

ATEN = torch.ops.aten
MATRIX_SIZES = (512, 1024, 2048)
"""Rows and columns of the products by which the matrix rate is measured; the best counts."""
LEAST_BUFFER = 2**20
MOST_BUFFER = 2**29
"""Bytes of the buffer by which the bandwidth is measured, however small or large the model."""


@dataclass(frozen=True)
class Roof:
    """What a device can do, as measured."""

    flops: float
    """Floating-point operations a second, in matrix products."""
    bandwidth: float
    """Bytes a second, read from a buffer of the size of the model's weights."""

    def seconds(self, cost: Cost) -> float:
        """Return the least time for `cost`."""
        return sum(
            count * max(flops / self.flops, moved / self.bandwidth) for (flops, moved), count in cost.operations.items()
        )


@dataclass
class Cost:
    """The operations of a stretch of decoding."""

    operations: Counter[tuple[int, int]] = field(default_factory=Counter)
    """How often each pair of floating-point operations and bytes moved occurred."""

    @property
    def flops(self) -> int:
        """All floating-point operations; a multiplication and an addition are two."""
        return sum(flops * count for (flops, _), count in self.operations.items())

    @property
    def bytes(self) -> int:
        """All bytes read or written."""
        return sum(moved * count for (_, moved), count in self.operations.items())


class CostCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the cost of what torch does inside the context, as a `Cost` in `cost`. It is slow: time nothing inside."""

    cost: Cost

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cost = Cost()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do `func` and count it."""
        kwargs = kwargs or {}
        packet = func._overloadpacket
        formula = FORMULAS.get(packet)
        if formula is None and packet not in flop_registry:
            # A composite that inference mode does not take apart.
            with self:
                result = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        result = func(*args, **kwargs)
        # What is added to a product on the way is element-wise work.
        counted = (args[0], *args[2:]) if func is ADDING else args
        flops = formula(*counted) if formula else flop_registry[packet](*counted, **kwargs, out_val=result)
        self.cost.operations[int(flops), _moved(counted) + _moved([result])] += 1
        return result


def _moved(values: Sequence[Any]) -> int:
    """Return the bytes of the tensors among `values`; one that is expanded counts as what is stored of it."""
    total = 0
    for value in values:
        if isinstance(value, Tensor) and value.is_mkldnn:  # opaque: its strides mean nothing
            total += value.numel() * value.element_size()
        elif isinstance(value, Tensor):
            stored = 1
            for size, stride in zip(value.shape, value.stride(), strict=True):
                stored *= size if stride else 1
            total += stored * value.element_size()
        elif isinstance(value, (list, tuple)):
            total += _moved(value)
    return total


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> int:
    """Two products for each query: with all keys, and with all values."""
    return 2 * query.numel() * key.shape[-2] + 2 * query.numel() // query.shape[-1] * value.shape[-2] * value.shape[-1]


def _recurrent(x: Tensor, inner: Tensor, outer: Tensor, *_: Any) -> int:
    """At each of the positions of x [t, b, d], products with two matrices."""
    return 2 * x.shape[0] * x.shape[1] * (inner.numel() + outer.numel())


FORMULAS: dict[Any, Callable[..., int]] = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    ATEN.mkldnn_rnn_layer: _recurrent,
    ATEN.mv: lambda matrix, vector: 2 * matrix.numel(),
}
"""Floating-point operations of what torch's own counter does not know."""
ADDING: Any = None
"""The product to which its second argument is added on the way."""
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    ADDING = torch.ops.mkldnn._linear_pointwise.binary
    FORMULAS[torch.ops.mkldnn._linear_pointwise] = lambda x, weight, *_: 2 * x.numel() * weight.shape[0]


@dataclass(frozen=True)
class Bound:
    """What decoding some of a point's batches costs, and the least time that it takes on the device."""

    batches: tuple[int, ...]
    """Which batches, in the order of the sample."""
    flops: int
    bytes: int
    seconds: float


def bound_of(system: System, batches: Sequence[SourceBatch], chosen: Sequence[int], roof: Roof) -> Bound:
    """Return the cost of decoding those of `batches` that are `chosen`."""
    counter = CostCounter()
    with counter:
        for index in chosen:
            system.decode(batches[index])
    cost = counter.cost
    return Bound(tuple(chosen), cost.flops, cost.bytes, roof.seconds(cost))


def measure_roof(device: str, dtype: str, weight_bytes: int, synchronise: Callable[[], None]) -> Roof:
    """Measure the device with the threads that are set: the best of several attempts at each.

    weight_bytes: the size of the model's weights, which may fit into a cache.
    """
    kind = getattr(torch, dtype)
    rates = []
    for size in MATRIX_SIZES:
        a, b = torch.randn(2, size, size, device=device).to(kind)
        seconds = _best_seconds(lambda a=a, b=b: product(a, b), synchronise)  # type: ignore[misc]
        rates.append(2 * size**3 / seconds)
    width = 1024
    size = min(max(weight_bytes, LEAST_BUFFER), MOST_BUFFER)
    matrix = torch.randn(max(1, size // width // kind.itemsize), width, device=device).to(kind)
    vector = torch.randn(1, width, device=device).to(kind)
    seconds = min(
        _best_seconds(lambda: product(vector, matrix), synchronise),
        _best_seconds(matrix.sum, synchronise),
    )
    return Roof(max(rates), matrix.numel() * matrix.element_size() / seconds)


def _best_seconds(work: Callable[[], Tensor], synchronise: Callable[[], None], least_seconds: float = 0.1) -> float:
    """Return the shortest time of `work`, of at least five attempts after a first that does not count."""
    work()
    best, spent, attempts = float("inf"), 0.0, 0
    while attempts < 5 or spent < least_seconds:
        synchronise()
        start = time.perf_counter()
        work()
        synchronise()
        seconds = time.perf_counter() - start
        best, spent, attempts = min(best, seconds), spent + seconds, attempts + 1
    return best
