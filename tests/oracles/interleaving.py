"""The mixed-mode test by its definition: try every assignment of tokens to every pair of references."""

from collections.abc import Sequence
from itertools import combinations, product


def is_subsequence(tokens: Sequence[str], reference: Sequence[str]) -> bool:
    return any(tuple(tokens) == chosen for chosen in combinations(reference, len(tokens)))


def is_mixed_mode(output: Sequence[str], references: Sequence[Sequence[str]]) -> bool:
    if any(is_subsequence(output, reference) for reference in references):
        return False
    for first, second in combinations(references, 2):
        for sides in product((0, 1), repeat=len(output)):
            parts = [[token for token, side in zip(output, sides, strict=True) if side == which] for which in (0, 1)]
            # With two equal references, one copy of a sentence would be spliced with itself: that is repetition.
            if tuple(first) != tuple(second) and is_subsequence(parts[0], first) and is_subsequence(parts[1], second):
                return True
    return False
