"""How an autoregressive model decodes: the settings that such families share, and the search that they name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, Self

from pydantic import Field, model_validator
from torch import Tensor

from models.decoding.autoregressive import Prolonged, Stepper, greedy, sample
from models.decoding.beam import beam_search
from models.decoding.joint import Scorer
from models.decoding.noise import row_seeds
from models.fixed_length import LengthSettings
from models.interface import Decoded, Options

SAMPLING = ("temperature", "top_k", "top_p", "seed")
SEARCH = ("length_penalty", "alpha", "stopping")
LIMITS = ("length_ratio", "length_extra")


class AutoregressiveSettings(LengthSettings):
    """Decoding; swept over one checkpoint."""

    beam: int = Field(1, ge=1)
    """Beam size; 1 is greedy."""
    length_penalty: Literal["gnmt", "power"] = "gnmt"
    """Length normalisation of beam scores: ((5+len)/6)^alpha or len^alpha, eos counted."""
    alpha: float = Field(0.6, ge=0)
    """Exponent of the length normalisation; 0 is none."""
    stopping: Literal["exact", "first_k"] = "first_k"
    """End a sentence when `beam` hypotheses are finished (customary, fast), or when no live one can still win."""
    ctc_weight: float = Field(0.0, ge=0, lt=1)
    """Share of CTC in the score of a hypothesis (joint decoding, Watanabe 2017); attention has the rest."""
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
    def _every_value_counts(self) -> Self:
        """Refuse what would have no effect: a row of a table that says `temperature=0.5` must not be greedy."""
        if self.sample and self.beam != 1:
            raise ValueError(f"sample needs beam 1, not {self.beam}")
        if self.ctc_weight and self.sample:
            raise ValueError(f"ctc_weight {self.ctc_weight:g} has no meaning with sample: true")
        if self.ctc_weight and self.fixed:
            raise ValueError(f"ctc_weight {self.ctc_weight:g} has no meaning with output_length source")
        departures = self.departures()
        needed = (
            (SAMPLING, not self.sample and "sample: true"),
            (SEARCH, self.beam == 1 and not self.ctc_weight and "a beam"),
            (LIMITS, self.fixed and "output_length: model"),
        )
        for names, missing in needed:
            idle = [name for name in names if name in departures]
            if missing and idle:
                raise ValueError(f"{', '.join(idle)} has no effect without {missing}")
        return self

    def misfit(self, config: Options) -> str | None:
        """Return why a model of `config` cannot decode jointly with CTC, if it cannot."""
        if self.ctc_weight and not getattr(config, "ctc_weight", 0):
            return "ctc_weight needs a model that is trained with ctc_weight above 0"
        return None

    def limits(self, src_len: Tensor, max_target_length: int) -> Tensor:
        """Return the most tokens that each sentence may emit, [b] int64, for source lengths [b]."""
        if self.fixed:
            return src_len.clamp(max=max_target_length)
        return (src_len * self.length_ratio + self.length_extra).long().clamp(max=max_target_length)


class JointStepper(Stepper, Protocol):
    """A stepper whose model may have a CTC output beside."""

    def scorer(self, weight: float) -> Scorer:
        """Return the CTC scores of the sentences' hypotheses, for decoding with share `weight` of CTC."""
        ...


def search(
    stepper: Callable[[int, int], JointStepper],
    src: Tensor,
    src_len: Tensor,
    settings: AutoregressiveSettings,
    max_target_length: int,
) -> Decoded:
    """Decode greedily, by beam search or by sampling, as `settings` say.

    Args:
        stepper: called once as `stepper(size, beam)`; encodes the sources and returns the incremental state of
            b x beam rows, the beams of a sentence side by side, for at most `size` steps.
        src: [b, s] source ids; sampling draws its noise by them.
        src_len: [b].
        settings: which search, and its parameters.
        max_target_length: most tokens of any output, whatever the settings say.
    """
    limits = settings.limits(src_len, max_target_length)
    joint = stepper(int(limits.max()) + 1 if len(limits) else 1, settings.beam)
    scorer = joint.scorer(settings.ctc_weight) if settings.ctc_weight and len(limits) else None
    state = Prolonged(joint, limits, settings.beam) if settings.fixed else joint
    if settings.sample:
        seeds = row_seeds(src, src_len, settings.seed)
        return sample(state, limits, seeds, settings.temperature, settings.top_k, settings.top_p)
    if settings.beam == 1 and not scorer:
        return greedy(state, limits)
    how = (settings.length_penalty, settings.alpha, settings.stopping)
    return beam_search(state, limits, settings.beam, *how, scorer=scorer)
