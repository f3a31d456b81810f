"""What each quality metric counts in a sentence, and how the sums over a corpus become its value.

A metric is a function of a corpus that returns its evidence: one row of sufficient statistics per sentence, and the
statistic of their sums. `bench.quality` says what the metrics mean, scores with them and puts intervals around them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from bench.multimodality import is_mixed_mode
from bench.stats import FloatArray, Statistic, ratio

if TYPE_CHECKING:  # the contract of tasks imports torch, which scoring does not need
    from bench.tasks.base import Example

EDIT_KINDS = ("substitutions", "deletions", "insertions")


@dataclass(frozen=True)
class Evidence:
    """What a metric needs of a corpus: its score is `statistic` of the summed rows."""

    rows: npt.ArrayLike
    """[n, k] sufficient statistics of the sentences."""
    statistic: Statistic
    signature: str

    def value(self) -> float:
        """Return the value over the whole corpus; NaN where it is undefined."""
        return float(self.statistic(np.asarray(self.rows, dtype=np.float64).sum(axis=0, keepdims=True))[0])


def _signature(examples: Sequence[Example], **choices: str) -> str:
    """Return choices in the form of sacreBLEU's signatures, number of references first."""
    counts = {len(example.references) for example in examples}
    nrefs = str(counts.pop()) if len(counts) == 1 else "var"
    return "|".join(f"{key}:{value}" for key, value in {"nrefs": nrefs, **choices}.items())


def _percentage(sums: FloatArray) -> FloatArray:
    """Return 100 times the ratio; over nothing, 0 for nothing and 100 for anything."""
    share = ratio(sums)
    return 100 * np.where(np.isnan(share), sums[:, 0] > 0, share)


# sacreBLEU


def _sacrebleu(metric: Any, hypotheses: Sequence[str], examples: Sequence[Example]) -> Evidence:
    """Take sentence statistics and their aggregation from sacreBLEU.

    These two underscored methods are what `sacrebleu.significance` itself is built on; the public interface gives no
    sentence statistics of chrF and would score the corpus twice for the others. A test holds the result to the public
    `corpus_score`.
    """
    width = max(len(example.references) for example in examples)
    streams = [[e.references[i] if i < len(e.references) else None for e in examples] for i in range(width)]
    rows = metric._extract_corpus_statistics(hypotheses, streams)

    def statistic(sums: FloatArray) -> FloatArray:
        return np.array([metric._compute_score_from_stats(row).score for row in sums.tolist()])

    return Evidence(rows, statistic, str(metric.get_signature()))


def _bleu(hypotheses: Sequence[str], examples: Sequence[Example]) -> Evidence:
    from sacrebleu.metrics.bleu import BLEU

    return _sacrebleu(BLEU(), hypotheses, examples)


def _chrf(hypotheses: Sequence[str], examples: Sequence[Example]) -> Evidence:
    from sacrebleu.metrics.chrf import CHRF

    return _sacrebleu(CHRF(), hypotheses, examples)


def _ter(hypotheses: Sequence[str], examples: Sequence[Example]) -> Evidence:
    from sacrebleu.metrics.ter import TER

    return _sacrebleu(TER(), hypotheses, examples)


# jiwer


def closest(unit: str, hypothesis: str, references: Sequence[str]) -> Any:
    """Return jiwer's alignment with the reference that has the fewest edits, the longer one of equals.

    unit: characters | words.
    """
    import jiwer

    process: Callable[[str, str], Any] = jiwer.process_words if unit == "words" else jiwer.process_characters
    outputs = [process(reference, hypothesis) for reference in references]
    return min(outputs, key=lambda o: (o.substitutions + o.deletions + o.insertions, -len(o.references[0])))


class Edits(NamedTuple):
    """What turns a reference into an output, and the reference's length."""

    substitutions: int
    deletions: int
    insertions: int
    length: int

    @property
    def total(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions


@lru_cache(maxsize=1 << 15)
def _count_edits(unit: str, hypothesis: str, references: tuple[str, ...]) -> Edits:
    """Count against the closest reference; kept, as each kind of edit is a metric and asks for the same counts."""
    found = closest(unit, hypothesis, references)
    return Edits(found.substitutions, found.deletions, found.insertions, len(found.references[0]))


def _edits(unit: str, hypotheses: Sequence[str], examples: Sequence[Example]) -> list[Edits]:
    return [_count_edits(unit, h, tuple(e.references)) for h, e in zip(hypotheses, examples, strict=True)]


def _edit_rate(unit: str, kind: str, hypotheses: Sequence[str], examples: Sequence[Example]) -> Evidence:
    """Divide the edits of a kind (a field of `Edits`, or `total`) by the length of the references."""
    rows = [(getattr(edits, kind), edits.length) for edits in _edits(unit, hypotheses, examples)]
    return Evidence(rows, _percentage, jiwer_signature(examples))


def _ser(hypotheses: Sequence[str], examples: Sequence[Example]) -> Evidence:
    rows = [(edits.total > 0, 1) for edits in _edits("words", hypotheses, examples)]
    return Evidence(rows, _percentage, jiwer_signature(examples))


def jiwer_signature(examples: Sequence[Example]) -> str:
    """Return the signature of metrics that jiwer counts."""
    from importlib.metadata import version

    return _signature(examples, case="mixed", tool="jiwer", version=version("jiwer"))


# counted here


@lru_cache(maxsize=1 << 15)
def _words(text: str) -> tuple[str, ...]:
    from bench.text import normalise, split_words

    return tuple(split_words(normalise(text)))


def _exact_match(hypotheses: Sequence[str], examples: Sequence[Example]) -> Evidence:
    rows = [
        (hypothesis.strip() in {reference.strip() for reference in example.references}, 1)
        for hypothesis, example in zip(hypotheses, examples, strict=True)
    ]
    return Evidence(rows, _percentage, _signature(examples, case="mixed", match="any"))


def _mixed_mode_rate(hypotheses: Sequence[str], examples: Sequence[Example]) -> Evidence:
    rows = [
        (is_mixed_mode(_words(hypothesis), [_words(reference) for reference in example.references]), 1)
        for hypothesis, example in zip(hypotheses, examples, strict=True)
    ]
    return Evidence(rows, _percentage, _signature(examples, case="mixed", tok="words"))


def _repetition_rate(hypotheses: Sequence[str], examples: Sequence[Example]) -> Evidence:
    rows = []
    for hypothesis in hypotheses:
        words = _words(hypothesis)
        rows.append((sum(a == b for a, b in pairwise(words)), len(words)))
    return Evidence(rows, _percentage, "case:mixed|tok:words")


def _length_ratio(hypotheses: Sequence[str], examples: Sequence[Example]) -> Evidence:
    rows = []
    for hypothesis, example in zip(hypotheses, examples, strict=True):
        length = len(_words(hypothesis))
        lengths = [len(_words(reference)) for reference in example.references]
        rows.append((length, min(lengths, key=lambda other: (abs(other - length), other))))
    return Evidence(rows, ratio, _signature(examples, tok="words", ref="closest"))


def _empty_rate(hypotheses: Sequence[str], examples: Sequence[Example]) -> Evidence:
    return Evidence([(not hypothesis.strip(), 1) for hypothesis in hypotheses], _percentage, "")


Measure: TypeAlias = Callable[[Sequence[str], Sequence["Example"]], Evidence]
"""Takes hypotheses and as many examples, each with a reference."""

MEASURES: dict[str, Measure] = {
    "bleu": _bleu,
    "chrf": _chrf,
    "ter": _ter,
    "exact_match": _exact_match,
    "mixed_mode_rate": _mixed_mode_rate,
    "repetition_rate": _repetition_rate,
    "length_ratio": _length_ratio,
    "empty_rate": _empty_rate,
    "cer": partial(_edit_rate, "characters", "total"),
    "wer": partial(_edit_rate, "words", "total"),
    "ser": _ser,
    **{f"cer_{kind}": partial(_edit_rate, "characters", kind) for kind in EDIT_KINDS},
    **{f"wer_{kind}": partial(_edit_rate, "words", kind) for kind in EDIT_KINDS},
}
