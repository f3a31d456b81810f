"""Brute force for CTC: every alignment is enumerated."""

import itertools
import math
from collections import defaultdict

import torch

from models import interface

BLANK = 0


def small(symbols):
    """Number symbols as this file does: blank 0, then real ones from 1."""
    return [BLANK if s == interface.BLANK else s - interface.NUM_SPECIAL + 1 for s in symbols]


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


def alignments(string, frames):
    """Yield every alignment of `frames` symbols that collapses to `string`."""
    for alignment in itertools.product(sorted({BLANK, *string}), repeat=frames):
        if collapse(alignment) == tuple(string):
            yield alignment


def best_alignments(logits, string):
    """Return the best score of an alignment of `string` under logits [f][v], and all alignments that have it."""
    scored = [(sum(row[s] for row, s in zip(logits, a, strict=True)), a) for a in alignments(string, len(logits))]
    if not scored:
        return None, []
    best = max(score for score, _ in scored)
    return best, [a for score, a in scored if score > best - 1e-4]


def constrained_nll(log_probs, string, revealed):
    """Return -log of the sum over alignments of `string` that carry the revealed symbols; None if there is none.

    log_probs: [f][v] tensor; revealed: one symbol a frame, None where it is free. Revealed frames contribute 0. The
    result is a tensor, differentiable by plain autograd.
    """
    paths = [
        sum((log_probs[i, symbol] for i, symbol in enumerate(a) if revealed[i] is None), log_probs.new_zeros(()))
        for a in alignments(string, len(revealed))
        if all(r in (None, symbol) for r, symbol in zip(revealed, a, strict=True))
    ]
    return -torch.stack(paths).logsumexp(0) if paths else None
