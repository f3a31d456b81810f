"""Iterative refinement: one engine over canvases that a family rewrites round by round, batched.

Sentences stop one by one: whoever is done leaves the batch, so that no sentence waits for, or depends on, another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.encoder import CanvasDecoder, Memory
from models.interface import MASK, PAD
from models.layers import padding_mask
from models.output import OutputLayer


@dataclass(frozen=True)
class Canvas:
    """Unfinished outputs of n rows (sentences, or sentences x candidates)."""

    tokens: Tensor
    """[n, t] int64, padded with PAD."""
    lengths: Tensor
    """[n] int64."""
    scores: Tensor
    """[n, t] float32: log-probability of each token when it was chosen; 0 beyond the length."""

    def select(self, rows: Tensor) -> Canvas:
        """Return the canvases of `rows` [m], in that order."""
        return Canvas(*(x.index_select(0, rows) for x in (self.tokens, self.lengths, self.scores)))

    def replaced(self, rows: Tensor, others: Canvas) -> Canvas:
        """Return the canvases with those of `rows` [m] exchanged for `others` of the same lengths."""
        width = others.tokens.shape[1]
        tokens, scores = self.tokens.clone(), self.scores.clone()
        tokens[rows, :width], scores[rows, :width] = others.tokens, others.scores
        return Canvas(tokens, self.lengths, scores)


class Refiner(Protocol):
    """What a family supplies: how a round changes the canvases of the rows that are still at work."""

    def refine(self, canvas: Canvas, iteration: int) -> tuple[Canvas, Tensor | None]:
        """Return the canvases after round `iteration` (from 0) and [n] bool: rows that are done.

        None says that no row is done, and spares the device a synchronisation.
        """
        ...

    def select(self, rows: Tensor) -> None:
        """Keep rows `rows` [m] of whatever state there is, in that order (rising); the others are done."""
        ...


def refine_until_done(refiner: Refiner, canvas: Canvas, max_iterations: int) -> tuple[Canvas, Tensor]:
    """Refine until every row is done or has had `max_iterations` rounds; a row that is done leaves the batch.

    Returns the final canvases, in the order of the rows at the start, and the rounds that each row took, [n].
    """
    n, device = canvas.tokens.shape[0], canvas.tokens.device
    iterations = torch.zeros(n, dtype=torch.long, device=device)
    rows = torch.arange(n, device=device)
    finished: list[tuple[Tensor, Canvas]] = []
    for iteration in range(max_iterations if n else 0):
        canvas, done = refiner.refine(canvas, iteration)
        iterations[rows] += 1
        if done is None:
            continue
        live = done.logical_not().nonzero()[:, 0]
        if live.shape[0] == rows.shape[0]:
            continue
        ended = done.nonzero()[:, 0]
        finished.append((rows[ended], canvas.select(ended)))
        rows, canvas = rows[live], canvas.select(live)
        if rows.shape[0] == 0:
            break
        refiner.select(live)
    finished.append((rows, canvas))
    return _gathered(finished, n), iterations


def _gathered(parts: list[tuple[Tensor, Canvas]], n: int) -> Canvas:
    """Return one canvas of n rows from parts that name their rows."""
    width = max(part.tokens.shape[1] for _, part in parts)
    like = parts[0][1]
    tokens = like.tokens.new_full((n, width), PAD)
    scores = like.scores.new_zeros((n, width))
    lengths = like.lengths.new_zeros(n)
    for rows, part in parts:
        t = part.tokens.shape[1]
        tokens[rows, :t] = part.tokens
        scores[rows, :t] = part.scores
        lengths[rows] = part.lengths
    return Canvas(tokens, lengths, scores)


def masked_canvas(lengths: Tensor) -> Canvas:
    """Return canvases of `lengths` [n] that are all MASK: what decoding by masked prediction starts from."""
    real = padding_mask(lengths, int(lengths.max()) if len(lengths) else 0)
    tokens = torch.where(real, MASK, PAD)
    return Canvas(tokens, lengths, torch.zeros_like(tokens, dtype=torch.float32))


def lowest(values: Tensor, counts: Tensor) -> Tensor:
    """Return [n, t] bool: where the counts [n] lowest values [n, t] of each row stand; the first ones among equals.

    Infinity keeps a position out, as long as enough others are left.
    """
    order = values.argsort(dim=1, stable=True)
    taken = torch.arange(values.shape[1], device=values.device) < counts[:, None]
    return torch.zeros_like(taken).scatter(1, order, taken)


class MaskFiller(Protocol):
    """A network that proposes a token for every MASK of a canvas."""

    def fill(self, canvas: Canvas) -> Canvas:
        """Return `canvas` with each MASK replaced by its most probable symbol and scored; the rest stays as it is."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keep rows `rows` [m] of whatever state there is, in that order (rising)."""
        ...


class MaskedDecoder:
    """The `MaskFiller` of a conditional masked language model: one pass of its decoder fills all masks."""

    def __init__(self, decoder: CanvasDecoder, output: OutputLayer, memory: Memory, candidates: int) -> None:
        """Attend to `memory`, of whose sentences each has `candidates` consecutive canvases."""
        self.decoder = decoder
        self.output = output
        self.memory = memory
        self.candidates = candidates

    def fill(self, canvas: Canvas) -> Canvas:
        """See `MaskFiller`."""
        masked = canvas.tokens == MASK
        states = self.decoder(canvas.tokens, canvas.lengths, self.memory)[masked]  # [m, d]
        ids, log_probs = self.output.most_probable(states)
        tokens = canvas.tokens.masked_scatter(masked, ids)
        return Canvas(tokens, canvas.lengths, canvas.scores.masked_scatter(masked, log_probs))

    def select(self, rows: Tensor) -> None:
        """See `MaskFiller`; from the first row that leaves, candidates of one sentence no longer share its memory."""
        self.memory = self.memory.select(rows // self.candidates)
        self.candidates = 1
