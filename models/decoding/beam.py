"""Beam search over a cached step, batched; the hypotheses may be scored by a second model beside."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.decoding.autoregressive import NEGATIVE, Stepper
from models.decoding.joint import Scorer
from models.interface import BOS, EOS, PAD, Decoded

STRETCH, LEAST_STRETCHED = 64, 2048
"""Values of a stretch, and of a row that is worth taking in stretches; see `largest`."""


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
    scorer: Scorer | None = None,
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
        scorer: changes the log-probabilities of the extensions of b x beam hypotheses; they must stay below 0.

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
        symbols, log_probs, ends = _proposals(stepper.step(token), beam, scorer)
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
        remaining = live if live.shape[0] < m else None
        stepper.select(flat, remaining)
        if scorer:
            scorer.advance(flat, index[live].flatten() % total.shape[2], remaining)
        tokens = tokens[live[:, None], source[live]]
        tokens[:, :, position] = symbol[live]
        rows, live_score, token = rows[live], top[live], symbol[live].flatten()
    return Decoded(best_tokens[:, : int(best_length.max()) if b else 0], best_length, best_score, steps)


def _proposals(logits: Tensor, beam: int, scorer: Scorer | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `extensions` does for the `beam` most probable symbols, or those that the scorer is asked about."""
    if scorer is None:
        return extensions(logits, beam)
    symbols, log_probs, ends = extensions(logits, scorer.candidates)
    return symbols, *scorer.rescore(symbols, log_probs, ends)


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
