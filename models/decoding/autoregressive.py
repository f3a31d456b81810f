"""Autoregressive decoding over a cached step: greedy search and sampling, batched; beam search is in `beam`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.decoding.noise import gumbel_noise
from models.interface import BOS, EOS, PAD, Decoded

NEGATIVE = float("-inf")


class Stepper(Protocol):
    """A model's incremental state for n rows (sentences, or sentences x beams)."""

    def step(self, tokens: Tensor) -> Tensor:
        """Consume the newest token of each row [n] and return float32 logits of the next, [n, v]."""
        ...

    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        """Keep rows `rows` [m] of the state, in that order; rows may repeat.

        sentences: the sentences [l] that these rows belong to (m / l consecutive rows each), as indices of the ones
        so far; None if all of them stay.
        """
        ...


def greedy(stepper: Stepper, limits: Tensor) -> Decoded:
    """Take the most probable token at each step.

    limits: [b] most tokens each sentence may emit. Scores are log-probabilities of the output, eos included.
    """
    return _one_by_one(stepper, limits, lambda logits, position, seeds: logits.argmax(-1), torch.zeros_like(limits))


def sample(
    stepper: Stepper, limits: Tensor, row_seeds: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Decoded:
    """Draw each token from softmax(logits / temperature), cut to the top k symbols and the nucleus of mass p.

    limits: [b]; row_seeds: [b] int64. The noise of a sentence depends on its seed and position alone, so a sentence
    gets the same sample in any batch. `top_k` 0 and `top_p` 1 do not cut. Nucleus: Holtzman et al. 2020.
    """

    def draw(logits: Tensor, position: int, seeds: Tensor) -> Tensor:
        scaled = truncated(logits, temperature, top_k, top_p)
        return (scaled + gumbel_noise(seeds, position, logits.shape[1])).argmax(-1)

    return _one_by_one(stepper, limits, draw, row_seeds)


def truncated(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Return logits [n, v] / temperature, minus infinity beyond the top k symbols and the nucleus of mass p."""
    scaled = logits / temperature
    if top_k:
        floor = scaled.topk(min(top_k, scaled.shape[1]), dim=1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < floor, NEGATIVE)
    if top_p < 1:
        ordered, order = scaled.sort(dim=1, descending=True)
        before = ordered.softmax(1).cumsum(1) - ordered.softmax(1)
        scaled = scaled.masked_fill((before >= top_p).gather(1, order.argsort(1)), NEGATIVE)
    return scaled


def _one_by_one(
    stepper: Stepper, limits: Tensor, choose: Callable[[Tensor, int, Tensor], Tensor], seeds: Tensor
) -> Decoded:
    """Emit one token a step, `choose(logits [n, v], position, seeds [n]) -> [n]`, until every sentence has ended."""
    b, device = limits.shape[0], limits.device
    width, shortest = (int(limits.max()), int(limits.min())) if b else (0, 0)
    rows = torch.arange(b, device=device)  # sentence of each live row
    token = torch.full((b,), BOS, device=device)
    stretches = [Stretch(rows, 0)]
    for position in range(width + 1 if b else 0):
        logits = stepper.step(token)
        choice = choose(logits, position, seeds)
        if position >= shortest:  # at its limit a sentence can only end
            choice = torch.where(position >= limits[rows], EOS, choice)
        stretches[-1].add(choice, -F.cross_entropy(logits, choice, reduction="none"))
        token, ended = choice, choice == EOS
        if ended.any():  # finished sentences leave the batch
            live = ended.logical_not().nonzero()[:, 0]
            if live.shape[0] == 0:
                break
            stepper.select(live, live)
            rows, token, seeds = rows[live], choice[live], seeds[live]
            stretches.append(Stretch(rows, position + 1))
    output = torch.full((b, width + 1), PAD, device=device)
    scores = torch.zeros(b, width + 1, device=device)
    for stretch in stretches:
        stretch.write(output, scores)
    lengths = ((output != PAD) & (output != EOS)).sum(1)
    longest = int(lengths.max()) if b else 0
    tokens = output[:, :longest].masked_fill(output[:, :longest] == EOS, PAD)
    return Decoded(tokens, lengths, scores.sum(1), lengths + 1)


class Stretch:
    """What is emitted while the same sentences are live, kept as it comes: a step has little else to do."""

    def __init__(self, rows: Tensor, start: int) -> None:
        """Begin at position `start` with the sentences `rows` [n]."""
        self.rows, self.start = rows, start
        self.symbols: list[Tensor] = []
        self.log_probs: list[Tensor] = []

    def add(self, symbols: Tensor, log_probs: Tensor) -> None:
        """Emit a symbol [n] a sentence, eos among them."""
        self.symbols.append(symbols)
        self.log_probs.append(log_probs)

    def write(self, output: Tensor, scores: Tensor) -> None:
        """Put it where it belongs in `output` and `scores`, [b, t] each."""
        part = slice(self.start, self.start + len(self.symbols))
        if self.symbols:
            output[self.rows, part] = torch.stack(self.symbols, dim=1)
            scores[self.rows, part] = torch.stack(self.log_probs, dim=1)


class Prolonged:
    """A stepper that cannot end a sentence before it has `lengths` tokens."""

    def __init__(self, stepper: Stepper, lengths: Tensor, beam: int = 1) -> None:
        """Take over `stepper`, of b x beam rows; lengths: [b]."""
        self.stepper = stepper
        self.lengths = lengths.repeat_interleave(beam)
        self.shortest = int(lengths.min()) if len(lengths) else 0
        self.position = 0

    def step(self, tokens: Tensor) -> Tensor:
        """See `Stepper`; eos has no probability where it would come too early."""
        logits = self.stepper.step(tokens)
        if self.position < self.shortest:
            logits[:, EOS] = NEGATIVE
        else:
            logits[:, EOS] = logits[:, EOS].masked_fill(self.position < self.lengths, NEGATIVE)
        self.position += 1
        return logits

    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        """See `Stepper`."""
        self.stepper.select(rows, sentences)
        self.lengths = self.lengths.index_select(0, rows)
