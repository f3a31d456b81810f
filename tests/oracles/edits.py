"""Slow, obvious twins of `models.decoding.edits`, on plain lists that hold bos and eos."""

from functools import cache


def scripts(canvas, reference):
    """Every common subsequence of the two as pairs of positions, longest ones only."""

    @cache
    def longest(i, j):
        if i == len(canvas) or j == len(reference):
            return 0
        best = max(longest(i + 1, j), longest(i, j + 1))
        return max(best, longest(i + 1, j + 1) + 1) if canvas[i] == reference[j] else best

    def extend(i, j):
        """Longest common subsequences of canvas[i:] and reference[j:]."""
        if longest(i, j) == 0:
            return [[]]
        found = []
        for k in range(i, len(canvas)):
            for m in range(j, len(reference)):
                if canvas[k] == reference[m] and longest(k + 1, m + 1) + 1 == longest(i, j):
                    found += [[(k, m), *rest] for rest in extend(k + 1, m + 1)]
        return found

    return extend(0, 0)


def expert(canvas, reference):
    """The expert's script by the documented rules: deleted positions, and the tokens missing after each position.

    Tokens kept first, and matched first, come first in the order of tuples: the least list of pairs is the script that
    decides for the leftmost token, then for its first occurrence, and so on.
    """
    pairs = min(scripts(tuple(canvas), tuple(reference)))
    kept = dict(pairs)
    missing = [[] for _ in canvas]
    ends = [m for _, m in pairs[1:]] + [len(reference)]
    for (k, m), end in zip(pairs, ends, strict=True):
        missing[k] = list(reference[m + 1 : end])
    return [k not in kept for k in range(len(canvas))], missing


def without(canvas, delete):
    return [token for token, gone in zip(canvas, delete, strict=True) if not gone]


def with_inserted(canvas, inserted):
    """The canvas with a list of symbols behind each position."""
    return [symbol for token, after in zip(canvas, inserted, strict=True) for symbol in [token, *after]]


def cut(counts, room):
    """Counts from the left as long as there is room."""
    result = []
    for count in counts:
        result.append(min(count, room))
        room -= result[-1]
    return result
