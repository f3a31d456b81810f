"""Decoding by masked prediction of one sentence, position by position in plain Python, for both families that do it.

`fill(tokens)` returns a token and its log-probability for every position of a canvas in which None is a mask.
"""

import math

import torch

from models.interface import MASK


def mask_predict(fill, length, passes):
    """The canvases that the network sees, then the final tokens and their log-probabilities."""
    tokens, scores, seen = [None] * length, [0.0] * length, []
    for i in range(passes):
        by_confidence = sorted(range(length), key=lambda j: (scores[j], j))
        for j in by_confidence[: math.floor(length * (passes - i) / passes)]:
            tokens[j] = None
        seen.append(list(tokens))
        for j, (token, score) in enumerate(fill(tokens)):
            if tokens[j] is None:
                tokens[j], scores[j] = token, score
    return seen, tokens, scores


def masked_diffusion(fill, length, steps=None, threshold=None):
    """The canvases that the network sees, then the final tokens and their log-probabilities."""
    tokens, scores, seen = [None] * length, [0.0] * length, []
    shares = [length // steps + (1 if i < length % steps else 0) for i in range(steps)] if steps else []
    while None in tokens:
        seen.append(list(tokens))
        proposed = fill(tokens)
        open_positions = [j for j in range(length) if tokens[j] is None]
        open_positions.sort(key=lambda j: (-proposed[j][1], j))
        if threshold is None:
            chosen = open_positions[: shares[len(seen) - 1]]
        else:
            sure = [j for j in open_positions if math.exp(proposed[j][1]) > threshold]
            chosen = sure or open_positions[:1]
        for j in chosen:
            tokens[j], scores[j] = proposed[j]
    return seen, tokens, scores


def network(model, source):
    """The `fill` of a model for one source, alone in its batch."""
    memory, _ = model.encode(torch.tensor([source]), torch.tensor([len(source)]))

    def fill(tokens):
        canvas = torch.tensor([[MASK if token is None else token for token in tokens]])
        log_probs = model.output(model.decoder(canvas, torch.tensor([len(tokens)]), memory))[0].log_softmax(-1)
        return [(int(row.argmax()), float(row.max())) for row in log_probs]

    return fill


class Script:
    """A network that says in its i-th pass what `table[i]` says: per row and position a token and a probability."""

    def __init__(self, table):
        self.table = table
        self.rows = list(range(len(table[0])))
        self.seen = []

    def fill(self, canvas):
        """Note the canvas, None for a mask, and fill it as written; a row that has left is noted as None."""
        said = self.table[len(self.seen)]
        self.seen.append([None] * len(said))
        tokens, scores = canvas.tokens.clone(), canvas.scores.clone()
        for i, row in enumerate(self.rows):
            visible = canvas.tokens[i, : canvas.lengths[i]].tolist()
            self.seen[-1][row] = [None if token == MASK else token for token in visible]
            for j, token in enumerate(visible):
                if token == MASK:
                    tokens[i, j], scores[i, j] = said[row][j][0], math.log(said[row][j][1])
        return type(canvas)(tokens, canvas.lengths, scores)

    def select(self, rows):
        """Keep what stays."""
        self.rows = [self.rows[i] for i in rows.tolist()]


def random_table(passes, lengths, generator):
    """A table for `Script`: everything drawn at random; tokens name their pass."""
    return [
        [[(100 * (i + 1) + j, float(torch.rand((), generator=generator))) for j in range(length)] for length in lengths]
        for i in range(passes)
    ]
