"""Glancing Transformer with CTC (Qian et al. 2021; CTC as in Libovicky & Helcl 2018): no length, one pass over frames.

As in `glat`, a first pass without gradient decides how much a second pass with the same dropout is shown. What is shown
comes from the best alignment of the reference under the first pass's own output (Viterbi): the Hamming distance counts
the frames where the first pass differs from it, and frames drawn from all, blanks included, have their inputs replaced
by the embeddings of its symbols. The loss is CTC over all frames, shown or not. Pairs whose target needs more frames
than there are count as infeasible and are not trained on.

Deviations from the paper: pre-norm by default, no dropout on attention weights, and none on the frames' inputs.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from models.alignment import best_alignment, ctc_loss
from models.decoding.frames import FrameSettings, decode_frames
from models.decoding.noise import draw_seeds, uniform_noise
from models.encoder import CanvasDecoder, Memory, source_encoder
from models.glancing import GlancingConfig, first_pass, reveal
from models.interface import BOS, EOS, MASK, PAD, PLH, UNK, Batch, DataSpec, Decoded, Family, Losses, Model
from models.layers import Embedding, Stack, padding_mask
from models.output import OutputLayer
from models.upsampling import Upsampler, frames_per_position


class Config(GlancingConfig):
    """Shape and objective; a change means retraining. The decoder's layers are those over frames."""

    upsampling: int | None = Field(None, ge=1)
    """Frames per encoder position; by default 3 for text, and 1 for speech, which has more of them than it needs."""


class Settings(FrameSettings):
    """Decoding; swept over one checkpoint."""


class GLATCTC(Model):
    """One pass over upsampled encoder states."""

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        c = self.config = config
        self.max_target_length = data.max_target_length
        self.embedding = Embedding(data.vocab_size, c.model_dim, data.source_tokens, c.dropout)
        self.encoder = source_encoder(c, data, self.embedding)
        self.upsample = Upsampler(c.model_dim, frames_per_position(c.upsampling, data), self.encoder.max_length)
        self.decoder = CanvasDecoder(self.embedding, Stack(c.decoder_layers, *c.layer_shape, cross=True))
        self.output = OutputLayer(self.embedding.tokens.weight, banned=(PAD, BOS, EOS, UNK, MASK, PLH))

    def loss(self, batch: Batch, rng: torch.Generator) -> Losses:
        """CTC loss of the second pass per target token; infeasible pairs are counted."""
        inputs, frames, memory = self._inputs(batch.src, batch.src_len)
        real = padding_mask(frames, inputs.shape[1])
        target = (batch.tgt, batch.tgt_len)
        with first_pass(real.device):
            states = self.decoder.run(inputs, frames, memory)
            alignment, feasible = best_alignment(self.output, states, frames, *target)
            prediction = alignment.masked_scatter(real, self.output.most_probable(states[real])[0])
        noise = uniform_noise(draw_seeds(rng, len(real)), 0, real.shape[1])
        countable = real & feasible[:, None]
        revealed = reveal(prediction, alignment, countable, self.config.glancing_ratio(self.progress), noise)
        inputs = torch.where(revealed[:, :, None], self._shown(alignment), inputs)
        states = self.decoder.run(inputs, frames, memory)
        total, _, feasible = ctc_loss(self.output, states, frames, *target)
        num_tokens = int(batch.tgt_len.sum())
        total = total / max(num_tokens, 1)
        parts = {"ctc": total.detach(), "revealed": revealed.sum() / countable.sum().clamp(min=1)}
        return Losses(total, num_tokens, parts, {"infeasible": int((~feasible).sum())})

    def _inputs(self, src: Tensor, src_len: Tensor) -> tuple[Tensor, Tensor, Memory]:
        """Return the inputs of all frames [b, f, d], the number that count [b], and what the decoder attends to."""
        source = self.encoder(src, src_len)
        return self.upsample(source.states), source.lengths * self.upsample.factor, self.decoder.remember(source)

    def _shown(self, alignment: Tensor) -> Tensor:
        """Return the inputs of frames whose symbols are given by alignment [b, f], [b, f, d]."""
        tokens: Tensor = self.embedding.tokens(alignment) * self.embedding.scale
        return tokens + self.upsample.positions[: alignment.shape[1]]

    def log_likelihood(self, batch: Batch) -> Tensor:
        """Return log p(tgt | src), summed over all alignments, per target [n]; minus infinity where infeasible."""
        inputs, frames, memory = self._inputs(batch.src, batch.src_len)
        states = self.decoder.run(inputs, frames, memory)
        each = len(batch.tgt) // len(frames)
        states, frames = states.repeat_interleave(each, 0), frames.repeat_interleave(each)
        return -ctc_loss(self.output, states, frames, batch.tgt, batch.tgt_len)[1]

    def decode(self, src: Tensor, src_len: Tensor, settings: Settings) -> Decoded:
        """Decode in one pass; see `decode_frames`."""
        inputs, frames, memory = self._inputs(src, src_len)
        hidden = self.decoder.run(inputs, frames, memory)
        limit = self.max_target_length
        return decode_frames(self.output, hidden, frames, src_len, settings, limit, self.language_models)

    def observed_modules(self) -> dict[str, list[nn.Module]]:
        """The encoder's stack and the stack over frames."""
        return {"encoder": [self.encoder.stack], "decoder": [self.decoder.stack]}


FAMILY = Family("glat_ctc", Config, Settings, GLATCTC, autoregressive=False, title="GLAT + CTC")
