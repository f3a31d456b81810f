"""Quality metrics over detokenised text, with intervals by bootstrap over sentences.

Each metric is a function of sums over sentences; a score is that function of the corpus' sums, never a mean of
per-sentence rates, and its interval comes from resampling the rows (`bench.stats`). Rates and shares are percentages.

- `bleu`, `chrf`, `ter`: sacreBLEU's defaults (BLEU with tokeniser 13a, chrF2, case-insensitive TER), all references.
- `cer`, `wer`: edits by jiwer over reference length, with its default clean-up (ends stripped; for words, runs of white
  space merged). Of several references the one with the fewest edits counts, the longer one of equals. What is said
  where the reference is empty counts as insertions and adds nothing to the length; if the references of the whole
  corpus are empty, the rate is 0 without edits and 100 with any, as sacreBLEU has it for TER.
- `cer_substitutions`, `cer_deletions`, `cer_insertions`, and the same of `wer`: the edits of that kind against the same
  reference over the same length, so that the three add up to the rate. Where several alignments have the fewest edits,
  the kinds are those of the one that jiwer takes. By where in the reference they are: `bench.errors_by_position`.
- `ser`: share of sentences with a word edit against every reference.
- `exact_match`: share of outputs that equal any reference, white space at the ends aside.
- `mixed_mode_rate`: share of outputs that mix two references (`bench.multimodality`); 0 where each has only one.
- `repetition_rate`: share of words that equal the word before, the usual measure of NAT papers (Ghazvininejad et al.
  2019, Saharia et al. 2020). Legitimate doublings count too: compare with the references' own rate.
- `length_ratio`: output words over reference words; of several references the closest in length, the shorter one of
  equals, as in BLEU. Undefined (None) if all references are empty.
- `empty_rate`: share of outputs without a visible character.

Words are those of `bench.text.split_words` (words, numbers, punctuation marks), but for `wer`, which splits at spaces.

Limits of the intervals: they do not cover the spread over training seeds, and where all sentences agree (a share of 0
or 100) resampling cannot vary, so that the interval has no width; the true share may still be off by about 300 / n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bench.errors import nearest
from bench.metrics import EDIT_KINDS, MEASURES, Evidence, Measure
from bench.stats import bootstrap_interval, ratio

if TYPE_CHECKING:  # the contract of tasks imports torch, which scoring does not need
    from bench.tasks.base import Example


@dataclass(frozen=True)
class MetricInfo:
    """How a metric is read."""

    title: str
    unit: str
    """% (0-100), ratio, or empty for a score with a scale of its own."""
    higher_is_better: bool | None
    """None: neither (a ratio whose ideal is 1)."""


METRICS: dict[str, MetricInfo] = {
    "bleu": MetricInfo("BLEU", "", True),
    "chrf": MetricInfo("chrF2", "", True),
    "ter": MetricInfo("TER", "%", False),
    "exact_match": MetricInfo("Exact match", "%", True),
    "mixed_mode_rate": MetricInfo("Mixed-mode rate", "%", False),
    "repetition_rate": MetricInfo("Repetition rate", "%", False),
    "length_ratio": MetricInfo("Length ratio", "ratio", None),
    "empty_rate": MetricInfo("Empty outputs", "%", False),
    "cer": MetricInfo("CER", "%", False),
    "wer": MetricInfo("WER", "%", False),
    "ser": MetricInfo("SER", "%", False),
    **{
        f"{rate}_{kind}": MetricInfo(f"{rate.upper()} {kind}", "%", False)
        for rate in ("cer", "wer")
        for kind in EDIT_KINDS
    },
    "perplexity": MetricInfo("Perplexity", "", False),
    "token_accuracy": MetricInfo("Token accuracy", "%", True),
    "teacher_forced_accuracy": MetricInfo("Teacher-forced token accuracy", "%", True),
}


@dataclass(frozen=True)
class Score:
    """A metric's value over a corpus, with its 95 % interval."""

    metric: str
    value: float | None
    """None where the metric is undefined."""
    unit: str
    ci_low: float | None
    ci_high: float | None
    """None without resampling, or with fewer than two sentences."""
    n: int
    """Sentences."""
    signature: str
    """How it was computed: sacreBLEU's own signature, or one of the same form."""
    subset: str = ""
    """The part of the examples that it is over (see `bench.subsets`); empty: all of them."""


def score(
    metric_names: Sequence[str],
    hypotheses: Sequence[str],
    examples: Sequence[Example],
    *,
    bootstrap_samples: int = 1000,
    seed: int = 1,
    subset: str = "",
) -> list[Score]:
    """Score detokenised `hypotheses` against the references of `examples`, in the order of `metric_names`.

    subset: what the scores are marked with, where these are a part of the examples.

    Raises:
        ValueError: no hypotheses, not one for each example, an example without reference, or an unknown metric.
    """
    _check(hypotheses, examples)
    return [
        evaluate(name, _measure(name)(hypotheses, examples), bootstrap_samples, seed, subset) for name in metric_names
    ]


def evaluate(metric: str, evidence: Evidence, bootstrap_samples: int, seed: int = 1, subset: str = "") -> Score:
    """Return the value of `metric` that `evidence` gives, with its interval."""
    interval = bootstrap_interval(evidence.rows, evidence.statistic, rng=seed, samples=bootstrap_samples)
    value = evidence.value()
    return Score(
        metric=metric,
        value=None if math.isnan(value) else value,
        unit=METRICS[metric].unit,
        ci_low=interval.low if interval else None,
        ci_high=interval.high if interval else None,
        n=np.shape(evidence.rows)[0],
        signature=evidence.signature,
        subset=subset,
    )


def selection_value(metric: str, hypotheses: Sequence[str], examples: Sequence[Example]) -> float:
    """Return the metric as a number of which more is better (negated where less is), to choose checkpoints by.

    Raises:
        ValueError: as `score`, and for a metric that has no better direction.
    """
    _check(hypotheses, examples)
    measure = _measure(metric)
    higher_is_better = METRICS[metric].higher_is_better
    if higher_is_better is None:
        raise ValueError(f"{metric} has no better direction, so that it cannot select checkpoints")
    value = measure(hypotheses, examples).value()
    return value if higher_is_better else -value


def perplexity(
    log_likelihoods: npt.ArrayLike, num_tokens: npt.ArrayLike, *, bootstrap_samples: int = 1000, seed: int = 1
) -> Score:
    """Return the perplexity per target token of teacher-forced references.

    It is exp(-sum of log-likelihoods / sum of (tokens + 1)). The 1 counts the end of the sentence, which a model with
    an end symbol predicts and one with a length model or blanks pays for otherwise: the denominator is the same for
    every family. Vocabularies must be the same for two values to be comparable.

    Args:
        log_likelihoods: [n] log p(target | source) in nats; -inf where a model gives a target no probability, which
            makes the perplexity infinite, without an interval.
        num_tokens: [n] target tokens, without end of sentence.
        bootstrap_samples: resamplings of sentences behind the interval.
        seed: seed of the resampling.

    Raises:
        ValueError: no sentences, unequal lengths, a negative number of tokens, or a log-likelihood of NaN or +inf.
    """
    nats = -np.asarray(log_likelihoods, dtype=np.float64)
    tokens = np.asarray(num_tokens, dtype=np.float64)
    if nats.ndim != 1 or nats.shape != tokens.shape or not nats.size:
        raise ValueError(f"log-likelihoods {nats.shape} and token counts {tokens.shape} must be equal, non-empty [n]")
    if np.isnan(nats).any() or np.isneginf(nats).any() or (tokens < 0).any():
        raise ValueError("log-likelihoods must be numbers or -inf, token counts must not be negative")
    rows = np.stack([nats, tokens + 1], axis=1)
    # Resampled as nats per token: percentile intervals carry over through the monotone exp.
    interval = bootstrap_interval(rows, ratio, rng=seed, samples=bootstrap_samples) if np.isfinite(nats).all() else None
    return Score(
        metric="perplexity",
        value=_exp(float(nats.sum() / (tokens + 1).sum())),
        unit=METRICS["perplexity"].unit,
        ci_low=_exp(interval.low) if interval else None,
        ci_high=_exp(interval.high) if interval else None,
        n=nats.size,
        signature="unit:token|eos:counted",
    )


def _exp(x: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(x))


def _check(hypotheses: Sequence[str], examples: Sequence[Example]) -> None:
    if not hypotheses:
        raise ValueError("there is nothing to score: no hypotheses")
    if len(hypotheses) != len(examples):
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(examples)} examples")
    for example in examples:
        if not example.references:
            raise ValueError(f"example {example.id!r} has no reference")


def _measure(name: str) -> Measure:
    if name not in MEASURES:
        raise ValueError(f"unknown metric {name!r}; there are: {', '.join(MEASURES)}{nearest(name, MEASURES)}")
    return MEASURES[name]
