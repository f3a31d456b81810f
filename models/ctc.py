"""CTC non-autoregressive Transformer (Libovicky & Helcl 2018; Saharia et al. 2020).

Encoder states are upsampled by a learned projection from one state to `upsampling` frames; a stack of further layers
over the frames, with cross-attention to the encoder (Libovicky & Helcl's encoder-decoder variant) or without, predicts
a symbol or blank per frame in one pass; repeats are merged and blanks dropped. Targets hold neither bos nor eos.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from models.alignment import collapse, ctc_loss, prefix_beam_search
from models.interface import BOS, EOS, MASK, PAD, PLH, UNK, Batch, DataSpec, Decoded, Family, Losses, Model, Options
from models.layers import BackboneConfig, Embedding, SourceEncoder, Stack, padding_mask, sinusoids
from models.output import OutputLayer


class Config(BackboneConfig):
    """Shape; a change means retraining. The decoder's layers are those over frames."""

    upsampling: int = Field(3, ge=1)
    """Frames per source position."""
    cross_attention: bool = True
    """Whether the layers over frames also attend to the encoder's states."""


class Settings(Options):
    """Decoding; swept over one checkpoint."""

    beam: int = Field(1, ge=1)
    """Prefix beam size; 1 takes the best symbol of each frame."""


class CTC(Model):
    """One pass over upsampled encoder states."""

    positions: Tensor

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        c = config
        self.upsampling = c.upsampling
        self.max_target_length = data.max_target_length
        self.embedding = Embedding(data.vocab_size, c.model_dim, data.max_source_length, c.dropout)
        self.encoder = SourceEncoder(self.embedding, Stack(c.encoder_layers, *c.layer_shape))
        self.upsample = nn.Linear(c.model_dim, c.upsampling * c.model_dim)
        self.decoder = Stack(c.decoder_layers, *c.layer_shape, cross=c.cross_attention)
        self.register_buffer("positions", sinusoids(data.max_source_length * c.upsampling, c.model_dim), False)
        self.output = OutputLayer(self.embedding.tokens.weight, banned=(PAD, BOS, EOS, UNK, MASK, PLH))

    def loss(self, batch: Batch, rng: torch.Generator) -> Losses:
        """CTC loss per target token; pairs whose target needs more frames than there are count as infeasible."""
        hidden, frames = self._frames(batch.src, batch.src_len)
        total, _, feasible = ctc_loss(self.output, hidden, frames, batch.tgt, batch.tgt_len)
        num_tokens = int(batch.tgt_len.sum())
        total = total / max(num_tokens, 1)
        return Losses(total, num_tokens, {"ctc": total.detach()}, {"infeasible": int((~feasible).sum())})

    def log_likelihood(self, batch: Batch) -> Tensor:
        """Return log p(tgt | src), summed over all alignments, per sentence [b]; minus infinity where infeasible."""
        hidden, frames = self._frames(batch.src, batch.src_len)
        return -ctc_loss(self.output, hidden, frames, batch.tgt, batch.tgt_len)[1]

    def _frames(self, src: Tensor, src_len: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states of all frames, [b, f, d], and the number that count, [b]."""
        memory, memory_mask = self.encoder(src, src_len)
        b, s, d = memory.shape
        frames = src_len * self.upsampling
        x = self.upsample(memory).view(b, s * self.upsampling, d) + self.positions[: s * self.upsampling]
        mask = padding_mask(frames.clamp(min=1), s * self.upsampling)[:, None, None, :]
        crossed = None if self.decoder.layers[0].cross_attention is None else self.decoder.project_memory(memory)
        return self.decoder(x, self_mask=mask, memory=crossed, memory_mask=memory_mask), frames

    def decode(self, src: Tensor, src_len: Tensor, settings: Settings) -> Decoded:
        """Decode in one pass; greedy scores are the best alignment's log-probability, beam scores the prefix's."""
        hidden, frames = self._frames(src, src_len)
        log_probs = self.output(hidden).log_softmax(-1)  # [b, f, v]
        if settings.beam == 1:
            best, alignment = log_probs.max(-1)
            scores = best.masked_fill(~padding_mask(frames, best.shape[1]), 0.0).sum(1)
            tokens, lengths = collapse(alignment, frames)
        else:
            tokens, lengths, scores = prefix_beam_search(log_probs, frames, settings.beam)
        lengths = lengths.clamp(max=self.max_target_length)
        tokens = tokens[:, : self.max_target_length]
        return Decoded(tokens, lengths, scores, torch.ones_like(lengths))

    def observed_modules(self) -> dict[str, list[nn.Module]]:
        """The encoder's stack and the stack over frames."""
        return {"encoder": [self.encoder.stack], "decoder": [self.decoder]}


FAMILY = Family("ctc", Config, Settings, CTC, autoregressive=False, title="CTC")
