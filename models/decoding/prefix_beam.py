"""Prefix beam search: the most probable outputs of CTC, summed over their alignments."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from models.interface import BLANK, BOS, EOS, PAD, LanguageModel
from models.layers import padding_mask

FUSED_SYMBOLS = 40
"""With a language model at least so many of a frame's symbols are tried."""
_STAYED = -1
"""In the place of a symbol: the prefix did not grow."""


@dataclass(frozen=True)
class Fusion:
    """A language model in the search (shallow fusion): what it adds to the log-probability of a prefix."""

    model: LanguageModel
    weight: float
    """Factor of its log-probabilities."""
    bonus: float
    """Added for each symbol, against the preference of language models for short text."""

    def of_next(self, context: Tensor) -> Tensor:
        """Return what each next symbol adds after contexts [b, n, order - 1], [b, n, v]; for eos no bonus."""
        log_probs = self.model.next_log_probs(context.flatten(0, 1)).view(*context.shape[:2], -1)
        added = self.weight * log_probs + self.bonus
        added[:, :, EOS] -= self.bonus
        return added


def prefix_beam_search(
    log_probs: Tensor, frames: Tensor, beam: int, fusion: Fusion | None = None, blank_threshold: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Prefix beam search (Hannun et al. 2014; Graves 2012), batched.

    A prefix's probability sums over its alignments; hypotheses that become equal are merged. With a beam that holds
    all prefixes the first is the most probable collapsed string, or the best one by that and the language model.

    Args:
        log_probs: [b, f, v] float32.
        frames: [b] frames that count.
        beam: prefixes kept after each frame.
        fusion: a language model, which ranks prefixes beside CTC and in the end judges whether a text may end.
        blank_threshold: frames whose blank is more probable than this are taken for blank and passed over (Chen et al.
            2016), which most frames of speech are; what other symbols would have there is lost.

    Returns:
        The prefixes held in the end, best first: tokens [b, beam, t] padded with PAD, their numbers [b, beam], and
        log p(tokens | source) of the search, what the language model adds included, [b, beam] float32. Where there are
        fewer, empty ones of minus infinity take the places.
    """
    passed: Tensor | None = None
    if blank_threshold < 1:
        log_probs, frames, passed, blanks = _without_blanks(log_probs, frames, blank_threshold)
    breaks = passed.any(0).tolist() if passed is not None else []
    b, f, v = log_probs.shape
    beam = max(beam, 1)
    # New prefixes come from the `beam` best symbols that lead to a prefix not yet held; fewer than `beam` are held. A
    # language model may prefer symbols that CTC does not rank so high.
    width = min(2 * beam if fusion is None else max(2 * beam, FUSED_SYMBOLS), v - 1)
    symbols = log_probs.clone()
    symbols[:, :, BLANK] = float("-inf")
    top, choice = symbols.topk(width, dim=2)  # [b, f, w]
    shortest = int(frames.min()) if b else 0
    prefixes = _Prefixes.empty(b, beam, fusion.model.order - 1 if fusion else 0, log_probs.device)
    trace = _Trace(b, beam, log_probs.device)
    for i in range(f):
        if passed is not None and breaks[i]:
            prefixes = prefixes.ended_by_blank(passed[:, i, None])
        grown, parent, symbol = _extended(prefixes, log_probs[:, i], top[:, i], choice[:, i], fusion)
        if i >= shortest:
            active = (i < frames)[:, None]
            grown = grown.where(active, prefixes)
            parent, symbol = torch.where(active, parent, trace.same), symbol.masked_fill(~active, _STAYED)
        prefixes = grown
        trace.add(parent, symbol)
    score = prefixes.total
    if passed is not None:
        score = score + blanks[:, None]
    if fusion is not None:
        score = score + prefixes.prior + fusion.of_next(prefixes.context)[:, :, EOS]
    score, order = score.sort(dim=1, descending=True, stable=True)
    tokens, lengths = trace.tokens(order, score > float("-inf"))
    return tokens, lengths, score


def _without_blanks(log_probs: Tensor, frames: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the frames [b, f', v] whose blank is not more probable than `threshold`, and how many they are, [b].

    Then before which of them others were passed over, [b, f'] bool, and the log-probability of these as blanks, [b].
    """
    b, f, _ = log_probs.shape
    real = padding_mask(frames, f)
    blank = log_probs[:, :, BLANK]
    skipped = (blank > math.log(threshold)) & real
    kept = real & ~skipped
    counts = kept.sum(1)
    width = int(counts.max()) if b else 0
    order = kept.long().argsort(dim=1, descending=True, stable=True)[
        :, :width
    ]  # [b, f'] the frames that stay, in order
    few = log_probs.gather(1, order[:, :, None].expand(-1, -1, log_probs.shape[2]))
    before = skipped.cumsum(1).gather(1, order)  # frames passed over so far
    passed = before > torch.cat([before.new_zeros(b, 1), before[:, :-1]], dim=1)
    return few, counts, passed & padding_mask(counts, width), blank.masked_fill(~skipped, 0.0).sum(1)


@dataclass(frozen=True)
class _Prefixes:
    """The prefixes that a beam holds; what they consist of is in the trace."""

    last: Tensor
    """[b, beam] last symbol; PAD of an empty prefix."""
    code: Tensor
    """[b, beam] a running 64-bit hash: equal prefixes have equal codes however they were reached."""
    blank_score: Tensor
    """[b, beam] log-probability of the alignments so far that end in blank."""
    label_score: Tensor
    """[b, beam] that of those that end in the last symbol."""
    prior: Tensor
    """[b, beam] what a language model has added."""
    context: Tensor
    """[b, beam, order - 1] what it looks at; without one, [b, beam, 0]."""

    @classmethod
    def empty(cls, b: int, beam: int, context: int, device: torch.device) -> _Prefixes:
        """Return beams that hold the empty prefix alone."""
        impossible = torch.full((b, beam), float("-inf"), device=device)
        blank_score = impossible.clone()
        blank_score[:, 0] = 0.0
        return cls(
            last=torch.full((b, beam), PAD, device=device),
            code=torch.zeros(b, beam, dtype=torch.long, device=device),
            blank_score=blank_score,
            label_score=impossible,
            prior=torch.zeros(b, beam, device=device),
            context=torch.full((b, beam, context), BOS, device=device),
        )

    @property
    def total(self) -> Tensor:
        """Log-probability of all alignments so far, [b, beam]."""
        return torch.logaddexp(self.blank_score, self.label_score)

    def ended_by_blank(self, which: Tensor) -> _Prefixes:
        """Return the prefixes after blanks that are certain, in the sentences `which` [b, 1]."""
        return replace(
            self,
            blank_score=torch.where(which, self.total, self.blank_score),
            label_score=self.label_score.masked_fill(which, float("-inf")),
        )

    def where(self, active: Tensor, others: _Prefixes) -> _Prefixes:
        """Return these for sentences that are active [b, 1], and `others` for those that have ended."""
        both = ((getattr(self, field.name), getattr(others, field.name)) for field in fields(self))
        return _Prefixes(*(torch.where(active.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in both))


class _Trace:
    """Where each prefix of each frame came from: cheaper than to carry the tokens along."""

    def __init__(self, b: int, beam: int, device: torch.device) -> None:
        """Begin with b x beam prefixes."""
        self.same = torch.arange(beam, device=device).expand(b, beam)
        """[b, beam] the parents of prefixes that do not move."""
        self.parents: list[Tensor] = []
        self.symbols: list[Tensor] = []

    def add(self, parents: Tensor, symbols: Tensor) -> None:
        """Note a frame: each prefix [b, beam] is that of place `parents`, and what it grew by, or _STAYED."""
        self.parents.append(parents)
        self.symbols.append(symbols)

    def tokens(self, order: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens [b, beam, t] of the prefixes in the places `order` [b, beam], and their numbers.

        real: [b, beam] those that there are; the others become empty.
        """
        emitted: list[Tensor] = []
        place = order
        for parents, symbols in zip(reversed(self.parents), reversed(self.symbols), strict=True):
            emitted.append(symbols.gather(1, place))
            place = parents.gather(1, place)
        if not emitted:
            return order.new_zeros(*order.shape, 0), torch.zeros_like(order)
        by_frame = torch.stack(emitted[::-1], dim=2).masked_fill(~real[:, :, None], _STAYED)  # [b, beam, f]
        grew = by_frame != _STAYED
        lengths = grew.sum(2)
        width = int(lengths.max()) if len(lengths) else 0
        rank = torch.where(grew, grew.cumsum(2) - 1, width)  # a spare last column takes the other frames
        tokens = by_frame.new_full((*order.shape, width + 1), PAD).scatter_(2, rank, by_frame)
        return tokens[:, :, :width], lengths


def _extended(
    held: _Prefixes, frame: Tensor, top: Tensor, choice: Tensor, fusion: Fusion | None
) -> tuple[_Prefixes, Tensor, Tensor]:
    """Return the best prefixes after one more frame, which ones they come from, and what each grew by, or _STAYED.

    Args:
        held: the prefixes so far.
        frame: [b, v] log-probabilities.
        top: [b, w] those of the symbols that prefixes may grow by.
        choice: [b, w] these symbols.
        fusion: a language model.
    """
    negative = float("-inf")
    beam, width = held.last.shape[1], choice.shape[1]
    total = held.total
    filled = held.last != PAD
    last = frame.gather(1, held.last)
    # 1. The prefix stays: blank, or its last symbol again.
    stay_blank = total + frame[:, BLANK, None]
    stay_label = (held.label_score + last).masked_fill(~filled, negative)
    # 2. The prefix grows by one symbol; the last symbol again only after a blank.
    again = choice[:, None, :] == held.last[:, :, None]
    grow = torch.where(again, held.blank_score[:, :, None], total[:, :, None]) + top[:, None, :]  # [b, beam, w]
    grow_code = _extend(held.code[:, :, None], choice[:, None, :])
    # 3. A grown prefix that the beam already holds adds to that one instead of standing twice.
    real = filled & (total > negative)  # [b, beam]
    moved = _score_of_parents(held.code, held.last, real, held.blank_score, total) + last
    stay_label = torch.logaddexp(stay_label, moved)
    known = (grow_code.flatten(1)[:, :, None] == held.code[:, None, :]) & real[:, None, :]  # [b, beam*w, beam]
    grow = grow.masked_fill(known.any(-1).view_as(grow), negative)
    # 4. The best `beam` of both kinds go on.
    scores = torch.cat([torch.logaddexp(stay_blank, stay_label), grow.flatten(1)], dim=1)
    if fusion is None:
        label_score, index = scores.topk(beam, dim=1)
    else:
        added = fusion.of_next(held.context).gather(2, choice[:, None, :].expand(-1, beam, -1))  # [b, beam, w]
        priors = torch.cat([held.prior, (held.prior[:, :, None] + added).flatten(1)], dim=1)
        index = (scores + priors).topk(beam, dim=1).indices
        label_score = scores.gather(1, index)
    grown = index >= beam
    offspring = (index - beam).clamp(min=0)
    parent = torch.where(grown, offspring // width, index)
    symbol = choice.gather(1, offspring % width)
    code = held.code.gather(1, parent)
    prior, context = held.prior, held.context
    if fusion is not None:
        prior = priors.gather(1, index)
        context = context.gather(1, parent[:, :, None].expand(-1, -1, context.shape[2]))
        moved_on = torch.cat([context, symbol[:, :, None]], dim=2)[:, :, 1:]
        context = torch.where(grown[:, :, None], moved_on, context)
    prefixes = _Prefixes(
        last=torch.where(grown, symbol, held.last.gather(1, parent)),
        code=torch.where(grown, _extend(code, symbol), code),
        blank_score=stay_blank.gather(1, parent).masked_fill(grown, negative),
        label_score=torch.where(grown, label_score, stay_label.gather(1, parent)),
        prior=prior,
        context=context,
    )
    return prefixes, parent, symbol.masked_fill(~grown, _STAYED)


def _score_of_parents(code: Tensor, last: Tensor, held: Tensor, blank_score: Tensor, total: Tensor) -> Tensor:
    """Return for each prefix of a beam [b, beam] the score with which shorter ones can grow into it, symbol apart.

    Asked for all pairs, not only for the best symbols of a frame: the symbol between two held prefixes can be any.
    """
    child = _extend(code[:, :, None], last[:, None, :]) == code[:, None, :]  # [b, parent, child]
    before = torch.where(last[:, None, :] == last[:, :, None], blank_score[:, :, None], total[:, :, None])
    return torch.where(child & held[:, None, :], before, float("-inf")).logsumexp(1)


def _extend(code: Tensor, symbol: Tensor) -> Tensor:
    """Return the 64-bit code of a prefix extended by a symbol (wrapping multiply-add)."""
    return (code + symbol + 1) * 6364136223846793005 + 1442695040888963407
