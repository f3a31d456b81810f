"""What another engine is to us, and how its outputs become ours."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from models.encoder import SourceEncoder
from models.interface import EOS, PAD, Decoded
from models.layers import Embedding, Stack
from models.output import OutputLayer

Engine = Literal["natbench", "huggingface", "ctranslate2"]
MODULES: dict[str, tuple[str, ...]] = {
    "huggingface": ("models.peers.huggingface",),
    "ctranslate2": ("models.peers.ctranslate", "models.peers.ctranslate_server"),
}
"""What does it, loaded by name: a change of it does not change the model, and so must not ask for training anew."""
PACKAGES: dict[str, tuple[str, ...]] = {"huggingface": ("transformers",), "ctranslate2": ("ctranslate2",)}
"""What each engine needs to have installed."""
BANNED = -1e9
"""Bias of symbols that are never emitted; minus infinity would make sums that are no numbers."""


class EncoderDecoder(Protocol):
    """The model that is converted: an autoregressive Transformer with one embedding."""

    embedding: Embedding
    encoder: SourceEncoder
    decoder: Stack
    output: OutputLayer


@dataclass(frozen=True)
class Request:
    """A batch to decode."""

    src: Tensor
    """[b, s] source ids."""
    src_len: Tensor
    """[b], at least 1."""
    limits: Tensor
    """[b] most tokens that each sentence may emit; where they end a sentence, it is cut."""
    longest: int
    """Most tokens that any sentence may emit."""
    beam: int
    """1 is greedy."""
    alpha: float
    """With a beam, scores are divided by length^alpha."""
    exact: bool = False
    """Whether every sentence is to have as many tokens as it may."""

    def exact_length(self) -> int | None:
        """Return how many tokens each output must have; None if that is for the engine to say.

        Raises:
            ValueError: not all the same number, which other engines cannot be told.
        """
        if not self.exact or not len(self.limits):
            return None
        shortest, longest = int(self.limits.min()), int(self.limits.max())
        if shortest < longest:
            raise ValueError(
                f"other engines can be told one length a batch, and with output_length source it is {shortest} to "
                f"{longest} here: give the task sentences of equal lengths, a multiple of the batch size of each"
            )
        return longest


class Peer(Protocol):
    """An engine that holds a converted model."""

    def decode(self, request: Request) -> Decoded:
        """Decode; scores are nan where the engine does not give any."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def make_peer(engine: Engine, model: EncoderDecoder) -> Peer:
    """Convert `model` for `engine`.

    Raises:
        ModuleNotFoundError: the engine is not installed.
        ValueError: it does not run on the model's device.
    """
    made: Peer = importlib.import_module(MODULES[engine][0]).make(model)
    return made


def decoded(outputs: Sequence[Sequence[int]], scores: Sequence[float], request: Request) -> Decoded:
    """Return outputs, each up to its eos and its limit, as a batch on the device of the sources."""
    rows = []
    for output, limit in zip(outputs, request.limits.tolist(), strict=True):
        ended = list(output).index(EOS) if EOS in output else len(output)
        rows.append(list(output[: min(ended, limit)]))
    width = max(map(len, rows), default=0)
    device = request.src.device
    padded = torch.tensor([row + [PAD] * (width - len(row)) for row in rows], dtype=torch.long, device=device)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long, device=device)
    steps = lengths + 1  # eos
    return Decoded(padded.view(len(rows), width), lengths, torch.tensor(scores, device=device), steps)
