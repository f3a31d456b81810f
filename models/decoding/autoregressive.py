"""Autoregressive decoding over a cached step: greedy, sampling and beam search, batched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.decoding.noise import gumbel_noise
from models.interface import BOS, EOS, PAD, Decoded

NEGATIVE = float("-inf")
STRETCH, LEAST_STRETCHED = 64, 2048
"""Values of a stretch, and of a row that is worth taking in stretches; see `largest`."""


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


def length_penalty(length: Tensor | float, kind: str, alpha: float) -> Tensor | float:
    """Return what a score is divided by: GNMT's ((5 + length) / 6)^alpha (Wu et al. 2016) or plain length^alpha.

    `length` counts eos.
    """
    if kind == "gnmt":
        return ((5.0 + length) / 6.0) ** alpha
    if kind == "power":
        return length**alpha
    raise ValueError(f"length_penalty must be 'gnmt' or 'power', not {kind!r}")


def beam_search(
    stepper: Stepper,
    limits: Tensor,
    beam: int,
    normalisation: str = "gnmt",
    alpha: float = 0.6,
    stopping: str = "first_k",
) -> Decoded:
    """Beam search with finished hypotheses kept apart from live ones.

    The stepper must hold `beam` equal rows per sentence, side by side. Each step every live hypothesis is extended;
    extensions by eos that rank among the best `beam` become finished, the best `beam` others stay live.

    Args:
        stepper: incremental state of b x beam rows.
        limits: [b] most tokens each sentence may emit.
        beam: live hypotheses per sentence.
        normalisation: "gnmt" or "power", see `length_penalty`.
        alpha: exponent of the normalisation, >= 0.
        stopping: "exact" ends a sentence when no live hypothesis can still beat its best finished one (log-probability
            only falls, and the penalty is largest at the length limit); "first_k" when `beam` are finished.

    Returns:
        The best finished hypothesis of each sentence; scores are normalised log-probabilities, eos included.
    """
    if stopping not in ("exact", "first_k"):
        raise ValueError(f"stopping must be 'exact' or 'first_k', not {stopping!r}")
    b, device = limits.shape[0], limits.device
    width = int(limits.max()) if b else 0
    best_tokens = torch.full((b, width), PAD, device=device)
    best_length = torch.zeros(b, dtype=torch.long, device=device)
    best_score = torch.full((b,), NEGATIVE, device=device)
    steps = torch.zeros(b, dtype=torch.long, device=device)
    finished = torch.zeros(b, dtype=torch.long, device=device)
    # Penalties by length are looked up, not computed per row: a float power differs by batch on some devices.
    penalty = torch.as_tensor(
        [float(length_penalty(float(n), normalisation, alpha)) for n in range(1, width + 2)], device=device
    )  # index = tokens without eos

    rows = torch.arange(b, device=device)  # sentence of each live group of `beam` rows
    token = torch.full((b * beam,), BOS, device=device)
    tokens = torch.full((b, beam, width), PAD, device=device)
    live_score = torch.full((b, beam), NEGATIVE, device=device)
    live_score[:, 0] = 0.0  # all beams start equal: only one may speak
    for position in range(width + 1):
        m = rows.shape[0]
        symbols, log_probs, ends = extensions(stepper.step(token), beam)
        steps[rows] += 1
        ended = live_score + ends.view(m, beam)
        total = live_score[:, :, None] + log_probs.view(m, beam, -1)  # [m, beam, c]
        top, index = total.flatten(1).topk(beam, dim=1)  # [m, beam]
        exhausted = position >= limits[rows]
        ended = _finishing(ended, top, exhausted)
        finished[rows] += (ended > NEGATIVE).sum(1)
        end_value, end_beam = (ended / penalty[position]).max(1)
        better = end_value > best_score[rows]
        winners = rows[better]
        best_score[winners] = end_value[better]
        best_length[winners] = position
        best_tokens[winners] = tokens[better, end_beam[better]]

        source, symbol = index // total.shape[2], symbols.view(m, -1).gather(1, index)
        if stopping == "exact":
            bound = top[:, 0] / penalty[limits[rows]]
            done = exhausted | (bound <= best_score[rows])
        else:
            done = exhausted | (finished[rows] >= beam) & (best_score[rows] > NEGATIVE)
        done |= top[:, 0] == NEGATIVE
        live = done.logical_not().nonzero()[:, 0]
        if live.shape[0] == 0:
            break
        flat = (live[:, None] * beam + source[live]).flatten()
        stepper.select(flat, live if live.shape[0] < m else None)
        tokens = tokens[live[:, None], source[live]]
        tokens[:, :, position] = symbol[live]
        rows, live_score, token = rows[live], top[live], symbol[live].flatten()
    return Decoded(best_tokens[:, : int(best_length.max()) if b else 0], best_length, best_score, steps)


def extensions(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return how rows with logits [n, v] go on: c symbols [n, c], their log-probabilities [n, c], and those of eos [n].

    The symbols are the `count` most probable other than eos, or all of them if they are fewer.
    """
    eos = logits[:, EOS].clone()
    logits[:, EOS] = NEGATIVE
    values, symbols = largest(logits, min(count, logits.shape[1] - 1))
    logits[:, EOS] = eos
    first = torch.where(values[:, 0] >= eos, symbols[:, 0], EOS)
    # The log of the partition function by way of the most probable symbol: one kernel, where logsumexp takes five.
    partition = values[:, 0].maximum(eos) + F.cross_entropy(logits, first, reduction="none")
    return symbols, values - partition[:, None], eos - partition


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return what `values.topk(count)` of [n, v] does, [n, count] each, faster where v is large.

    The largest values lie in those stretches of a row that have the largest maxima: the others are looked at once.
    """
    n, v = values.shape
    if v < LEAST_STRETCHED or count > v // STRETCH:
        top = values.topk(count, dim=1)
        return top.values, top.indices
    whole = v - v % STRETCH
    stretches: Tensor = values[:, :whole].unflatten(1, (-1, STRETCH))  # type: ignore[no-untyped-call]
    chosen = stretches.amax(2).topk(count, dim=1).indices  # [n, count]
    found = stretches.gather(1, chosen[:, :, None].expand(-1, -1, STRETCH)).flatten(1)
    at = (chosen[:, :, None] * STRETCH + torch.arange(STRETCH, device=values.device)).flatten(1)
    rest = torch.arange(whole, v, device=values.device).expand(n, -1)
    found, at = torch.cat([found, values[:, whole:]], dim=1), torch.cat([at, rest], dim=1)
    top = found.topk(count, dim=1)
    return top.values, at.gather(1, top.indices)


def _finishing(ended: Tensor, top: Tensor, exhausted: Tensor) -> Tensor:
    """Return the scores `ended` [m, beam] of extensions by eos, with minus infinity where they do not count.

    A hypothesis finishes if its eos ranks among the best `beam` of all extensions, of which `top` [m, beam] are the
    best others, or if its sentence is `exhausted` [m]. Without the rank, short outputs win that no live hypothesis
    ever came near.
    """
    least = torch.cat([top, ended], dim=1).topk(top.shape[1], dim=1).values[:, -1:]
    return ended.masked_fill((ended < least) & ~exhausted[:, None], NEGATIVE)
