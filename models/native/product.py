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
    outputs, inputs = weight.shape
    if not x.numel() == x.shape[-1] == inputs or not usable():
        return None
    rows = [(tensor, size) for tensor, size in ((bias, outputs), (added, outputs)) if tensor is not None]
    tensors = [x, weight, *(tensor for tensor, _ in rows)]
    threads = torch.get_num_threads()
    library = load_library()
    if (
        library is None
        or (threads > 1 and not library.threaded)
        or not all(t.dtype == torch.float32 and t.device.type == "cpu" and t.is_contiguous() for t in tensors)
        or not all(tensor.numel() == tensor.shape[-1] == size for tensor, size in rows)
    ):
        return None
    y = x.new_empty(*x.shape[:-1], outputs)
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in (bias, x, added, y)]
    product = _Product(weight.data_ptr(), addresses[0], outputs, inputs, *addresses[1:], 1, relu, threads)
    library.code.run_product(byref(product))
    return y
