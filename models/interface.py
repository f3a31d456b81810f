"""The contract between a family and the harness.

Letters in shape comments and annotations, here and in every other file:

    b  sentences in a batch          s  source positions (tokens or frames)
    t  target tokens                 f  output frames of an alignment model
    v  vocabulary                    d  model width
    h  attention heads               k  width of one head
    n  rows of a flattened axis (sentences x beams, or tokens)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

# One vocabulary serves source and target. Its first ids are special; no id ever plays two roles.
PAD, BOS, EOS, UNK, MASK, BLANK, PLH = range(7)
NUM_SPECIAL = 7
MODALITIES = ("text", "speech")
"""What sources can be."""
SPECIAL_NAMES = ("<pad>", "<bos>", "<eos>", "<unk>", "<mask>", "<blank>", "<plh>")


class Options(BaseModel):
    """Base of every `Config` and `Settings`: immutable, unknown keys refused, field docstrings kept."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, protected_namespaces=()
    )

    def needs(self, modality: str = "text") -> frozenset[str]:
        """Return the roles (see `Role`) that must be filled: to train, for a Config; to decode, for Settings.

        modality: what the sources are; see `DataSpec.modality`.
        """
        return frozenset()

    def departures(self) -> list[str]:
        """Return the fields, in their order, that are not at their defaults."""
        fields = type(self).model_fields
        return [n for n in fields if getattr(self, n) != fields[n].get_default(call_default_factory=True)]

    def language_model_order(self) -> int:
        """Return the order of the n-gram model of training targets that decoding with these Settings uses; 0: none."""
        return 0

    def refuses(self, role: str, other: Options) -> str | None:
        """Return why a system configured as `other` cannot fill `role` for one with this Config; None if it can."""
        return None

    def differing(self, other: Options, fields: Iterable[str]) -> str | None:
        """Return which of `fields` that both have differ, as `model_dim is 64 there and 32 here`; None if none does."""
        values = [(n, getattr(other, n, None), getattr(self, n, None)) for n in fields if hasattr(other, n)]
        found = [f"{name} is {theirs} there and {own} here" for name, theirs, own in values if theirs != own]
        return ", ".join(found) or None

    def development(self) -> Mapping[str, Any]:
        """Return the Settings, where not at their defaults, to decode the development set with; for a Config."""
        return {}

    def by_own_modules(self) -> bool:
        """Return whether the model's own modules decode with these Settings, so that passes and cost can be counted."""
        return True

    def modules(self) -> tuple[str, ...]:
        """Return local modules that decoding with these Settings loads by name, and that no import shows."""
        return ()

    def packages(self) -> tuple[str, ...]:
        """Return packages beyond the usual ones that must be installed to decode with these Settings."""
        return ()

    def unfit(self, modality: str) -> str | None:
        """Return why sources of `modality` cannot be decoded with these Settings; None if they can."""
        return None

    def misfit(self, config: Options) -> str | None:
        """Return why a model of `config` cannot decode with these Settings; None if it can."""
        return None


@dataclass(frozen=True)
class DataSpec:
    """What a model must know of the data it is built for."""

    vocab_size: int
    """Number of ids, special ids included."""
    max_source_length: int
    """Longest source that the task yields: tokens of text, frames of speech."""
    max_target_length: int
    """Longest target, in tokens without bos and eos; no decoder emits more."""
    modality: Literal["text", "speech"] = "text"
    """What the source is."""
    num_features: int = 0
    """Features of each frame; 0 for text."""

    @property
    def source_tokens(self) -> int:
        """Longest source in the vocabulary's ids: 0 for speech, which has none."""
        return self.max_source_length if self.modality == "text" else 0


@dataclass
class Batch:
    """Padded pairs. Targets hold neither bos nor eos; a family adds what it needs."""

    src: Tensor
    """[b, s] int64 source ids; for speech [b, s, features] float32 frames."""
    src_len: Tensor
    """[b] int64: tokens or frames."""
    tgt: Tensor
    """[b, t] int64 target ids."""
    tgt_len: Tensor
    """[b] int64."""
    labels: Tensor | None = None
    """[b, l] int64, padded with 0: what `Family.labels` asks for; None outside training."""

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on `device`."""
        tensors = (self.src, self.src_len, self.tgt, self.tgt_len, self.labels)
        return Batch(*(None if x is None else x.to(device, non_blocking=True) for x in tensors))  # type: ignore[arg-type]


@dataclass
class Losses:
    """What one training step minimises."""

    total: Tensor
    """Scalar with gradient: the objective per target token."""
    num_tokens: int
    """Target tokens of the batch (no eos, no padding), masked or not. Budgets count the batch's own."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars to log, by name."""
    counts: dict[str, int] = field(default_factory=dict)
    """Events to sum over training and to report, such as `infeasible` pairs."""


@dataclass
class Decoded:
    """Final output of a decoder: collapsed, without special ids."""

    tokens: Tensor
    """[b, t] int64, padded with PAD."""
    lengths: Tensor
    """[b] int64 emitted tokens."""
    scores: Tensor
    """[b] float32 log-probability that the decoder gives its output (normalised if it ranks by a normalised one)."""
    iterations: Tensor
    """[b] int64: steps (AR) or rounds of refinement (NAT) that the sentence took."""


class LanguageModel(Protocol):
    """Scores what follows a prefix."""

    order: int

    def next_log_probs(self, context: Tensor) -> Tensor:
        """Return log-probabilities [n, v] of the next symbol, eos included, after contexts [n, order - 1].

        Contexts are the last ids of a prefix, filled up with BOS from the left.
        """
        ...


class Model(nn.Module, ABC):
    """A family's network: a training objective and a decoder."""

    likelihood_is_bound: ClassVar[bool] = False
    """Whether `log_likelihood` is a lower bound, or an estimate of one."""
    progress: float
    """Share of the training budget that is spent, 0-1; the trainer sets it before each `loss`."""
    companions: dict[str, Model]
    """Other trained models by role (see `Role`), in eval mode; no part of this module, its weights or its device."""
    language_models: dict[int, LanguageModel]
    """N-gram models of training targets by order; see `Options.language_model_order`."""

    def __init__(self) -> None:
        super().__init__()
        self.progress = 0.0
        self.companions = {}  # a plain dict: nn.Module does not look into it
        self.language_models = {}

    def companion(self, role: str) -> Model:
        """Return the model that fills `role`.

        Raises:
            ValueError: nobody fills it.
        """
        if role not in self.companions:
            raise ValueError(f"{type(self).__name__} needs a companion as {role!r}, and has none")
        return self.companions[role]

    def begin_training(self) -> None:
        """Do what comes once before the first update, companions at hand: start from their weights, for instance."""
        return

    @abstractmethod
    def loss(self, batch: Batch, rng: torch.Generator) -> Losses:
        """Return the training objective on `batch`; all randomness but dropout comes from `rng`."""

    @abstractmethod
    def decode(self, src: Tensor, src_len: Tensor, settings: Any) -> Decoded:
        """Decode sources (see `Batch`) with lengths [b] to final tokens; all that a user waits for happens inside."""

    def log_likelihood(self, batch: Batch) -> Tensor | None:
        """Return log p(tgt | src) in nats per target, [n], or None if the family has no tractable likelihood.

        tgt may have c times as many rows as src: then c consecutive targets share a source, which is encoded once.
        """
        return None

    def next_tokens(self, batch: Batch) -> Tensor | None:
        """Return the most probable token at each place of the targets, given their own tokens before it, [b, t].

        An end of sentence counts as a token. None if the family does not predict from left to right.
        """
        return None

    def observed_modules(self) -> dict[str, list[nn.Module]]:
        """Modules whose forward calls count as passes, under "encoder" and "decoder" (calls of any one are a pass)."""
        return {}


@dataclass(frozen=True)
class Role:
    """A place for another trained system that a family can use beside its own network."""

    name: str
    """Key under a system's `companions`; the role `teacher` is filled by the system's `teacher` if not named there."""
    description: str
    autoregressive: bool | None = None
    """Which kind can fill it; None: both."""
    families: tuple[str, ...] = ()
    """Families that can fill it; empty: all of that kind."""


@dataclass(frozen=True)
class Family:
    """What a family's file offers under the name FAMILY."""

    name: str
    config: type[Options]
    settings: type[Options]
    model: Callable[[Any, DataSpec], Model]
    """Built as `model(config, data_spec)`."""
    autoregressive: bool
    title: str
    """How tables and figures call it."""
    roles: tuple[Role, ...] = ()
    """Roles that its Config or Settings may need."""
    modalities: tuple[str, ...] = ("text", "speech")
    """Sources that it can read."""
    labels: Literal["fertility", "ctc_alignment"] | None = None
    """Integers that each training pair carries in `Batch.labels`: per position of the source, how many target tokens
    are aligned to it (they sum to the target's length; of speech, positions and alignment are those of the companion
    `ctc`); or the frames of the best alignment under the companion `ctc`, empty where the target does not fit."""

    ATTRIBUTE: ClassVar[str] = "FAMILY"
