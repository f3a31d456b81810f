"""Weights of a model by name, every tensor once even if it has several names (tied embeddings)."""

from __future__ import annotations

from torch import Tensor

from models.interface import Model


def weights_of(model: Model) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name; a tied tensor stands under its first name only."""
    seen: set[int] = set()
    unique: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor.detach()
    return unique


def fill(model: Model, weights: dict[str, Tensor]) -> None:
    """Copy `weights`, as `weights_of` names them, into the model.

    Raises:
        ValueError: `weights` lacks tensors of the model, holds others, or one has another shape.
    """
    own = weights_of(model)
    if own.keys() != weights.keys():
        raise ValueError(
            f"weights do not fit the model: missing {sorted(own.keys() - weights.keys())}, "
            f"unknown {sorted(weights.keys() - own.keys())}"
        )
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            raise ValueError(f"{name} has shape {tuple(weights[name].shape)}, the model's is {tuple(tensor.shape)}")
        tensor.copy_(weights[name])
