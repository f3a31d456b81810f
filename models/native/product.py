"""The product of a row with a weight: all that it does is to read the weight, which C does faster than oneDNN."""

from __future__ import annotations

from ctypes import Structure, byref, c_int64, c_void_p

import torch
from torch import Tensor

from models.native.library import load_library, usable


class _Product(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("weight", "bias")),
        *((name, c_int64) for name in ("outputs", "inputs")),
        *((name, c_void_p) for name in ("x", "added", "y")),
        *((name, c_int64) for name in ("n", "relu", "threads")),
    ]


def row_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False, added: Tensor | None = None
) -> Tensor | None:
    """Return what `models.linear.product` does for a single row x [..., i]; None if PyTorch has to do it."""
    tensors = [tensor for tensor in (x, weight, bias, added) if tensor is not None]
    if (
        x.numel() != x.shape[-1]
        or not usable()
        or not all(t.dtype == torch.float32 and t.device.type == "cpu" and t.is_contiguous() for t in tensors)
        or (library := load_library()) is None
    ):
        return None
    outputs, inputs = weight.shape
    y = x.new_empty(*x.shape[:-1], outputs)
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in (bias, x, added, y)]
    product = _Product(
        weight.data_ptr(), addresses[0], outputs, inputs, *addresses[1:], 1, relu, torch.get_num_threads()
    )
    library.run_product(byref(product))
    return y
