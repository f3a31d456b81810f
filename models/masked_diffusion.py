"""Masked diffusion: absorbing-state discrete diffusion of the target given the source.

MDLM (Sahoo et al. 2024) and LLaDA (Nie et al. 2025); decoding by a confidence threshold as in Fast-dLLM (Wu et al.
2025). It is Mask-Predict's modern twin, of the same network, and differs from it in three things: the loss masks each
token independently with probability t, t uniform in (0, 1], and weights masked tokens by 1/t, so that it is a bound of
the negative log-likelihood; a token once committed is never masked again; a sentence stops when no mask is left.

Deviations: t is kept above `min_mask_ratio` (LLaDA's code does the same), because the variance of the loss is
unbounded near 0; the length is predicted and the canvas holds neither eos nor padding; decoding commits the most
confident tokens (LLaDA's low-confidence remasking) at temperature 0, not MDLM's random ones; all at once, without
Fast-dLLM's blocks and caches; no time embedding, as in LLaDA; pre-norm by default.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from models.decoding.committing import Committing, CommittingAbove
from models.decoding.noise import draw_seeds, row_seeds, uniform_noise
from models.decoding.refinement import MaskedDecoder, Refiner, lowest, masked_canvas, refine_until_done
from models.fixed_length import LengthSettings
from models.interface import Batch, DataSpec, Decoded, Family, Losses
from models.layers import BackboneConfig, padding_mask
from models.length import CanvasModel, best_candidates

BOUND_SAMPLES = 16
"""Masks per sentence behind `log_likelihood`."""


class Config(BackboneConfig):
    """Shape and objective; a change means retraining."""

    length_loss_weight: float = Field(1.0, gt=0)
    """Weight of the length's cross-entropy; at 1 the loss bounds -log p(length, tokens | source)."""
    canvases: int = Field(1, ge=1)
    """Maskings drawn of each target at a time (the papers: 1), which share a pass of the encoder; more of them make the
    same objective less noisy, for more time. A budget of target tokens counts a pair once."""
    min_mask_ratio: float = Field(1e-3, ge=0, lt=1)
    """Least probability t with which tokens are masked; at 0 the loss is the bound exactly."""


class Settings(LengthSettings):
    """Decoding; swept over one checkpoint."""

    steps: int = Field(10, ge=1)
    """Passes of the decoder, each of which commits an equal share; a sentence of fewer tokens takes one pass each."""
    threshold: float | None = Field(None, gt=0, le=1)
    """If set, a pass commits each token of a higher probability, at least one, and `steps` does not count."""
    length_beam: int = Field(1, ge=1)
    """Most probable lengths decoded side by side; the highest mean log-probability per token wins."""

    @model_validator(mode="after")
    def _passes_are_given(self) -> Self:
        if self.fixed and self.threshold is not None:
            raise ValueError(
                "output_length source has no meaning with threshold, whose passes depend on what is learned"
            )
        return self


class MaskedDiffusion(CanvasModel):
    """Predicts masked tokens, weighted so that the objective bounds the likelihood."""

    likelihood_is_bound = True

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.length_loss_weight = config.length_loss_weight
        self.canvases = config.canvases
        self.min_mask_ratio = config.min_mask_ratio

    def loss(self, batch: Batch, rng: torch.Generator) -> Losses:
        """Cross-entropy of masked tokens over t, plus that of lengths, divided by the target tokens of the batch.

        It is an unbiased estimate of the bound per target token. A sentence of which nothing is masked adds nothing:
        drawing again would bias the bound.
        """
        memory, length_log_probs = self.encode(batch.src, batch.src_len)
        offset = torch.rand((), generator=rng, device=rng.device, dtype=torch.float64)
        tgt, tgt_len = (x.repeat_interleave(self.canvases, 0) for x in (batch.tgt, batch.tgt_len))
        ratio = mask_ratios(offset, len(tgt), self.min_mask_ratio)
        ratio = ratio.view(self.canvases, -1).T.flatten()  # those of one target spread over the range
        masked = roll_in(tgt_len, tgt.shape[1], ratio, draw_seeds(rng, len(tgt)))
        states = self.states_at(masked, tgt, tgt_len, memory)  # [m, d]
        num_tokens = int(batch.tgt_len.sum())
        weight = (1 / ratio).float()[:, None].expand(masked.shape)[masked] / max(self.canvases * num_tokens, 1)
        tokens, plain = self.output.cross_entropy(states, tgt[masked], weight)
        lengths = self.lengths.loss(length_log_probs, batch.tgt_len) / max(num_tokens, 1)
        return Losses(
            tokens + self.length_loss_weight * lengths,
            num_tokens,
            {"bound": plain + lengths.detach(), "length": lengths.detach()},
        )

    def log_likelihood(self, batch: Batch) -> Tensor:
        """Estimate a lower bound of log p(tgt | src) [n] from `BOUND_SAMPLES` masks; see `bound`."""
        return self.bound(batch, BOUND_SAMPLES)

    @torch.no_grad()
    def bound(self, batch: Batch, samples: int) -> Tensor:
        """Estimate log p(|y|) + E_n E_S [|y|/n sum_{i in S} log p(y_i | the rest)] <= log p(y) per sentence, [n].

        n is uniform in 1..|y| and S, which is masked, a uniform set of n tokens: the same expectation as over t
        (Nie et al. 2025), of less variance. n is stratified over the `samples`; all draws depend on the sentence alone,
        so the estimate is deterministic. A target of a length that cannot be predicted has probability 0.
        """
        memory, length_log_probs = self.encode(batch.src, batch.src_len)
        seeds = row_seeds(batch.tgt, batch.tgt_len, seed=0)
        offset = uniform_noise(seeds, 0, 1)[:, 0]
        real = padding_mask(batch.tgt_len, batch.tgt.shape[1])
        total = self.lengths.log_probability(length_log_probs, batch.tgt_len)
        for sample in range(samples):
            count = (((sample + offset) / samples * batch.tgt_len).long() + 1).minimum(batch.tgt_len)
            noise = uniform_noise(seeds, sample + 1, batch.tgt.shape[1]).masked_fill(~real, float("inf"))
            masked = lowest(noise, count)
            states, gold = self.states_at(masked, batch.tgt, batch.tgt_len, memory), batch.tgt[masked]
            log_probs = self.output.log_probs_of(states, gold)  # [m]
            per_token = torch.zeros(masked.shape, device=masked.device).masked_scatter(masked, log_probs)
            total = total + per_token.sum(1) * (batch.tgt_len / count.clamp(min=1) / samples)
        return total

    def decode(self, src: Tensor, src_len: Tensor, settings: Settings) -> Decoded:
        """Decode until no mask is left; scores are mean log-probabilities per token, without the length's."""
        memory, length_log_probs = self.encode(src, src_len)
        lengths = self.lengths.chosen(length_log_probs, src_len, settings, settings.length_beam)  # [b, c]
        network = MaskedDecoder(self.decoder, self.output, memory, lengths.shape[1])
        start = masked_canvas(lengths.flatten())
        if settings.threshold is None:
            refiner: Refiner = Committing(network, start.lengths, settings.steps)
            limit = settings.steps
        else:
            refiner, limit = CommittingAbove(network, settings.threshold), start.tokens.shape[1]
        canvas, iterations = refine_until_done(refiner, start, limit)
        return best_candidates(canvas.tokens, canvas.lengths, canvas.scores, iterations, lengths.shape[1])


def mask_ratios(offset: Tensor, count: int, least: float) -> Tensor:
    """Return `count` ratios t in (least, 1], float64: evenly spaced from `offset` in [0, 1) on, modulo 1.

    With a uniform `offset` each is uniform by itself, and together they cover the range (Kingma et al. 2021, as MDLM).
    """
    even = (offset + torch.arange(count, device=offset.device) / max(count, 1)) % 1  # [0, 1)
    return 1 - (1 - least) * even


def roll_in(tgt_len: Tensor, width: int, ratio: Tensor, seeds: Tensor) -> Tensor:
    """Return [b, width] bool: which tokens of targets with tgt_len [b] are masked, each with probability ratio [b]."""
    return (uniform_noise(seeds, 0, width) < ratio[:, None]) & padding_mask(tgt_len, width)


FAMILY = Family("masked_diffusion", Config, Settings, MaskedDiffusion, autoregressive=False, title="Masked diffusion")
