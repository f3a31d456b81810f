"""CTC non-autoregressive Transformer (Libovicky & Helcl 2018; Saharia et al. 2020).

Encoder states are upsampled by a learned projection from one state to `upsampling` frames; a stack of further layers
over the frames, with cross-attention to the encoder (Libovicky & Helcl's encoder-decoder variant) or without, predicts
a symbol or blank per frame in one pass; repeats are merged and blanks dropped. Targets hold neither bos nor eos.

Deviations: pre-norm by default; no dropout on attention weights; cross-attention by default, which Saharia et al. do
not have.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.alignment import best_alignment, ctc_loss
from models.decoding.frames import FrameSettings, decode_frames
from models.encoder import memory_mask, source_encoder
from models.interface import BOS, EOS, MASK, PAD, PLH, UNK, Batch, DataSpec, Decoded, Family, Losses, Model
from models.layers import Embedding
from models.output import OutputLayer
from models.upsampling import FrameConfig, Upsampler, frame_layers, frames_per_position


class Config(FrameConfig):
    """Shape; a change means retraining. The decoder's layers are those over frames."""


class Settings(FrameSettings):
    """Decoding; swept over one checkpoint."""


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
        """Decode in one pass; see `decode_frames`."""
        hidden, frames = self._frames(src, src_len)
        limit = self.max_target_length
        return decode_frames(self.output, hidden, frames, src_len, settings, limit, self.language_models)

    def observed_modules(self) -> dict[str, list[nn.Module]]:
        """The encoder's stack and the stack over frames."""
        return {"encoder": [self.encoder.stack], "decoder": [self.decoder]}


FAMILY = Family("ctc", Config, Settings, CTC, autoregressive=False, title="CTC")
