from fractions import Fraction
from math import floor

import pytest
import torch

from models.canvas_inputs import uniform_copy
from models.interface import NUM_SPECIAL, PAD

X = [NUM_SPECIAL + i for i in range(12)]


def copied(sources, lengths, size):
    width = max(len(s) for s in sources) + 2
    src = torch.tensor([[*s, *[PAD] * (width - len(s))] for s in sources])
    return uniform_copy(src, torch.tensor([len(s) for s in sources]), torch.tensor(lengths), size).tolist()


@pytest.mark.parametrize(
    ("source", "length", "positions"),
    [
        (3, 3, [0, 1, 2]),
        (5, 3, [0, 2, 4]),
        (4, 2, [0, 3]),
        (4, 3, [0, 2, 3]),  # 1.5 is rounded up
        (2, 5, [0, 0, 1, 1, 1]),  # 0, 1/4, 1/2, 3/4, 1
        (3, 5, [0, 1, 1, 2, 2]),  # 0, 1/2, 1, 3/2, 2
        (1, 3, [0, 0, 0]),
        (5, 1, [0]),
        (3, 0, []),
    ],
)
def test_uniform_copy_by_hand(source, length, positions):
    expected = [X[i] for i in positions] + [PAD] * (6 - length)
    assert copied([X[:source]], [length], 6) == [expected]


def test_uniform_copy_of_every_pair_of_lengths_in_one_batch():
    cases = [(s, m) for s in range(1, 13) for m in range(13)]
    rows = copied([X[:s] for s, _ in cases], [m for _, m in cases], 14)
    for (s, m), row in zip(cases, rows, strict=True):
        steps = max(m - 1, 1)
        expected = [X[floor(Fraction(i * (s - 1), steps) + Fraction(1, 2))] for i in range(m)]
        assert row == expected + [PAD] * (14 - m), (s, m)


def test_candidates_copy_their_own_source_and_an_empty_source_gives_padding():
    rows = copied([X[:2], [], X[5:8]], [1, 2, 3, 1, 3, 2], 3)
    assert rows == [
        [X[0], PAD, PAD],
        [X[0], X[1], PAD],
        [PAD, PAD, PAD],
        [PAD, PAD, PAD],
        [X[5], X[6], X[7]],
        [X[5], X[7], PAD],
    ]
