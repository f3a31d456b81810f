"""The error picture: where in the reference characters are substituted, deleted and inserted, by tenths of its length.

A character of the reference belongs to the tenth that its middle lies in; what is inserted, to the tenth that the gap
lies in: at a boundary the later one, behind the last character the last one. Each kind is counted along the same
alignment as `cer` takes (`bench.metrics`) and divided by the characters of all references in that tenth. Weighted by
those, the ten values of a kind make its rate over the whole, but for what is inserted where a reference is empty: that
is in no tenth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bench.metrics import EDIT_KINDS, Evidence, closest, jiwer_signature
from bench.quality import Score, evaluate
from bench.stats import ratio
from bench.subsets import POSITION, Subset

if TYPE_CHECKING:  # the contract of tasks imports torch, which scoring does not need
    from bench.tasks.base import Example

PARTS = 10
METRICS = tuple(f"cer_{kind}" for kind in EDIT_KINDS)

Counts = npt.NDArray[np.int64]


def errors_by_position(hypotheses: Sequence[str], examples: Sequence[Example]) -> list[Score]:
    """Return each of `METRICS` in % for each tenth, `position=0..10` to `position=90..100`, metric by metric.

    The value of a tenth without any character is undefined (None). There are no intervals: they would take longer than
    all other metrics together.
    """
    counts, lengths = count_errors(hypotheses, examples)
    signature = jiwer_signature(examples)
    scores = []
    for kind, metric in enumerate(METRICS):
        for part in range(PARTS):
            rows = np.stack([counts[:, kind, part], lengths[:, part]], axis=1)
            evidence = Evidence(rows, lambda sums: 100 * ratio(sums), signature)
            where = Subset(POSITION, 100 * part / PARTS, 100 * (part + 1) / PARTS)
            scores.append(evaluate(metric, evidence, bootstrap_samples=0, subset=str(where)))
    return scores


def count_errors(hypotheses: Sequence[str], examples: Sequence[Example]) -> tuple[Counts, Counts]:
    """Count the edits of each sentence, [n, kinds, parts], and the characters of its reference, [n, parts]."""
    counts = np.zeros((len(hypotheses), len(EDIT_KINDS), PARTS), dtype=np.int64)
    lengths = np.zeros((len(hypotheses), PARTS), dtype=np.int64)
    for row, (hypothesis, example) in enumerate(zip(hypotheses, examples, strict=True)):
        alignment = closest("characters", hypothesis, example.references)
        length = len(alignment.references[0])
        for character in range(length):
            lengths[row, part_of(2 * character + 1, length)] += 1
        for chunk in alignment.alignments[0] if length else ():
            if chunk.type == "insert":
                made = chunk.hyp_end_idx - chunk.hyp_start_idx
                counts[row, EDIT_KINDS.index("insertions"), part_of(2 * chunk.ref_start_idx, length)] += made
            elif chunk.type != "equal":
                kind = {"substitute": "substitutions", "delete": "deletions"}[chunk.type]
                for character in range(chunk.ref_start_idx, chunk.ref_end_idx):
                    counts[row, EDIT_KINDS.index(kind), part_of(2 * character + 1, length)] += 1
    return counts, lengths


def part_of(halves: int, length: int) -> int:
    """Return the part that a place lies in: `halves` half-characters from the start of a reference of `length`."""
    return min(halves * PARTS // (2 * length), PARTS - 1)
