"""Brute force for CTC: every alignment is enumerated."""

import itertools
import math
from collections import defaultdict

BLANK = 0


def collapse(alignment):
    """Merge repeats, then drop blanks."""
    merged = [symbol for symbol, _ in itertools.groupby(alignment)]
    return tuple(symbol for symbol in merged if symbol != BLANK)


def string_probabilities(log_probs):
    """Return {collapsed string: probability} for log_probs [f][v], summed over all v^f alignments."""
    total = defaultdict(float)
    for alignment in itertools.product(range(len(log_probs[0])), repeat=len(log_probs)):
        log_prob = sum(row[symbol] for row, symbol in zip(log_probs, alignment, strict=True))
        total[collapse(alignment)] += math.exp(log_prob)
    return dict(total)
