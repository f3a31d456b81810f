"""Autoregressive Transformer (Vaswani et al. 2017).

Encoder and decoder depth are separate, so that the deep-encoder, shallow-decoder model (Kasai et al. 2021) is a row
of every comparison. Deviations: pre-norm by default, no dropout on attention weights.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from models.decoding.autoregressive import beam_search, greedy, sample
from models.decoding.noise import row_seeds
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
)
from models.layers import BackboneConfig, Embedding, KeyValues, SourceEncoder, Stack, padding_mask
from models.output import OutputLayer


class Config(BackboneConfig):
    """Shape and objective; a change means retraining."""

    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Probability mass spread evenly over the emittable symbols."""


class Settings(Options):
    """Decoding; swept over one checkpoint."""

    beam: int = Field(1, ge=1)
    """Beam size; 1 is greedy."""
    length_penalty: Literal["gnmt", "power"] = "gnmt"
    """Length normalisation of beam scores: ((5+len)/6)^alpha or len^alpha, eos counted."""
    alpha: float = Field(0.6, ge=0)
    """Exponent of the length normalisation; 0 is none."""
    stopping: Literal["exact", "first_k"] = "first_k"
    """End a sentence when `beam` hypotheses are finished (customary, fast), or when no live one can still win."""
    sample: bool = False
    """Draw tokens at random instead of searching; needs beam 1."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits when sampling."""
    top_k: int = Field(0, ge=0)
    """Sample from the k most probable symbols; 0 for all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the smallest set of symbols with this mass."""
    seed: int = 1
    """Seed of sampling."""
    length_ratio: float = Field(2.0, gt=0)
    """A sentence ends at length_ratio * source length + length_extra tokens."""
    length_extra: int = Field(10, ge=0)
    """See length_ratio."""

    @model_validator(mode="after")
    def _sampling_has_no_beam(self) -> Settings:
        if self.sample and self.beam != 1:
            raise ValueError(f"sample needs beam 1, not {self.beam}")
        return self


class Transformer(Model):
    """Encoder-decoder with tied embeddings."""

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        c = config
        self.label_smoothing = c.label_smoothing
        self.max_target_length = data.max_target_length
        positions = max(data.max_source_length, data.max_target_length) + 1
        self.embedding = Embedding(data.vocab_size, c.model_dim, positions, c.dropout)
        self.encoder = SourceEncoder(self.embedding, Stack(c.encoder_layers, *c.layer_shape))
        self.decoder = Stack(c.decoder_layers, *c.layer_shape, cross=True)
        self.output = OutputLayer(self.embedding.tokens.weight, banned=(PAD, BOS, UNK, MASK, BLANK, PLH))

    def loss(self, batch: Batch, rng: torch.Generator) -> Losses:
        """Label-smoothed cross-entropy of tokens and eos, per target token."""
        hidden, target, _ = self._teacher_forced(batch)
        num_tokens = int(batch.tgt_len.sum())
        row_weight = torch.full((hidden.shape[0],), 1.0 / max(num_tokens, 1), device=hidden.device)
        total, plain = self.output.cross_entropy(hidden, target, row_weight, self.label_smoothing)
        return Losses(total, num_tokens, {"cross_entropy": plain})

    def log_likelihood(self, batch: Batch) -> Tensor:
        """Return log p(tgt, eos | src) per sentence, [b]."""
        hidden, target, real = self._teacher_forced(batch)
        log_probs = self.output(hidden).log_softmax(-1).gather(1, target[:, None])[:, 0]
        per_token = real.new_zeros(real.shape, dtype=torch.float32).masked_scatter(real, log_probs)
        return per_token.sum(1)

    def _teacher_forced(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return states [n, d] and gold symbols [n] of the real positions, and their mask [b, t+1]."""
        b, t = batch.tgt.shape
        inputs = torch.cat([batch.tgt.new_full((b, 1), BOS), batch.tgt], dim=1)  # [b, t+1]
        gold = torch.cat([batch.tgt, batch.tgt.new_full((b, 1), PAD)], dim=1)
        gold.scatter_(1, batch.tgt_len[:, None], EOS)
        real = padding_mask(batch.tgt_len + 1, t + 1)
        memory, mask = self.encoder(batch.src, batch.src_len)
        states = self.decoder(
            self.embedding(inputs), causal=True, memory=self.decoder.project_memory(memory), memory_mask=mask
        )
        return states[real], gold[real], real

    def decode(self, src: Tensor, src_len: Tensor, settings: Settings) -> Decoded:
        """Decode greedily, by beam search or by sampling; see `Settings`."""
        limits = (src_len * settings.length_ratio + settings.length_extra).long().clamp(max=self.max_target_length)
        stepper = self.stepper(src, src_len, int(limits.max()) + 1 if len(limits) else 1, settings.beam)
        if settings.sample:
            seeds = row_seeds(src, src_len, settings.seed)
            return sample(stepper, limits, seeds, settings.temperature, settings.top_k, settings.top_p)
        if settings.beam == 1:
            return greedy(stepper, limits)
        return beam_search(stepper, limits, settings.beam, settings.length_penalty, settings.alpha, settings.stopping)

    def stepper(self, src: Tensor, src_len: Tensor, size: int, beam: int = 1) -> TransformerStepper:
        """Encode src [b, s] and return the incremental state of b x beam rows for up to `size` steps."""
        memory, mask = self.encoder(src, src_len)
        return TransformerStepper(self, self.decoder.project_memory(memory), mask, size, beam)

    def observed_modules(self) -> dict[str, list[torch.nn.Module]]:
        """The encoder's stack, and the decoder's last norm, which every cached step runs once."""
        return {"encoder": [self.encoder.stack], "decoder": [self.decoder.final_norm]}


class TransformerStepper:
    """KV caches of one decode: preallocated for self-attention, computed once for cross-attention."""

    def __init__(
        self, model: Transformer, memory: list[tuple[Tensor, Tensor]], mask: Tensor, size: int, beam: int
    ) -> None:
        self.model = model
        self.memory = memory
        self.mask = mask
        self.position = 0
        self.caches: list[KeyValues] = model.decoder.empty_caches(mask.shape[0] * beam, size, like=memory[0][0])

    def step(self, tokens: Tensor) -> Tensor:
        """Consume tokens [n], return float32 logits [n, v]."""
        x = self.model.embedding(tokens[:, None], start=self.position)
        self.position += 1
        states = self.model.decoder.step(x, self.caches, self.memory, self.mask)
        logits: Tensor = self.model.output(states[:, 0])
        return logits

    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        """Keep rows of every cache and sentences of the encoder memory, which the beams of a sentence share."""
        for cache in self.caches:
            cache.select(rows)
        if sentences is not None:
            self.memory = [(k.index_select(0, sentences), v.index_select(0, sentences)) for k, v in self.memory]
            self.mask = self.mask.index_select(0, sentences)


FAMILY = Family("transformer", Config, Settings, Transformer, autoregressive=True, title="Transformer AR")
