"""The refinement engine, with a scripted refiner."""

import torch

from models.decoding.refinement import Canvas, refine_until_done
from models.interface import PAD


class Grower:
    """Appends the row's own number each round until the row has as many tokens as `goals` says."""

    def __init__(self, goals):
        self.goals = torch.tensor(goals)
        self.names = torch.arange(10, 10 + len(goals))
        self.seen = []

    def refine(self, canvas, iteration):
        self.seen.append((iteration, self.names.tolist()))
        tokens = torch.cat([canvas.tokens, self.names[:, None]], dim=1)
        scores = torch.cat([canvas.scores, -torch.ones(len(tokens), 1)], dim=1)
        lengths = canvas.lengths + 1
        return Canvas(tokens, lengths, scores), lengths >= self.goals

    def select(self, rows):
        self.goals, self.names = self.goals[rows], self.names[rows]


def empty(n):
    return Canvas(torch.zeros(n, 0, dtype=torch.long), torch.zeros(n, dtype=torch.long), torch.zeros(n, 0))


def test_each_row_stops_by_itself_and_leaves_the_batch():
    refiner = Grower([2, 1, 3])
    canvas, iterations = refine_until_done(refiner, empty(3), max_iterations=10)
    assert canvas.tokens.tolist() == [[10, 10, PAD], [11, PAD, PAD], [12, 12, 12]]
    assert canvas.lengths.tolist() == iterations.tolist() == [2, 1, 3]
    assert canvas.scores.sum(1).tolist() == [-2, -1, -3]
    assert refiner.seen == [(0, [10, 11, 12]), (1, [10, 12]), (2, [12])]


def test_the_limit_ends_what_would_go_on():
    canvas, iterations = refine_until_done(Grower([5, 1]), empty(2), max_iterations=2)
    assert canvas.lengths.tolist() == iterations.tolist() == [2, 1]


def test_no_rows_and_no_rounds():
    canvas, iterations = refine_until_done(Grower([]), empty(0), max_iterations=3)
    assert canvas.tokens.shape[0] == iterations.shape[0] == 0
    canvas, iterations = refine_until_done(Grower([1]), empty(1), max_iterations=0)
    assert canvas.lengths.tolist() == iterations.tolist() == [0]
