"""The mixed-mode test: does an output mix two right answers?

A decoder that predicts positions independently cannot agree with itself on one of several right answers (the
multimodality problem, Gu et al. 2018) and emits pieces of two. Where all right answers are known, that can be decided.
An output is *mixed-mode* if

- its tokens are no subsequence of any one reference (so it is neither right nor merely truncated), and
- each of its tokens can be assigned to one of two references A and B such that the tokens assigned to A form a
  subsequence of A, and those assigned to B a subsequence of B.

This covers splices (the beginning of A, then the end of B) and position-wise mixtures. A token that is in no reference
is wrong content, not a mixture. A token that both references hold may be used once from each, so a doubled token
counts as a mixture if two references hold it; that is how the problem shows itself in such outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TypeAlias

_Steps: TypeAlias = list[list[int | None]]
"""steps[p][i]: tokens of the reference used up once output token p is matched at or after i; None if it cannot be."""


def is_mixed_mode(output: Sequence[str], references: Sequence[Sequence[str]]) -> bool:
    """Return whether the tokens of `output` mix two of the tokenised `references` (see the module's docstring)."""
    steps = [_steps(output, reference) for reference in dict.fromkeys(map(tuple, references))]
    if any(_is_subsequence(reference) for reference in steps):
        return False
    # Bit p: the reference holds output token p somewhere. Two references that leave a token out need no search.
    held = [sum(1 << p for p, step in enumerate(reference) if step[0] is not None) for reference in steps]
    every_token = (1 << len(output)) - 1
    return any(
        held[a] | held[b] == every_token and _is_interleaving(steps[a], steps[b])
        for a, b in combinations(range(len(steps)), 2)
    )


def _steps(output: Sequence[str], reference: Sequence[str]) -> _Steps:
    """Tabulate, for each token of the output, where it takes the reader of a reference."""
    by_token: dict[str, list[int | None]] = {}
    for token in set(output):
        after: int | None = None
        row: list[int | None] = [None] * (len(reference) + 1)
        for i in range(len(reference) - 1, -1, -1):
            if reference[i] == token:
                after = i + 1
            row[i] = after
        by_token[token] = row
    return [by_token[token] for token in output]


def _is_subsequence(steps: _Steps) -> bool:
    used = 0
    for step in steps:
        after = step[used]
        if after is None:
            return False
        used = after
    return True


def _is_interleaving(first: _Steps, second: _Steps) -> bool:
    """Return whether the output is an interleaving of a subsequence of each of two references.

    Dynamic programme over the output. A state (i, j) says how many tokens of the two references are used up. Only the
    Pareto frontier is kept: a state that has used up at least as much of both as another can do nothing the other
    cannot.
    """
    frontier = [(0, 0)]
    for step_first, step_second in zip(first, second, strict=True):
        reached = [(used, j) for i, j in frontier if (used := step_first[i]) is not None]
        reached += [(i, used) for i, j in frontier if (used := step_second[j]) is not None]
        if not reached:
            return False
        reached.sort()
        frontier = reached[:1]
        for state in reached:  # rising i: a state survives if its j is below that of all before it
            if state[1] < frontier[-1][1]:
                frontier.append(state)
    return True
