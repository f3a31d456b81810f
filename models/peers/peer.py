"""What another engine is to us, and how its outputs become ours."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from models.interface import EOS, PAD, Decoded

if TYPE_CHECKING:
    from models.transformer import Transformer

Engine = Literal["natbench", "huggingface", "ctranslate2"]
MODULES = {"huggingface": "transformers", "ctranslate2": "ctranslate2"}
"""What each engine needs to have installed."""


@dataclass(frozen=True)
class Request:
    """A batch to decode."""

    src: Tensor
    """[b, s] source ids."""
    src_len: Tensor
    """[b], at least 1."""
    limits: Tensor
    """[b] most tokens that each sentence may emit."""
    beam: int
    """1 is greedy."""
    alpha: float
    """With a beam, scores are divided by length^alpha."""


class Peer(Protocol):
    """An engine that holds a converted model."""

    def decode(self, request: Request) -> Decoded:
        """Decode; scores are nan where the engine does not give any. Outputs beyond a sentence's limit are cut."""
        ...


def make_peer(engine: Engine, model: Transformer) -> Peer:
    """Convert `model` for `engine`.

    Raises:
        ModuleNotFoundError: the engine is not installed.
    """
    try:
        importlib.import_module(MODULES[engine])
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"engine {engine} needs the package {MODULES[engine]}: pip install 'natbench[peers]'"
        ) from error
    if engine == "huggingface":
        from models.peers.huggingface import HuggingFace

        return HuggingFace(model)
    from models.peers.ctranslate import CTranslate

    return CTranslate(model)


def decoded(outputs: Sequence[Sequence[int]], scores: Sequence[float], request: Request) -> Decoded:
    """Return outputs, each up to its eos and its limit, as a batch on the device of the sources."""
    rows = []
    for output, limit in zip(outputs, request.limits.tolist(), strict=True):
        tokens = list(output)
        rows.append(tokens[: tokens.index(EOS) if EOS in tokens else len(tokens)][:limit])
    width = max(map(len, rows), default=0)
    device = request.src.device
    tokens_ = torch.tensor([row + [PAD] * (width - len(row)) for row in rows], dtype=torch.long, device=device)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long, device=device)
    steps = lengths + 1  # eos
    return Decoded(tokens_.view(len(rows), width), lengths, torch.tensor(scores, device=device), steps)
