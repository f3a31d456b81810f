"""How many tokens are right along the sentence: free running for all, and teacher-forced for left-to-right families.

A token of the reference is right, free running, if the alignment with the fewest edits matches it with one of the
output. It is right teacher-forced if it is the most probable one after the reference's own tokens before it. Both take
the reference that is nearest to the output, so that where several answers are right it is the one that the model chose.
What a free-running decoder loses against a teacher-forced one is the price of its own earlier choices: exposure bias
(Ranzato et al. 2016), but also wordings that the reference does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein

from bench.errors_by_position import PARTS, part_of
from bench.metrics import Evidence
from bench.names import FREE_RUNNING, TEACHER_FORCED
from bench.quality import Score, evaluate
from bench.stats import ratio
from bench.subsets import POSITION, Subset

Ids = Sequence[int]
Hits = npt.NDArray[np.bool_]
Predictor = Callable[[list[Ids]], list[Ids] | None]
"""Returns for a reference of each sentence the most probable token at each place; None: the family has none."""


def accuracy_by_position(
    outputs: Sequence[Ids], references: Sequence[Sequence[Ids]], predict: Predictor
) -> list[Score]:
    """Return both accuracies in % for each tenth of the references, `position=0..10` to `position=90..100`.

    Args:
        outputs: ids of each output.
        references: ids of each sentence's references, one or more.
        predict: what the model would say next, with the reference's tokens before it.

    The value of a tenth without any token is undefined (None). There are no intervals.
    """
    chosen = [nearest(output, answers) for output, answers in zip(outputs, references, strict=True)]
    scores = _scores(FREE_RUNNING, [matched(o, r) for o, r in zip(outputs, chosen, strict=True)])
    predicted = predict(chosen)
    if predicted is not None:
        hits = [np.array([a == b for a, b in zip(p, r, strict=True)]) for p, r in zip(predicted, chosen, strict=True)]
        scores += _scores(TEACHER_FORCED, hits)
    return scores


def nearest(output: Ids, references: Sequence[Ids]) -> Ids:
    """Return the reference with the fewest edits, the first of equals."""
    return min(references, key=lambda reference: Levenshtein.distance(output, reference))


def matched(output: Ids, reference: Ids) -> Hits:
    """Return which tokens of `reference` an alignment with the fewest edits matches, [len(reference)]."""
    hits = np.zeros(len(reference), dtype=np.bool_)
    for code in Levenshtein.opcodes(reference, output):
        if code.tag == "equal":
            hits[code.src_start : code.src_end] = True
    return hits


def _scores(metric: str, hits: Sequence[Hits]) -> list[Score]:
    rows = np.zeros((len(hits), PARTS, 2))
    for row, of_sentence in enumerate(hits):
        for place, hit in enumerate(of_sentence):
            rows[row, part_of(2 * place + 1, len(of_sentence))] += (hit, 1)
    scores = []
    for part in range(PARTS):
        evidence = Evidence(rows[:, part], lambda sums: 100 * ratio(sums), "unit:token|reference:nearest")
        where = Subset(POSITION, 100 * part / PARTS, 100 * (part + 1) / PARTS)
        scores.append(evaluate(metric, evidence, bootstrap_samples=0, subset=str(where)))
    return scores
