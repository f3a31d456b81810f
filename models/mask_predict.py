"""Mask-Predict: a conditional masked language model (Ghazvininejad et al. 2019).

Training hides n tokens of the target, n uniform in 1..|y| inclusive, and predicts them from the others and the source.
Decoding starts from a canvas of predicted length that is all masked, and makes T passes in total: before each, the
tokens of least confidence are masked again, fewer every time; tokens that stay keep the probability they were chosen
with. Lengths count neither bos nor eos, which the canvas does not hold.

With `ctc_weight` the encoder has a CTC output beside (Mask-CTC, Higuchi et al. 2020), and `start: ctc` goes on from
what that gives: tokens of less confidence than a threshold are masked and filled, an equal share in each pass, surest
first; those that stay are not touched again, and the number of tokens is that of CTC. `start: ctc_beam` fills nothing:
of the outputs of a prefix beam search it takes the one that CTC and the decoder together find most probable, the
decoder by its pseudo-log-likelihood (Salazar et al. 2020), for which several tokens are masked at a time. So the number
of tokens may change. That is one pass, of beam x maskings canvases for each source.

Deviations from the paper: pre-norm by default, no dropout on attention weights.
From its published code: n includes |y|, so that the canvas that decoding starts from is trained; before a late pass
floor(N(T-i)/T) may be no token at all (the code masks at least one), and the pass, which then changes nothing, is still
made, so that T passes are T passes; mask and unk are two symbols; special symbols are never predicted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from models.decoding.committing import Committing
from models.decoding.ctc_canvas import ctc_canvas
from models.decoding.noise import draw_seeds, uniform_noise
from models.decoding.prefix_beam import prefix_beam_search
from models.decoding.pseudo_likelihood import pseudo_log_likelihood
from models.decoding.refinement import Canvas, MaskedDecoder, MaskFiller, lowest, masked_canvas, refine_until_done
from models.fixed_length import LengthSettings
from models.interface import MASK, PAD, Batch, DataSpec, Decoded, Family, Losses, Options
from models.joint_ctc import ctc_head, with_ctc
from models.layers import BackboneConfig, padding_mask
from models.length import CanvasModel, best_candidates


class Config(BackboneConfig):
    """Shape and objective; a change means retraining."""

    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Probability mass spread evenly over the emittable symbols."""
    length_loss_weight: float = Field(1.0, gt=0)
    """Weight of a sentence's length cross-entropy beside that of one masked token."""
    canvases: int = Field(1, ge=1)
    """Maskings drawn of each target at a time (the paper: 1), which share a pass of the encoder; more of them make the
    same objective less noisy, for more time. A budget of target tokens counts a pair once."""
    ctc_weight: float = Field(0.0, ge=0, lt=1)
    """Weight of the CTC loss of the encoder per target token; what is above keeps the rest. Mask-CTC has 0.3."""
    upsampling: int | None = Field(None, ge=1)
    """CTC frames per encoder position; by default 3 for text and 1 for speech."""

    def development(self) -> Mapping[str, Any]:
        """With CTC beside, decoding starts from its output."""
        return {"start": "ctc"} if self.ctc_weight else {}


class Settings(LengthSettings):
    """Decoding; swept over one checkpoint."""

    iterations: int = Field(10, ge=1)
    """Passes T of the decoder, the first included."""
    length_beam: int = Field(1, ge=1)
    """Most probable lengths decoded side by side; the highest mean log-probability per token wins."""
    start: Literal["length", "ctc", "ctc_beam"] = "length"
    """Begin with a canvas of predicted length that is all masked, with the output of CTC (Mask-CTC), or with several
    outputs of CTC, of which one is chosen."""
    confidence: float = Field(0.999, gt=0, le=1)
    """With `start: ctc`, tokens of CTC of less probability are masked."""
    beam: int = Field(10, ge=2)
    """With `start: ctc_beam`, outputs of CTC to choose from: the beam of a prefix beam search."""
    ctc_weight: float = Field(0.3, gt=0, le=1)
    """With `start: ctc_beam`, share of CTC in the choice; the decoder has the rest, and with 1 no say."""
    maskings: int = Field(8, ge=1)
    """With `start: ctc_beam`, canvases in which the decoder judges each output; of n each hides every n-th token."""

    @model_validator(mode="after")
    def _every_value_counts(self) -> Self:
        if self.start != "length" and self.length_beam > 1:
            raise ValueError(
                f"length_beam {self.length_beam} has no effect with start: {self.start}, which predicts no length"
            )
        if self.start != "length" and self.fixed:
            raise ValueError(f"output_length source has no meaning with start: {self.start}, which has CTC's lengths")
        used = {
            "iterations": ("length", "ctc"),
            "confidence": ("ctc",),
            "beam": ("ctc_beam",),
            "ctc_weight": ("ctc_beam",),
            "maskings": ("ctc_beam",),
        }
        for name, starts in used.items():
            if self.start not in starts and name in self.departures():
                raise ValueError(f"{name} has no effect without start: {' or '.join(starts)}")
        if self.ctc_weight == 1 and "maskings" in self.departures():
            raise ValueError("maskings has no effect with ctc_weight 1, which leaves the decoder out")
        return self

    def misfit(self, config: Options) -> str | None:
        """Return why a model of `config` cannot start from CTC, if it cannot."""
        if self.start != "length" and not getattr(config, "ctc_weight", 0):
            return f"start: {self.start} needs a model that is trained with ctc_weight above 0"
        return None


class MaskPredict(CanvasModel):
    """Predicts masked tokens, each as important as any other."""

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.label_smoothing = config.label_smoothing
        self.length_loss_weight = config.length_loss_weight
        self.canvases = config.canvases
        self.ctc_weight = config.ctc_weight
        weight = self.embedding.tokens.weight
        self.ctc = ctc_head(config.ctc_weight, weight, self.encoder.max_length, data, config.upsampling)

    def loss(self, batch: Batch, rng: torch.Generator) -> Losses:
        """Smoothed cross-entropy of masked tokens plus that of lengths, divided by the masked tokens of the batch.

        So every masked token weighs the same, whichever sentence it is from and however many were masked with it. The
        CTC loss, if there is one, is divided by the target tokens.
        """
        source, length_log_probs = self.lengths.encode(self.encoder, batch.src, batch.src_len)
        memory = self.decoder.remember(source)
        tgt, tgt_len = (x.repeat_interleave(self.canvases, 0) for x in (batch.tgt, batch.tgt_len))
        masked = roll_in(tgt_len, tgt.shape[1], draw_seeds(rng, len(tgt)))
        states = self.states_at(masked, tgt, tgt_len, memory)  # [m, d]
        weight = states.new_full((len(states),), 1 / max(len(states), 1), dtype=torch.float32)
        tokens, plain = self.output.cross_entropy(states, tgt[masked], weight, self.label_smoothing)
        lengths = self.canvases * self.lengths.loss(length_log_probs, batch.tgt_len) / max(len(states), 1)
        total = tokens + self.length_loss_weight * lengths
        parts = {"cross_entropy": plain, "length": lengths.detach()}
        num_tokens = int(batch.tgt_len.sum())
        losses = Losses(total, num_tokens, parts)
        return losses if self.ctc is None else with_ctc(losses, self.ctc, self.ctc_weight, source, batch)

    def decode(self, src: Tensor, src_len: Tensor, settings: Settings) -> Decoded:
        """Decode in exactly `iterations` passes, from CTC in as many at the most, or from its beam in one.

        Scores are mean log-probabilities per token, without the length's; from CTC's beam they are what it was chosen
        by: of log-probability and pseudo-log-likelihood each its share.
        """
        if settings.start == "ctc":
            return self._from_ctc(src, src_len, settings)
        if settings.start == "ctc_beam":
            return self._from_beam(src, src_len, settings)
        memory, length_log_probs = self.encode(src, src_len)
        lengths = self.lengths.chosen(length_log_probs, src_len, settings, settings.length_beam)  # [b, c]
        network = MaskedDecoder(self.decoder, self.output, memory, lengths.shape[1])
        refiner = Remasking(network, settings.iterations)
        canvas, iterations = refine_until_done(refiner, masked_canvas(lengths.flatten()), settings.iterations)
        return best_candidates(canvas.tokens, canvas.lengths, canvas.scores, iterations, lengths.shape[1])

    def _from_ctc(self, src: Tensor, src_len: Tensor, settings: Settings) -> Decoded:
        """Decode as Mask-CTC does; a source whose tokens are all sure takes no pass."""
        assert self.ctc is not None, "suites refuse settings that do not fit the config"
        source = self.encoder(src, src_len)
        canvas = ctc_canvas(self.ctc, source)
        doubtful = (canvas.scores < math.log(settings.confidence)) & (canvas.tokens != PAD)
        masks = doubtful.sum(1)
        canvas = replace(canvas, tokens=canvas.tokens.masked_fill(doubtful, MASK))
        rows = masks.nonzero()[:, 0]
        iterations = torch.zeros_like(masks)
        if len(rows):
            network = MaskedDecoder(self.decoder, self.output, self.decoder.remember(source).select(rows), 1)
            refiner = Committing(network, masks[rows], settings.iterations)
            filled, taken = refine_until_done(refiner, canvas.select(rows), settings.iterations)
            iterations[rows] = taken
            canvas = canvas.replaced(rows, filled)
        return best_candidates(canvas.tokens, canvas.lengths, canvas.scores, iterations, 1)

    def _from_beam(self, src: Tensor, src_len: Tensor, settings: Settings) -> Decoded:
        """Choose among the outputs of CTC's prefix beam search."""
        assert self.ctc is not None, "suites refuse settings that do not fit the config"
        source = self.encoder(src, src_len)
        log_probs = self.ctc.output(self.ctc.upsample(source.states)).log_softmax(-1)
        frames = source.lengths * self.ctc.upsample.factor
        tokens, lengths, scores = prefix_beam_search(log_probs, frames, settings.beam)
        most = self.ctc.max_target_length
        tokens, lengths = tokens[:, :, :most], lengths.clamp(max=most)  # [b, k, t], [b, k]
        asked = settings.ctc_weight < 1
        if asked:
            memory, outputs = self.decoder.remember(source), (tokens.flatten(0, 1), lengths.flatten())
            judged = pseudo_log_likelihood(self.decoder, self.output, memory, *outputs, settings.maskings)
            scores = settings.ctc_weight * scores + (1 - settings.ctc_weight) * judged.view(scores.shape)
        best, winner = scores.max(1)
        rows = torch.arange(len(winner), device=winner.device)
        return Decoded(tokens[rows, winner], lengths[rows, winner], best, torch.full_like(winner, int(asked)))


def roll_in(tgt_len: Tensor, width: int, seeds: Tensor) -> Tensor:
    """Return [b, width] bool: which tokens of targets with tgt_len [b] are masked; n uniform in 1..|y|, then which."""
    count = (uniform_noise(seeds, 0, 1)[:, 0] * tgt_len).long() + 1
    noise = uniform_noise(seeds, 1, width).masked_fill(~padding_mask(tgt_len, width), float("inf"))
    return lowest(noise, count.minimum(tgt_len))


class Remasking:
    """The refiner: masks the least confident tokens again, and fills every mask."""

    def __init__(self, network: MaskFiller, iterations: int) -> None:
        self.network = network
        self.iterations = iterations

    def refine(self, canvas: Canvas, iteration: int) -> tuple[Canvas, None]:
        """Mask floor(N(T-i)/T) tokens, all N in round i = 0, and predict them; nobody is done before round T."""
        counts = canvas.lengths * (self.iterations - iteration) // self.iterations
        masked = lowest(canvas.scores, counts)  # never padding: its score is 0, and no log-probability is higher
        return self.network.fill(replace(canvas, tokens=canvas.tokens.masked_fill(masked, MASK))), None

    def select(self, rows: Tensor) -> None:
        """Keep `rows` of the network's state."""
        self.network.select(rows)


FAMILY = Family("mask_predict", Config, Settings, MaskPredict, autoregressive=False, title="Mask-Predict")
