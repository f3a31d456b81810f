"""Glancing Transformer (GLAT, Qian et al. 2021) with length prediction: one pass, trained with glimpses of the target.

In training a first pass without gradient predicts the target; the more of it is wrong, the more target tokens, drawn
from all positions, replace the inputs of a second pass with the same dropout, which learns the tokens that it was not
shown. The share falls linearly with training. `glat_ctc` is the same with CTC in place of the length.

Deviations from the paper: decoder inputs are embeddings of the evenly copied source tokens (no attention-weighted
"soft" copy); the length loss is that of Ghazvininejad et al. 2019; length candidates are ranked by the model itself and
not by an autoregressive one; pre-norm by default, no dropout on attention weights.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from models.canvas_inputs import uniform_copy
from models.decoding.noise import draw_seeds, uniform_noise
from models.decoding.rewriting import predicted_canvas, rewrite
from models.fixed_length import LengthSettings
from models.glancing import GlancingConfig, first_pass, reveal
from models.interface import Batch, DataSpec, Decoded, Family, Losses
from models.layers import padding_mask
from models.length import CanvasModel


class Config(GlancingConfig):
    """Shape and objective; a change means retraining."""

    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Probability mass spread evenly over the emittable symbols."""
    length_loss_weight: float = Field(1.0, gt=0)
    """Weight of a sentence's length cross-entropy beside that of one token."""


class Settings(LengthSettings):
    """Decoding; swept over one checkpoint."""

    length_beam: int = Field(1, ge=1)
    """Most probable lengths decoded side by side; the highest mean log-probability per token wins."""


class GLAT(CanvasModel):
    """Predicts all tokens in one pass from the copied source."""

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.config = config

    def loss(self, batch: Batch, rng: torch.Generator) -> Losses:
        """Smoothed cross-entropy of the tokens that are not revealed plus that of lengths; per target token."""
        memory, length_log_probs = self.encode(batch.src, batch.src_len)
        width = batch.tgt.shape[1]
        real = padding_mask(batch.tgt_len, width)
        copied = uniform_copy(batch.src, batch.src_len, batch.tgt_len, width)
        with first_pass(real.device):
            states = self.decoder(copied, batch.tgt_len, memory)
            prediction = predicted_canvas(self.output, states, batch.tgt_len).tokens
        noise = uniform_noise(draw_seeds(rng, len(real)), 0, width)
        revealed = reveal(prediction, batch.tgt, real, self.config.glancing_ratio(self.progress), noise)
        states = self.decoder(torch.where(revealed, batch.tgt, copied), batch.tgt_len, memory)
        hidden = real & ~revealed
        num_tokens = int(batch.tgt_len.sum())
        per_token = 1 / max(num_tokens, 1)
        gold = batch.tgt[hidden]
        weight = torch.full((len(gold),), per_token, device=real.device)
        tokens, plain = self.output.cross_entropy(states[hidden], gold, weight, self.config.label_smoothing)
        lengths = self.lengths.loss(length_log_probs, batch.tgt_len) * per_token
        total = tokens + self.config.length_loss_weight * lengths
        parts = {"cross_entropy": plain, "length": lengths.detach(), "revealed": revealed.sum() * per_token}
        return Losses(total, num_tokens, parts)

    def log_likelihood(self, batch: Batch) -> Tensor:
        """Return log p(length, tgt | src) per target, [n]; minus infinity for lengths that it cannot predict."""
        n, width = batch.tgt.shape
        memory, length_log_probs = self.encode(batch.src, batch.src_len)
        length_log_probs = length_log_probs.repeat_interleave(n // len(batch.src), 0)
        longest = self.lengths.max_length
        of_length = length_log_probs.gather(1, batch.tgt_len.clamp(max=longest)[:, None])[:, 0]
        real = padding_mask(batch.tgt_len, width)
        copied = uniform_copy(batch.src, batch.src_len, batch.tgt_len, width)
        states = self.decoder(copied, batch.tgt_len, memory)
        log_probs = self.output(states[real]).log_softmax(-1).gather(1, batch.tgt[real][:, None])[:, 0]
        of_tokens = torch.zeros_like(real, dtype=torch.float32).masked_scatter(real, log_probs).sum(1)
        return (of_length + of_tokens).masked_fill(batch.tgt_len > longest, float("-inf"))

    def decode(self, src: Tensor, src_len: Tensor, settings: Settings) -> Decoded:
        """Decode in one pass; scores are mean log-probabilities per token, without the length's."""
        memory, length_log_probs = self.encode(src, src_len)
        lengths = self.lengths.chosen(length_log_probs, src_len, settings, settings.length_beam)
        return rewrite(self.decoder, self.output, memory, src, src_len, lengths, max_iterations=1)


FAMILY = Family("glat", Config, Settings, GLAT, autoregressive=False, title="GLAT", modalities=("text",))
