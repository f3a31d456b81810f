"""Weights of a model by name, every tensor once even if it has several names (tied embeddings)."""

from __future__ import annotations

from torch import Tensor, nn

from models.attention import Attention
from models.frontend import TextFrontend
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


def start_encoder(model: Model, other: Model) -> list[str]:
    """Copy the weights of the encoder of `other` into that of `model`; return the names of what was copied.

    Of an encoder of another kind only what has the same name and shape is taken: the front end, for instance.

    Raises:
        ValueError: nothing fits.
    """
    own, theirs = weights_of(model), weights_of(other)
    # A text encoder reads embeddings that stand under a name of their own; on speech they are the decoder's.
    reads_ids = any(isinstance(part, TextFrontend) for part in model.modules())
    read = ("encoder.", "embedding.") if reads_ids else ("encoder.",)
    names = [name for name in own if name.startswith(read) and name in theirs]
    fitting = [name for name in names if own[name].shape == theirs[name].shape]
    if not any(name.startswith("encoder.") for name in fitting):
        raise ValueError(
            f"the encoder of {type(model).__name__} shares no weights with that of {type(other).__name__}: "
            "nothing to start from"
        )
    heads = [attention_heads(part) for part in (model.encoder, other.encoder) if isinstance(part, nn.Module)]
    if all(heads) and heads[0] != heads[1]:
        raise ValueError(
            f"the encoder of {type(model).__name__} has {heads[0][0]} attention heads and {len(heads[0])} layers, that "
            f"of {type(other).__name__}, which it would start from, {heads[1][0]} and {len(heads[1])}"
        )
    for name in fitting:
        own[name].copy_(theirs[name])
    return fitting


def attention_heads(module: nn.Module) -> list[int]:
    """Return the heads of every attention in `module`, in order: weights of equal shape may differ in them."""
    return [part.heads for part in module.modules() if isinstance(part, Attention)]
