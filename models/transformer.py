"""Autoregressive Transformer (Vaswani et al. 2017).

Encoder and decoder depth are separate, so that the deep-encoder, shallow-decoder model (Kasai et al. 2021) is a row
of every comparison. Deviations: pre-norm by default, no dropout on attention weights. Greedy search and sampling can be
sped up without another result by a draft (speculative decoding; see `models.decoding.speculative`).

With `ctc_weight` the encoder has a CTC output beside, for training and for decoding (Watanabe et al. 2017).
"""

from __future__ import annotations

from functools import partial
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from models.attention import Block, KeyValues
from models.decoding.joint import ctc_scorer
from models.decoding.noise import row_seeds
from models.decoding.settings import AutoregressiveSettings, search
from models.decoding.speculative import Sampler, drafter_from, speculative
from models.encoder import Encoded, source_encoder
from models.interface import (
    BLANK,
    BOS,
    EOS,
    MASK,
    PAD,
    PLH,
    UNK,
    Batch,
    DataSpec,
    Decoded,
    Family,
    Losses,
    Model,
    Options,
    Role,
)
from models.joint_ctc import ctc_head, with_ctc
from models.layers import BackboneConfig, Embedding, Stack, padding_mask
from models.output import OutputLayer
from models.peers.peer import MODULES, PACKAGES, Engine, Peer, Request, make_peer


class Config(BackboneConfig):
    """Shape and objective; a change means retraining."""

    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Probability mass spread evenly over the emittable symbols."""
    ctc_weight: float = Field(0.0, ge=0, lt=1)
    """Weight of the CTC loss of the encoder per target token; what is above keeps the rest. Hybrids of speech: 0.3."""


class Settings(AutoregressiveSettings):
    """Decoding; swept over one checkpoint."""

    engine: Engine = "natbench"
    """Who decodes with this model's weights: our own search, or another engine to compare it with (`models.peers`)."""
    draft_tokens: int = Field(0, ge=0)
    """Most tokens of the companion `draft` that a pass verifies (speculative decoding; needs beam 1); 0 is no draft."""

    @model_validator(mode="after")
    def _draft_has_no_beam(self) -> Self:
        if self.draft_tokens and self.beam != 1:
            raise ValueError(f"draft_tokens {self.draft_tokens} needs beam 1, not {self.beam}")
        if self.draft_tokens and self.ctc_weight:
            raise ValueError(f"ctc_weight {self.ctc_weight:g} has no meaning with draft_tokens")
        if self.draft_tokens and self.fixed:
            raise ValueError("output_length source has no meaning with draft_tokens: what a draft saves is learned")
        return self

    @model_validator(mode="after")
    def _engine_searches_as_asked(self) -> Self:
        if self.engine == "natbench":
            return self
        if self.sample or self.draft_tokens:
            raise ValueError(f"engine {self.engine} neither samples nor takes a draft")
        if self.ctc_weight:
            raise ValueError(f"engine {self.engine} has no CTC, and ctc_weight is {self.ctc_weight:g}")
        if self.beam > 1 and (self.length_penalty != "power" or self.stopping != "first_k"):
            raise ValueError(
                f"engine {self.engine} needs length_penalty power and stopping first_k, "
                f"not {self.length_penalty} and {self.stopping}"
            )
        return self

    def by_own_modules(self) -> bool:
        """Other engines hold copies."""
        return self.engine == "natbench"

    def modules(self) -> tuple[str, ...]:
        """Those of the engine."""
        return MODULES.get(self.engine, ())

    def packages(self) -> tuple[str, ...]:
        """The engine's."""
        return PACKAGES.get(self.engine, ())

    def unfit(self, modality: str) -> str | None:
        """Other engines read text alone."""
        other = self.engine != "natbench" and modality != "text"
        return f"engine {self.engine} reads text" if other else super().unfit(modality)

    def misfit(self, config: Options) -> str | None:
        """Other engines know the pre-norm Transformer alone, and CTC must have been trained."""
        if self.engine != "natbench" and (getattr(config, "norm", "pre") != "pre" or getattr(config, "convolution", 0)):
            return f"engine {self.engine} needs norm pre and no convolution"
        return super().misfit(config)

    def needs(self, modality: str = "text") -> frozenset[str]:
        """A draft, for speculative decoding."""
        return frozenset({"draft"} if self.draft_tokens else ())


class Transformer(Model):
    """Encoder-decoder with tied embeddings."""

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        c = config
        self.label_smoothing = c.label_smoothing
        self.max_target_length = data.max_target_length
        positions = max(data.source_tokens, data.max_target_length) + 1
        self.embedding = Embedding(data.vocab_size, c.model_dim, positions, c.dropout)
        self.encoder = source_encoder(c, data, self.embedding)
        self.decoder = Stack(c.decoder_layers, *c.layer_shape, cross=True)
        self.output = OutputLayer(self.embedding.tokens.weight, banned=(PAD, BOS, UNK, MASK, BLANK, PLH))
        self.ctc_weight = c.ctc_weight
        self.ctc = ctc_head(c.ctc_weight, self.output.weight, self.encoder.max_length, data)
        self.peers: dict[Engine, Peer] = {}

    def loss(self, batch: Batch, rng: torch.Generator) -> Losses:
        """Label-smoothed cross-entropy of tokens and eos, per target token, and that of CTC if there is one."""
        source = self.encoder(batch.src, batch.src_len)
        hidden, target, _ = self.teacher_forced(batch, source)
        num_tokens = int(batch.tgt_len.sum())
        row_weight = torch.full((hidden.shape[0],), 1.0 / max(num_tokens, 1), device=hidden.device)
        total, plain = self.output.cross_entropy(hidden, target, row_weight, self.label_smoothing)
        losses = Losses(total, num_tokens, {"cross_entropy": plain})
        return losses if self.ctc is None else with_ctc(losses, self.ctc, self.ctc_weight, source, batch)

    @torch.no_grad()
    def log_likelihood(self, batch: Batch) -> Tensor:
        """Return log p(tgt, eos | src) per target, [n], without gradient; n/b consecutive targets share a source."""
        hidden, target, real = self.teacher_forced(batch)
        log_probs = self.output.log_probs_of(hidden, target)
        return real.new_zeros(real.shape, dtype=torch.float32).masked_scatter(real, log_probs).sum(1)

    def next_tokens(self, batch: Batch) -> Tensor:
        """Return the most probable token at each place of the targets, given those before it, [b, t]."""
        hidden, _, real = self.teacher_forced(batch)
        best, _ = self.output.most_probable(hidden)
        return batch.tgt.new_full(real.shape, PAD).masked_scatter(real, best)[:, :-1]

    def teacher_forced(self, batch: Batch, source: Encoded | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return states [n, d] and gold symbols [n] of the real positions of all targets, and their mask [b, t+1].

        source: the encoded sources, if they are encoded already.
        """
        b, t = batch.tgt.shape
        inputs = torch.cat([batch.tgt.new_full((b, 1), BOS), batch.tgt], dim=1)  # [b, t+1]
        gold = torch.cat([batch.tgt, batch.tgt.new_full((b, 1), PAD)], dim=1)
        gold.scatter_(1, batch.tgt_len[:, None], EOS)
        real = padding_mask(batch.tgt_len + 1, t + 1)
        source = source or self.encoder(batch.src, batch.src_len)
        memory = self.decoder.project_memory(source.states)
        states = self.decoder(self.embedding(inputs), causal=True, memory=memory, memory_mask=source.mask)
        return states[real], gold[real], real

    def decode(self, src: Tensor, src_len: Tensor, settings: Settings) -> Decoded:
        """Decode greedily, by beam search or by sampling, the first and last with a draft if asked; see `Settings`."""
        if settings.engine != "natbench":
            return self._by_peer(src, src_len, settings)
        if not settings.draft_tokens:
            return search(partial(self.stepper, src, src_len), src, src_len, settings, self.max_target_length)
        limits = settings.limits(src_len, self.max_target_length)
        longest = int(limits.max()) if len(limits) else 0
        size = longest + 1 + min(settings.draft_tokens, longest)
        sampler = Sampler(settings.temperature, settings.top_k, settings.top_p) if settings.sample else None
        drafter = drafter_from(self.companion("draft"), src, src_len, size, sampler)
        seeds = row_seeds(src, src_len, settings.seed)
        stepper = self.block_stepper(src, src_len, size)
        return speculative(stepper, drafter, limits, settings.draft_tokens, seeds, sampler)

    def _by_peer(self, src: Tensor, src_len: Tensor, settings: Settings) -> Decoded:
        """Decode by another engine, which holds the weights that were there when it was first asked."""
        if src.is_floating_point():
            raise ValueError(f"engine {settings.engine} reads text, not speech")
        if settings.engine not in self.peers:
            self.peers[settings.engine] = make_peer(settings.engine, self)
        limits = settings.limits(src_len, self.max_target_length)
        request = Request(src, src_len, limits, self.max_target_length, settings.beam, settings.alpha, settings.fixed)
        try:
            return self.peers[settings.engine].decode(request)
        except BaseException:  # whatever state it is in, the next one starts afresh
            self.peers.pop(settings.engine).close()
            raise

    def stepper(self, src: Tensor, src_len: Tensor, size: int, beam: int = 1) -> TransformerStepper:
        """Encode sources and return the incremental state of b x beam rows for up to `size` steps."""
        source = self.encoder(src, src_len)
        return TransformerStepper(self, source, size, beam)

    def block_stepper(self, src: Tensor, src_len: Tensor, size: int) -> TransformerStepper:
        """Encode sources and return a `BlockStepper` over `size` positions; by this a model can be a draft."""
        return self.stepper(src, src_len, size)

    def observed_modules(self) -> dict[str, list[torch.nn.Module]]:
        """The encoder's stack, and the decoder's last norm, which every cached step runs once."""
        return {"encoder": [self.encoder.stack], "decoder": [self.decoder.final_norm]}


class TransformerStepper:
    """KV caches of one decode: preallocated for self-attention, computed once for cross-attention."""

    def __init__(self, model: Transformer, source: Encoded, size: int, beam: int) -> None:
        self.model = model
        self.memory = model.decoder.project_memory(source.states)
        self.mask = source.mask
        self.position = 0
        rows = len(source.states) * beam
        self.caches: list[KeyValues] = model.decoder.empty_caches(rows, size, like=self.memory[0][0])
        self.scorer = partial(ctc_scorer, model.ctc, source, beam)

    def step(self, tokens: Tensor) -> Tensor:
        """Consume tokens [n], return float32 logits [n, v]."""
        x = self.model.embedding(tokens[:, None], start=self.position)
        self.position += 1
        states = self.model.decoder.step(x, self.caches, self.memory, self.mask)
        logits: Tensor = self.model.output(states[:, 0])
        return logits

    def step_block(self, tokens: Tensor, starts: Tensor, end: int) -> Tensor:
        """Consume tokens [n, m] at positions starts [n] and on, all below `end`; return float32 logits [n, m, v].

        Forgets what was consumed at or after these positions before; not to be mixed with `step`.
        """
        block = Block.after(starts, tokens.shape[1], end)
        x = self.model.embedding.at(tokens, block.positions)
        states = self.model.decoder.step(x, self.caches, self.memory, self.mask, block)
        logits: Tensor = self.model.output(states)
        return logits

    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        """Keep rows of every cache and sentences of the encoder memory, which the beams of a sentence share."""
        for cache in self.caches:
            cache.select(rows)
        if sentences is not None:
            self.memory = [(k.index_select(0, sentences), v.index_select(0, sentences)) for k, v in self.memory]
            self.mask = self.mask.index_select(0, sentences)


FAMILY = Family(
    "transformer",
    Config,
    Settings,
    Transformer,
    autoregressive=True,
    title="Transformer AR",
    roles=(Role("draft", "proposes tokens that this model verifies several at a time (speculative decoding)"),),
)
