"""Iterative refinement NAT (Lee, Mansimov & Cho 2018): a decoder learns to improve its own output, and runs until done.

The first pass reads the copied source, each later one the argmax of the pass before. In training the passes are
unrolled with the true length; the input of each later pass is, at random, the model's own output of the pass before
(the paper's latent variable, taken as a constant) or a corrupted reference (denoising autoencoder).
Every pass is trained to give the reference.

Deviations from the paper: one decoder for all passes (the paper's first pass has one of its own), which reads only
the tokens of the pass before and not its states too, so that equal output means a fixed point; the length comes from a
classifier over lengths trained along with the rest (the paper's predicts the offset from the source's length,
afterwards); the choice between own output and corrupted reference is made per sentence and pass; decoding stops
at the fixed point (the paper's at a small Jaccard distance); the mean over passes is minimised, not the sum; references
are corrupted at one rate in all passes (the authors' recipe lowers it from 0.9 to 0.1 over them);
no highway layers, no positional attention, no removal of repeated tokens; pre-norm by default, no dropout on attention
weights.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from models.canvas_inputs import uniform_copy
from models.decoding.noise import draw_seeds, uniform_noise
from models.decoding.rewriting import predicted_canvas, rewrite
from models.fixed_length import LengthSettings
from models.interface import NUM_SPECIAL, Batch, DataSpec, Decoded, Family, Losses
from models.layers import BackboneConfig, padding_mask
from models.length import CanvasModel


class Config(BackboneConfig):
    """Shape and objective; a change means retraining."""

    training_passes: int = Field(4, ge=1)
    """Passes unrolled in training, the first one over the copied source included."""
    denoising_probability: float = Field(0.5, ge=0, le=1)
    """Probability that a later pass reads a corrupted reference and not the model's own output."""
    corruption_rate: float = Field(0.1, ge=0, le=1)
    """Probability with which each token of the reference is corrupted; see `corrupt`."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Probability mass spread evenly over the emittable symbols."""
    length_loss_weight: float = Field(1.0, gt=0)
    """Weight of a sentence's length cross-entropy beside that of one token."""


class Settings(LengthSettings):
    """Decoding; swept over one checkpoint."""

    iterations: int = Field(10, ge=1)
    """Most passes of the decoder; a sentence takes fewer if a pass changes nothing."""
    length_beam: int = Field(1, ge=1)
    """Most probable lengths decoded side by side; the highest mean log-probability per token wins."""


class INAT(CanvasModel):
    """Rewrites a canvas pass by pass."""

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.config = config
        self.vocab_size = data.vocab_size

    def loss(self, batch: Batch, rng: torch.Generator) -> Losses:
        """Cross-entropy of all tokens, averaged over the unrolled passes, plus that of lengths; per target token."""
        memory, length_log_probs = self.encode(batch.src, batch.src_len)
        real = padding_mask(batch.tgt_len, batch.tgt.shape[1])
        seeds = draw_seeds(rng, len(batch.tgt))
        passes = self.config.training_passes
        canvas = uniform_copy(batch.src, batch.src_len, batch.tgt_len, batch.tgt.shape[1])
        states = []  # [n, d] each: those of the real positions
        for i in range(passes):
            x = self.decoder(canvas, batch.tgt_len, memory)
            states.append(x[real])
            if i + 1 < passes:
                canvas = self._next_input(x, batch, seeds, i)
        num_tokens = int(batch.tgt_len.sum())
        per_token = 1 / max(num_tokens, 1)
        weight = torch.full((passes * num_tokens,), per_token / passes, device=real.device)
        gold = batch.tgt[real].repeat(passes)
        tokens, plain = self.output.cross_entropy(torch.cat(states), gold, weight, self.config.label_smoothing)
        lengths = self.lengths.loss(length_log_probs, batch.tgt_len) * per_token
        total = tokens + self.config.length_loss_weight * lengths
        return Losses(total, num_tokens, {"cross_entropy": plain, "length": lengths.detach()})

    def _next_input(self, states: Tensor, batch: Batch, seeds: Tensor, step: int) -> Tensor:
        """Return what pass `step` + 1 reads, [b, t]: the output at `states` [b, t, d] or a corrupted reference."""
        width = batch.tgt.shape[1]
        with torch.no_grad():
            own = predicted_canvas(self.output, states, batch.tgt_len).tokens
        choice, operation, token = (uniform_noise(seeds, 3 * step + i, w) for i, w in enumerate((1, width, width)))
        tokens = NUM_SPECIAL + (token * (self.vocab_size - NUM_SPECIAL)).long()
        corrupted = corrupt(batch.tgt, batch.tgt_len, operation, tokens, self.config.corruption_rate)
        return torch.where(choice < self.config.denoising_probability, corrupted, own)

    def decode(self, src: Tensor, src_len: Tensor, settings: Settings) -> Decoded:
        """Decode until a pass changes nothing; scores are mean log-probabilities per token, without the length's."""
        memory, length_log_probs = self.encode(src, src_len)
        lengths = self.lengths.chosen(length_log_probs, src_len, settings, settings.length_beam)
        stops = not settings.fixed
        return rewrite(self.decoder, self.output, memory, src, src_len, lengths, settings.iterations, stops)


def corrupt(tgt: Tensor, tgt_len: Tensor, noise: Tensor, tokens: Tensor, rate: float) -> Tensor:
    """Corrupt references as Lee et al. 2018 do (after Hill et al. 2016), from left to right.

    With probability `rate` the token that stands at a position by then is either copied over the next one, or replaced
    at random, or swapped with the next one, each as likely; at the last position only the second does anything.

    Args:
        tgt: [b, t] ids; what stands beyond the lengths stays.
        tgt_len: [b].
        noise: [b, t], uniform between 0 and 1: decides what happens at each position.
        tokens: [b, t] ids that replace a token.
        rate: 0-1.
    """
    t = tgt.shape[1]
    has_next = padding_mask(tgt_len - 1, t)
    copied = (noise < rate / 3) & has_next
    replaced = (noise >= rate / 3) & (noise < 2 * rate / 3)
    swapped = (noise >= 2 * rate / 3) & (noise < rate) & has_next
    # A copy and a swap both hand the token on, perhaps over several positions: the one at hand is that of the last
    # position that none was handed to. A swap leaves the next token of the reference, which nothing has touched yet.
    untouched = torch.ones_like(copied)
    untouched[:, 1:] = ~(copied | swapped)[:, :-1]
    origin = (untouched * torch.arange(t, device=tgt.device)).cummax(1).values
    at_hand = tgt.gather(1, origin)
    following = tgt.roll(-1, 1)
    corrupted = torch.where(swapped, following, torch.where(replaced, tokens, at_hand))
    return torch.where(padding_mask(tgt_len, t), corrupted, tgt)


FAMILY = Family("inat", Config, Settings, INAT, autoregressive=False, title="iNAT", modalities=("text",))
