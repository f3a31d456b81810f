"""Decoding that writes every position of a canvas anew, from nothing but the source and the canvas before."""

from __future__ import annotations

import torch
from torch import Tensor

from models.canvas_inputs import uniform_copy
from models.decoding.refinement import Canvas, refine_until_done
from models.encoder import CanvasDecoder, Memory
from models.interface import PAD, Decoded
from models.layers import padding_mask
from models.length import best_candidates
from models.output import OutputLayer


def predicted_canvas(output: OutputLayer, states: Tensor, lengths: Tensor) -> Canvas:
    """Return the most probable symbol at each of the first `lengths` [n] states [n, t, d], with its score."""
    real = padding_mask(lengths, states.shape[1])
    symbols, log_probs = output.most_probable(states[real])
    tokens = torch.full_like(real, PAD, dtype=torch.long).masked_scatter(real, symbols)
    scores = torch.zeros_like(real, dtype=torch.float32).masked_scatter(real, log_probs)
    return Canvas(tokens, lengths, scores)


class Rewriter:
    """The refiner: a pass of the decoder over the canvas, whose output is the next canvas.

    It is deterministic and looks at the tokens alone, so a row whose output equals its input can change no more.
    """

    def __init__(
        self, decoder: CanvasDecoder, output: OutputLayer, memory: Memory, candidates: int, stops: bool
    ) -> None:
        """Attend to `memory`, of whose sentences each has `candidates` consecutive canvases.

        stops: whether a row ends with the round that changes nothing.
        """
        self.stops = stops
        self.decoder = decoder
        self.output = output
        self.memory = memory
        self.candidates = candidates

    def refine(self, canvas: Canvas, iteration: int) -> tuple[Canvas, Tensor | None]:
        """Predict every token; done are the rows where none differs from before."""
        new = predicted_canvas(self.output, self.decoder(canvas.tokens, canvas.lengths, self.memory), canvas.lengths)
        return new, (new.tokens == canvas.tokens).all(1) if self.stops else None

    def select(self, rows: Tensor) -> None:
        """Keep `rows` of the source; from the first row that leaves, candidates no longer share theirs."""
        self.memory = self.memory.select(rows // self.candidates)
        self.candidates = 1


def rewrite(
    decoder: CanvasDecoder,
    output: OutputLayer,
    memory: Memory,
    src: Tensor,
    src_len: Tensor,
    lengths: Tensor,
    max_iterations: int,
    stops: bool = True,
) -> Decoded:
    """Decode from the copied source until nothing changes, if it `stops` then, or for `max_iterations` passes.

    src: [b, s]; src_len: [b]; lengths: [b, c], the lengths to try. The candidate with the highest mean
    log-probability per token wins; that is the score.
    """
    candidates = lengths.shape[1]
    lengths = lengths.flatten()
    tokens = uniform_copy(src, src_len, lengths, int(lengths.max()) if len(lengths) else 0)
    start = Canvas(tokens, lengths, torch.zeros_like(tokens, dtype=torch.float32))
    refiner = Rewriter(decoder, output, memory, candidates, stops)
    canvas, iterations = refine_until_done(refiner, start, max_iterations)
    return best_candidates(canvas.tokens, canvas.lengths, canvas.scores, iterations, candidates)
