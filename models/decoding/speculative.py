"""Speculative decoding: a draft proposes tokens, and the model verifies a block of them in one pass.

Leviathan et al. 2023 and Chen et al. 2023, for a draft that goes on from the verified prefix; aggressive decoding (Sun
et al. 2021; Ge et al. 2022) for one that proposes a whole output at the start. The result is that of decoding without
a draft, whatever the draft: the same tokens if greedy (but for ties within rounding: one pass over a block adds up in
another order than one over a token), the same distribution if sampled. Deviations: a whole output that diverges goes
on behind the place where the last two tokens, or failing that the last one, next occur in it, else behind the token
that was refused (Sun et al. fall back to single tokens); a batch verifies blocks of one width, and a sentence accepts
of its own what it can.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.decoding.autoregressive import truncated
from models.decoding.noise import gumbel_noise, uniform_noise
from models.interface import BOS, EOS, PAD, Decoded, Family, Model, Options
from models.layers import padding_mask

# Added to a position: what is drawn there to accept and to replace is independent of what is drawn to propose.
ACCEPTANCE, REPLACEMENT = 2**32, 2**33


class BlockStepper(Protocol):
    """A model's incremental state for n sentences, whose prefixes differ in length and may be cut back."""

    def step_block(self, tokens: Tensor, starts: Tensor, end: int) -> Tensor:
        """Consume tokens [n, m] at positions starts [n], starts + 1, ... and return float32 logits [n, m, v].

        What was consumed at or after these positions before is forgotten. All positions are below `end`.
        """
        ...

    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        """Keep rows `rows` [m] of the state, which are `sentences` [m] of the source."""
        ...


@dataclass(frozen=True)
class Sampler:
    """The distribution to sample from; see `models.decoding.autoregressive.sample`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __call__(self, logits: Tensor) -> Tensor:
        """Return probabilities [..., v] of logits [..., v]."""
        cut = truncated(logits.flatten(0, -2), self.temperature, self.top_k, self.top_p)
        return cut.softmax(-1).view_as(logits)


@dataclass(frozen=True)
class Prefix:
    """What is decided of n sentences."""

    tail: Tensor
    """[n, 2] the last two symbols; bos stands before the first token, and before itself."""
    lengths: Tensor
    """[n] tokens, 0 for all sentences in the first round and at least 1 later."""
    longest: int
    """The largest of `lengths`."""
    seeds: Tensor
    """[n] int64: what the noise of a sentence depends on, beside the position."""


class Drafter(Protocol):
    """Proposes how n sentences go on."""

    def propose(self, prefix: Prefix, count: int) -> tuple[Tensor, Tensor | None]:
        """Return up to `count` proposals [n, k], PAD where there is none, and the probabilities [n, k, v] they had.

        None instead of probabilities: the proposals follow from the prefix.
        """
        ...

    def select(self, rows: Tensor) -> None:
        """Keep rows `rows` [m] of the state, in that order."""
        ...


class ContinuingDraft:
    """An autoregressive model that goes on from the prefix, a pass a token: greedily, or drawing from `sampler`."""

    def __init__(self, stepper: BlockStepper, sampler: Sampler | None) -> None:
        self.stepper = stepper
        self.sampler = sampler

    def propose(self, prefix: Prefix, count: int) -> tuple[Tensor, Tensor | None]:
        """See `Drafter`."""
        # The last token but one is consumed again, for it may be a proposal that the stepper never came to consume.
        block = prefix.tail[:, -1 - min(prefix.longest, 1) :]
        proposals, chances = [prefix.tail[:, :0]], []
        for ahead in range(count):
            last = prefix.lengths + ahead  # position of the last symbol consumed, and among tokens of the next one
            logits = self.stepper.step_block(block, last + 1 - block.shape[1], prefix.longest + ahead + 1)[:, -1]
            if self.sampler is None:
                block = logits.argmax(-1)[:, None]
            else:
                chance = self.sampler(logits)
                chances.append(chance)
                noise = gumbel_noise(prefix.seeds, last[:, None], chance.shape[1])
                block = (chance.log() + noise).argmax(-1)[:, None]
            proposals.append(block)
        return torch.cat(proposals, 1), torch.stack(chances, 1) if chances else None

    def select(self, rows: Tensor) -> None:
        """See `Drafter`."""
        self.stepper.select(rows, rows)


class WholeDraft:
    """An output from anywhere, which is followed as far as it goes and taken up again where it fits.

    Args:
        tokens: [n, t].
        lengths: [n].
    """

    def __init__(self, tokens: Tensor, lengths: Tensor) -> None:
        self.tokens = tokens.masked_fill(~padding_mask(lengths, tokens.shape[1]), PAD)
        self.next = torch.zeros_like(lengths)  # the token of the draft to propose next
        self.floor = torch.zeros_like(lengths)  # that behind the last one which was confirmed
        self.done = torch.zeros_like(lengths)  # length of the prefix at the last proposal

    def propose(self, prefix: Prefix, count: int) -> tuple[Tensor, None]:
        """See `Drafter`."""
        if prefix.longest:
            self._realign(prefix)
        t = self.tokens.shape[1]
        index = self.next[:, None] + torch.arange(min(count, t), device=self.tokens.device)
        return F.pad(self.tokens, (0, 1), value=PAD).gather(1, index.clamp(max=t)), None

    def _realign(self, prefix: Prefix) -> None:
        """Find where the draft goes on behind the tokens of the last round: accepted ones and one of the model's."""
        t = self.tokens.shape[1]
        accepted = prefix.lengths - self.done - 1
        self.done = prefix.lengths
        expected = self.next + accepted  # place of the model's token if the draft is right, or wrong in this token only
        self.floor = torch.where(accepted > 0, expected, self.floor)
        place = torch.arange(t, device=self.tokens.device)
        before = F.pad(self.tokens[:, :-1], (1, 0), value=BOS)[:, :t]
        same = (self.tokens == prefix.tail[:, 1:]) & (place >= self.floor[:, None])
        longer = same & (before == prefix.tail[:, :1])
        # The longer suffix, then the nearer place. Where the draft is right it is both.
        rank = (same.long() + longer.long()) * (t + 1) - place
        best, found = F.pad(rank, (0, 1)).max(1)  # 0 where nothing is the same
        self.next = torch.where(best > 0, found, expected) + 1

    def select(self, rows: Tensor) -> None:
        """See `Drafter`."""
        self.tokens, self.next, self.floor, self.done = (
            x.index_select(0, rows) for x in (self.tokens, self.next, self.floor, self.done)
        )


def drafter_from(draft: Model, src: Tensor, src_len: Tensor, size: int, sampler: Sampler | None) -> Drafter:
    """Return the drafter that a trained model makes for src [b, s] with lengths [b].

    A model with a method `block_stepper` goes on from each prefix: it takes src, src_len and the number of positions,
    and returns a `BlockStepper`. Any other decodes once, with the default settings of its family.

    Raises:
        ValueError: there is no family to take the default settings of.
    """
    begin = getattr(draft, "block_stepper", None)
    if callable(begin):
        return ContinuingDraft(begin(src, src_len, size), sampler)
    decoded = draft.decode(src, src_len, _default_settings(draft))
    return WholeDraft(decoded.tokens, decoded.lengths)


def _default_settings(model: Model) -> Options:
    family = getattr(sys.modules[type(model).__module__], Family.ATTRIBUTE, None)
    if not isinstance(family, Family):
        raise ValueError(f"{type(model).__name__} cannot draft: its module defines no {Family.ATTRIBUTE}")
    return family.settings()


def speculative(
    stepper: BlockStepper,
    drafter: Drafter,
    limits: Tensor,
    count: int,
    row_seeds: Tensor,
    sampler: Sampler | None = None,
) -> Decoded:
    """Decode as `greedy`, or as `sample` with a sampler, in no more passes and often fewer.

    Args:
        stepper: the model's incremental state of b sentences, for max(limits) + 1 + min(count, max(limits)) positions.
        drafter: what proposes.
        limits: [b] most tokens each sentence may emit.
        count: proposals that a pass verifies at most.
        row_seeds: [b] int64; the noise of a sentence depends on its seed and position alone.
        sampler: what to sample from; None takes the most probable token.

    Returns:
        Scores are log-probabilities of the output, eos included; iterations are passes of the stepper.
    """
    b, device = limits.shape[0], limits.device
    width = int(limits.max()) if b else 0
    symbols_so_far = torch.full((b, width + 2), PAD, device=device)  # bos, tokens, and a column for what is dropped
    symbols_so_far[:, 0] = BOS
    lengths = torch.zeros(b, dtype=torch.long, device=device)
    scores = torch.zeros(b, device=device)
    passes = torch.zeros(b, dtype=torch.long, device=device)
    rows = torch.arange(b, device=device)  # sentence of each live row
    done, seeds = torch.zeros_like(lengths), row_seeds  # of the live rows
    n, longest, room = b, 0, width
    while n:
        tail = symbols_so_far[rows[:, None], torch.stack([(done - 1).clamp(min=0), done], 1)]
        proposals, chances = drafter.propose(Prefix(tail, done, longest, seeds), min(count, room))
        m = proposals.shape[1] + 1
        logits = stepper.step_block(torch.cat([tail[:, 1:], proposals], 1), done, longest + m)
        if sampler is None:
            choice, accepted = _verified(logits, proposals)
        else:
            choice, accepted = _sampled(sampler(logits), proposals, chances, seeds, done)
        ahead = torch.arange(m, device=device)
        # At its limit a sentence can only end.
        choice = torch.where(done[:, None] + ahead >= limits[rows, None], EOS, choice)
        ends = choice == EOS
        counted = (ahead <= accepted[:, None]) & (ends.cumsum(1) - ends.long() == 0)  # up to the first eos
        log_probs = logits.gather(2, choice[:, :, None])[:, :, 0] - logits.logsumexp(2)
        scores[rows] += log_probs.where(counted, 0.0).sum(1)
        passes[rows] += 1
        emitted = counted & ~ends
        column = torch.where(emitted, done[:, None] + 1 + ahead, width + 1)
        symbols_so_far[rows[:, None], column] = choice.where(emitted, PAD)
        done = done + emitted.sum(1)
        lengths[rows] = done
        going = ~(counted & ends).any(1)
        numbers = torch.stack([going.sum(), (done * going).max(), ((limits[rows] - done) * going).max()])
        live, longest, room = numbers.tolist()  # one transfer sizes the next round
        if 0 < live < n:  # finished sentences leave the batch
            kept = going.nonzero()[:, 0]
            stepper.select(kept, kept)
            drafter.select(kept)
            rows, done, seeds = rows[kept], done[kept], seeds[kept]
        n = live
    return Decoded(symbols_so_far[:, 1 : 1 + (int(lengths.max()) if b else 0)], lengths, scores, passes)


def _verified(logits: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
    """Return the most probable symbols [n, k + 1] of logits [n, k + 1, v] and how many proposals [n, k] equal them.

    Only proposals before the first other one count; behind them comes one symbol of the model's own.
    """
    best = logits.argmax(-1)
    return best, _leading(proposals == best[:, :-1])


def _sampled(
    target: Tensor, proposals: Tensor, chances: Tensor | None, seeds: Tensor, done: Tensor
) -> tuple[Tensor, Tensor]:
    """Return symbols [n, k + 1] and how many proposals [n, k] are accepted; one drawn symbol stands behind them.

    A proposal of probability q under the draft and p under the model is accepted with probability min(1, p / q), else
    replaced by a draw from max(0, p - q), normalised (Leviathan et al. 2023, appendix A.1). A proposal without
    `chances` had q = 1.

    target: [n, k + 1, v] probabilities p; chances: [n, k, v] probabilities q; done: [n] position of the first.
    """
    n, k = proposals.shape
    p = target[:, :-1].gather(2, proposals[:, :, None])[:, :, 0]
    q = 1.0 if chances is None else chances.gather(2, proposals[:, :, None])[:, :, 0]
    position = (done[:, None] + torch.arange(k, device=done.device) + ACCEPTANCE).view(-1, 1)
    noise = uniform_noise(seeds.repeat_interleave(k), position, 1).view(n, k)
    accepted = _leading(noise * q < p)

    row = torch.arange(n, device=done.device)
    refused = F.pad(proposals, (0, 1), value=PAD)[row, accepted]  # PAD if nothing was proposed: then p alone counts
    mine = target[row, accepted]
    if chances is None:
        theirs = torch.zeros_like(mine).scatter_(1, refused[:, None], 1.0)
    else:
        theirs = F.pad(chances, (0, 0, 0, 1))[row, accepted]
    rest = (mine - theirs).clamp(min=0)
    rest = torch.where(rest.sum(1, keepdim=True) > 0, rest, mine)  # p = q, refused by rounding alone
    # Where nothing was proposed the noise is that of plain sampling; elsewhere the draft has drawn from that.
    position = (done + accepted)[:, None] + torch.where(refused == PAD, 0, REPLACEMENT)[:, None]
    drawn = (rest.log() + gumbel_noise(seeds, position, rest.shape[1])).argmax(-1)
    return F.pad(proposals, (0, 1), value=PAD).scatter(1, accepted[:, None], drawn[:, None]), accepted


def _leading(same: Tensor) -> Tensor:
    """Return the number of leading True values of [n, k], [n]."""
    return same.long().cumprod(1).sum(1)
