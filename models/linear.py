"""Linear maps by the library that is fastest on the machine at hand.

PyTorch hands float32 products on x86 to MKL, whose fastest kernels run on Intel's processors only: on AMD's oneDNN,
which PyTorch holds too but asks for other types alone, takes half the time (AMD EPYC with AVX-512: a third to a half,
from one row of input to thousands). Both sum in float32; results differ in the last bits.

Its kernels read weights in blocks, and rearrange others in every call, which takes as long as the product where there
are few rows of input. Parameters that are not trained (`requires_grad_(False)`) are given to it in blocks, once.
"""

from __future__ import annotations

import platform
import weakref
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.native.product import row_product

MAKERS = ("AuthenticAMD", "HygonGenuine")
LARGE_WEIGHT, LARGE_PRODUCT = 2**18, 2**21
"""Elements of a weight, and multiplications, from which a call of oneDNN, 10 microseconds dearer, pays."""
BLOCK_ROWS = 32
"""Rows of input that blocks are made for. From two rows on all kernels read the same blocks; for a single row, which is
faster with them too, oneDNN would ask for the weight as it is."""


class Blocks(NamedTuple):
    """What a parameter holds, in the order in which oneDNN's kernels read it."""

    weight: Tensor
    """[o, i], opaque to all but oneDNN."""
    version: int
    """The parameter's, which every change in place counts up, when they were made."""
    address: int
    """Where the parameter's values lay then."""
    parameter: weakref.ref[nn.Parameter]
    """Whose they are."""


_blocks: dict[int, Blocks] = {}
"""By the identity of the parameter, while it lives."""


@cache
def prefers_onednn() -> bool:
    """Return whether float32 products on this machine's CPU are oneDNN's: on x86 by AMD and its licensee."""
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and any(maker in _processor() for maker in MAKERS)
        and _agrees()
    )


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False, added: Tensor | None = None
) -> Tensor:
    """Return x [..., i] times the transpose of weight [o, i], plus bias [o] -> [..., o]; no gradient passes.

    relu: negative values become 0; added: [..., o], added to the product. At most one of them; oneDNN does either on
    the way.
    """
    if _by_onednn(x, weight):
        return _product_by_onednn(x, weight, bias, relu, added)
    return _product_by_default(x, weight, bias, relu, added)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False, added: Tensor | None = None
) -> Tensor:
    """Return what `product` returns; also when gradients are wanted."""
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, added))):
        if _by_onednn(x, weight):
            single = row_product(x, weight, bias, relu, added)
            return _product_by_onednn(x, in_blocks(weight), bias, relu, added) if single is None else single
        return _product_by_default(x, weight, bias, relu, added)
    _blocks.pop(id(weight), None)  # it is going to change, perhaps without a trace
    differentiable = _Linear.apply if _by_onednn(x, weight) else F.linear
    result: Tensor = differentiable(x, weight, bias)
    result = F.relu(result) if relu else result
    return result if added is None else added + result


def in_blocks(weight: Tensor) -> Tensor:
    """Return the values [o, i] of a parameter that is not trained, in blocks for oneDNN; other tensors as they are.

    Blocks are made when they are first wanted, and again when the parameter has changed. They take as much memory as
    it, and are freed with it. Those that are trained have none: fused optimisers change them without a trace.
    """
    if not isinstance(weight, nn.Parameter) or weight.requires_grad or weight.is_inference():
        return weight
    key = id(weight)
    kept = _blocks.get(key)
    if (
        kept is None
        or kept.parameter() is not weight
        or kept.version != weight._version
        or kept.address != weight.data_ptr()
    ):
        blocks: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), BLOCK_ROWS)
        reference = weakref.ref(weight, lambda gone: _forget(key, gone))
        kept = _blocks[key] = Blocks(blocks, weight._version, weight.data_ptr(), reference)
    return kept.weight


def _forget(key: int, parameter: weakref.ref[nn.Parameter]) -> None:
    if (kept := _blocks.get(key)) is not None and kept.parameter is parameter:  # not another's with the same identity
        del _blocks[key]


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: Tensor, relu: bool = False, added: Tensor | None = None) -> Tensor:
        """[..., i] -> [..., o]; see `product`."""
        return linear(x, self.weight, self.bias, relu, added)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        gradient = gradient.reshape(-1, gradient.shape[-1]).contiguous()
        x_gradient = product(gradient, weight.t()).view(x.shape) if of_x else None
        weight_gradient = product_of_transposes(gradient, x.reshape(-1, x.shape[-1])) if of_weight else None
        return x_gradient, weight_gradient, gradient.sum(0) if of_bias else None


def product_of_transposes(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of the transpose of a [n, p] with b [n, q] -> [p, q]; the gradient of a weight is one."""
    # oneDNN is faster with the shorter side as rows.
    return product(a.t(), b.t()) if a.shape[1] < b.shape[1] else product(b.t(), a.t()).t()


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32 or not x.numel():
        return False
    size = weight.numel()
    if size < LARGE_WEIGHT and size * (x.numel() // x.shape[-1]) < LARGE_PRODUCT:
        return False
    return torch._C._get_mkldnn_enabled() and not torch.is_autocast_enabled("cpu") and prefers_onednn()


def _product_by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, added: Tensor | None) -> Tensor:
    assert added is None or not relu
    if added is not None and added.dtype == torch.float32:
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, added, weight, bias, "add")
        return result
    result = _onednn(x, weight, bias, "relu" if relu else "none")
    return result if added is None else added + result


def _product_by_default(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, added: Tensor | None) -> Tensor:
    assert added is None or not relu
    result = F.linear(x, weight, bias)
    result = result.relu_() if relu else result
    return result if added is None else added + result


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")
    return result


def _processor() -> str:
    """Return what the system says of the processor; its maker is named there."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return platform.processor()


def _agrees() -> bool:
    """Return whether oneDNN's product is that of PyTorch, transposed operands and what it does on the way included."""
    where: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    x = torch.linspace(-1, 1, 3 * 8, **where).view(3, 8)
    weight = torch.linspace(1, -2, 5 * 8, **where).view(5, 8)
    bias = torch.linspace(0, 1, 5, **where)
    try:
        blocks = in_blocks(nn.Parameter(weight, requires_grad=False))
        pairs = (
            (_onednn(x, weight, bias), F.linear(x, weight, bias)),
            (_onednn(x.t(), weight[:3].t(), None), x.t() @ weight[:3]),
            (_onednn(x, weight, bias, "relu"), F.linear(x, weight, bias).relu()),
            (
                torch.ops.mkldnn._linear_pointwise.binary(x, x[:, :5], weight, bias, "add"),
                x[:, :5] + F.linear(x, weight, bias),
            ),
            *((_onednn(part, blocks, bias), F.linear(part, weight, bias)) for part in (x, x[:1])),
        )
    except (RuntimeError, TypeError):  # no kernel on this processor, or another signature
        return False
    return all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in pairs)
