"""From the states of frames to output: the settings, and the way, of the families whose loss is CTC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator
from torch import Tensor

from models.alignment import collapse
from models.decoding.prefix_beam import Fusion, prefix_beam_search
from models.fixed_length import LengthSettings, refused_frames, spaced_out
from models.interface import Decoded, LanguageModel, Options
from models.layers import padding_mask
from models.output import OutputLayer


class FrameSettings(LengthSettings):
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


def decode_frames(
    output: OutputLayer,
    hidden: Tensor,
    frames: Tensor,
    src_len: Tensor,
    settings: FrameSettings,
    max_length: int,
    language_models: Mapping[int, LanguageModel],
) -> Decoded:
    """Return the output of one pass: the best alignment collapsed, or what a prefix beam search finds.

    Args:
        output: gives the symbols' probabilities.
        hidden: [b, f, d] states of the frames.
        frames: [b] frames that count.
        src_len: [b] lengths of the sources.
        settings: how to decode.
        max_length: longest output, in tokens.
        language_models: by order; the one that the settings ask for.

    Greedy scores are the log-probability of the best alignment, beam scores what the search ranks by: with a language
    model, what that adds is in it.
    """
    if settings.beam == 1:
        alignment, best = (x.view(hidden.shape[:2]) for x in output.most_probable(hidden.flatten(0, 1)))
        scores = best.masked_fill(~padding_mask(frames, best.shape[1]), 0.0).sum(1)
        if settings.fixed:
            alignment = spaced_out(alignment, frames, src_len)
        tokens, lengths = collapse(alignment, frames)
    else:
        fusion = None
        if settings.lm_weight:
            fusion = Fusion(language_models[settings.lm_order], settings.lm_weight, settings.lm_bonus)
        log_probs = output(hidden).log_softmax(-1)  # [b, f, v]
        held, counts, totals = prefix_beam_search(log_probs, frames, settings.beam, fusion, settings.blank_threshold)
        lengths, scores = counts[:, 0], totals[:, 0]
        tokens = held[:, 0, : int(lengths.max()) if len(lengths) else 0]
    lengths = lengths.clamp(max=max_length)
    return Decoded(tokens[:, :max_length], lengths, scores, lengths.new_ones(lengths.shape))
