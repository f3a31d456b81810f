"""CTC non-autoregressive Transformer (Libovicky & Helcl 2018; Saharia et al. 2020).

Encoder states are upsampled by a learned projection from one state to `upsampling` frames; a stack of further layers
over the frames, with cross-attention to the encoder (Libovicky & Helcl's encoder-decoder variant) or without, predicts
a symbol or blank per frame in one pass; repeats are merged and blanks dropped. Targets hold neither bos nor eos.

Deviations: pre-norm by default; no dropout on attention weights; cross-attention by default, which Saharia et al. do
not have.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.alignment import best_alignment, ctc_loss
from models.decoding.prefix_beam import Fusion, decode_frames
from models.encoder import memory_mask, source_encoder
from models.fixed_length import LengthSettings, refused_frames
from models.interface import BOS, EOS, MASK, PAD, PLH, UNK, Batch, DataSpec, Decoded, Family, Losses, Model, Options
from models.layers import Embedding
from models.output import OutputLayer
from models.upsampling import FrameConfig, Upsampler, frame_layers, frames_per_position


class Config(FrameConfig):
    """Shape; a change means retraining. The decoder's layers are those over frames."""


class Settings(LengthSettings):
    """Decoding; swept over one checkpoint."""

    beam: int = Field(1, ge=1)
    """Prefix beam size; 1 takes the best symbol of each frame."""
    blank_threshold: float = Field(1.0, gt=0, le=1)
    """A beam passes over frames whose blank is more probable (Chen et al. 2016): faster, but outputs may differ."""
    lm_weight: float = Field(0.0, ge=0)
    """Weight of an n-gram language model of the training targets beside CTC; needs a beam."""
    lm_order: int = Field(4, ge=1)
    """Its order: symbols that it looks at, the predicted one included."""
    lm_bonus: float = 0.0
    """Added to the score for each symbol, against the preference of language models for short text."""

    @model_validator(mode="after")
    def _every_value_counts(self) -> Self:
        if self.fixed and self.beam > 1:
            raise ValueError(f"output_length source needs beam 1, not {self.beam}")
        if self.lm_weight and self.beam == 1:
            raise ValueError("lm_weight needs a beam above 1")
        if self.blank_threshold < 1 and self.beam == 1:
            raise ValueError(f"blank_threshold {self.blank_threshold:g} has no effect without a beam above 1")
        idle = [name for name in ("lm_order", "lm_bonus") if name in self.departures()]
        if idle and not self.lm_weight:
            raise ValueError(f"{', '.join(idle)} has no effect without lm_weight")
        return self

    def language_model_order(self) -> int:
        """That of the language model, if it has any weight."""
        return self.lm_order if self.lm_weight else 0

    def misfit(self, config: Options) -> str | None:
        """Outputs as long as the source need a blank between two tokens."""
        return refused_frames(self, getattr(config, "upsampling", None))


class CTC(Model):
    """One pass over upsampled encoder states."""

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        c = config
        self.max_target_length = data.max_target_length
        self.embedding = Embedding(data.vocab_size, c.model_dim, data.source_tokens, c.dropout)
        self.encoder = source_encoder(c, data, self.embedding)
        self.upsample = Upsampler(c.model_dim, frames_per_position(c.upsampling, data), self.encoder.max_length)
        self.decoder = frame_layers(c, data)
        self.output = OutputLayer(self.embedding.tokens.weight, banned=(PAD, BOS, EOS, UNK, MASK, PLH))

    def loss(self, batch: Batch, rng: torch.Generator) -> Losses:
        """CTC loss per target token; pairs whose target needs more frames than there are count as infeasible."""
        hidden, frames = self._frames(batch.src, batch.src_len)
        total, _, feasible = ctc_loss(self.output, hidden, frames, batch.tgt, batch.tgt_len)
        num_tokens = int(batch.tgt_len.sum())
        total = total / max(num_tokens, 1)
        return Losses(total, num_tokens, {"ctc": total.detach()}, {"infeasible": int((~feasible).sum())})

    def log_likelihood(self, batch: Batch) -> Tensor:
        """Return log p(tgt | src), summed over all alignments, per target [n]; minus infinity where infeasible."""
        hidden, frames = self._frames(batch.src, batch.src_len)
        each = len(batch.tgt) // len(frames)
        hidden, frames = hidden.repeat_interleave(each, 0), frames.repeat_interleave(each)
        return -ctc_loss(self.output, hidden, frames, batch.tgt, batch.tgt_len)[1]

    def best_alignment(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the most probable alignment of each target, [b, f] symbols, and whether one fits, [b] bool.

        Beyond a sentence's frames, and throughout where the target does not fit, the alignment is PAD.
        """
        hidden, frames = self._frames(batch.src, batch.src_len)
        return best_alignment(self.output, hidden, frames, batch.tgt, batch.tgt_len)

    def _frames(self, src: Tensor, src_len: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states of all frames, [b, f, d], and the number that count, [b]."""
        source = self.encoder(src, src_len)
        frames = source.lengths * self.upsample.factor
        x = self.upsample(source.states)
        mask = memory_mask(frames, x.shape[1])
        crossing = self.decoder.layers[0].cross_attention is not None
        memory = self.decoder.project_memory(source.states) if crossing else None
        return self.decoder(x, self_mask=mask, memory=memory, memory_mask=source.mask), frames

    def decode(self, src: Tensor, src_len: Tensor, settings: Settings) -> Decoded:
        """Decode in one pass; greedy scores are the best alignment's log-probability, beam scores the prefix's.

        With a language model, what that adds is in the score.
        """
        hidden, frames = self._frames(src, src_len)
        fusion = None
        if settings.lm_weight:
            fusion = Fusion(self.language_models[settings.lm_order], settings.lm_weight, settings.lm_bonus)
        fixed = src_len if settings.fixed else None
        limit, skip = self.max_target_length, settings.blank_threshold
        return decode_frames(self.output, hidden, frames, settings.beam, limit, fusion, skip, fixed)

    def observed_modules(self) -> dict[str, list[nn.Module]]:
        """The encoder's stack and the stack over frames."""
        return {"encoder": [self.encoder.stack], "decoder": [self.decoder]}


FAMILY = Family("ctc", Config, Settings, CTC, autoregressive=False, title="CTC")
