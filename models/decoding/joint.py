"""Joint decoding by attention and CTC (Watanabe et al. 2017): the hypotheses of a beam search, scored by both.

CTC scores a prefix by the probability of all strings that begin with it. That is a sum over the frame at which its
last symbol is first emitted, of what the frames before may have said: two forward variables per frame, one for
alignments that end in blank and one for those that end in the last symbol. Both obey linear recurrences over the
frames, x(t) = p(t) (x(t-1) + y(t-1)), whose solution is a cumulative sum in the log domain: no loop runs over frames.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from models.encoder import Encoded
from models.interface import BLANK, BOS
from models.joint_ctc import CTCHead
from models.layers import padding_mask

CANDIDATES = 16
"""Symbols of each hypothesis that CTC is asked about, the most probable ones by attention, if the beam is no wider."""
_FORBIDDEN = -1e30
_LEAST = -1e3
"""Log-probability below which a symbol's does not fall, so that sums over frames keep their precision."""


class Scorer(Protocol):
    """A second opinion on the extensions of n hypotheses."""

    candidates: int
    """Symbols of each hypothesis that it is asked about."""

    def rescore(self, symbols: Tensor, log_probs: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Return what stands for the log-probabilities [n, c] of symbols [n, c], and for those of eos, [n]."""
        ...

    def advance(self, rows: Tensor, choices: Tensor, sentences: Tensor | None) -> None:
        """Keep hypotheses `rows` [m] in that order, each extended by its symbol number `choices` [m] of `rescore`.

        sentences: as in `Stepper.select`.
        """
        ...


class CTCScorer:
    """Weighs the log-probabilities of attention with those of CTC; sums over steps are those of whole prefixes."""

    def __init__(self, log_probs: Tensor, frames: Tensor, beam: int, weight: float) -> None:
        """Start from the empty prefix in b x beam rows.

        Args:
            log_probs: [b, f, v] of the symbols at each frame.
            frames: [b] frames that count.
            beam: rows of a sentence, side by side.
            weight: share of CTC, 0 to 1; attention has the rest.
        """
        real = padding_mask(frames, log_probs.shape[1])
        x = log_probs.double().clamp(min=_LEAST).masked_fill(~real[:, :, None], _LEAST)
        x[:, :, BLANK] = x[:, :, BLANK].masked_fill(~real, 0.0)  # behind the end nothing is said, for certain
        self.log_probs = x
        self.blanks = _cumulated(x[:, :, BLANK])  # [b, f+1]
        self.beam = beam
        self.weight = weight
        self.candidates = max(CANDIDATES, beam)
        n = len(x) * beam
        self.in_blank = self.blanks.repeat_interleave(beam, 0)  # [n, f+1]: of the first t frames
        self.in_symbol = torch.full_like(self.in_blank, _FORBIDDEN)
        self.last = torch.full((n,), BOS, device=x.device)
        self.score = x.new_zeros(n)  # log-probability of the prefix
        self.symbols = self.last[:, None]
        self.extended = self.score[:, None]

    def rescore(self, symbols: Tensor, log_probs: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """See `Scorer`; symbols [n, c] are none that CTC has as special ones."""
        emitted = self._emissions(symbols)  # [n, f, c]
        before = self._before(symbols)[:, :-1]  # [n, f, c]
        self.symbols, self.extended = symbols, (before + emitted).logsumexp(1)  # [n, c]
        whole = torch.logaddexp(self.in_blank[:, -1], self.in_symbol[:, -1])
        return (
            self._mixed(log_probs, self.extended - self.score[:, None]),
            self._mixed(ends, whole - self.score),
        )

    def advance(self, rows: Tensor, choices: Tensor, sentences: Tensor | None) -> None:
        """See `Scorer`."""
        symbols = self.symbols[rows, choices][:, None]
        before = self._before(symbols, rows)[:, :-1, 0]  # [m, f]
        scores = self.extended[rows, choices]
        if sentences is not None:
            self.log_probs = self.log_probs.index_select(0, sentences)
            self.blanks = self.blanks.index_select(0, sentences)
        spoken = _cumulated(self._emissions(symbols)[:, :, 0])  # [m, f+1]
        blanks = self.blanks.repeat_interleave(self.beam, 0)
        self.in_symbol = _chained(before, spoken)
        self.in_blank = _chained(self.in_symbol[:, :-1], blanks)
        self.last, self.score = symbols[:, 0], scores

    def _mixed(self, attention: Tensor, ctc: Tensor) -> Tensor:
        return (1 - self.weight) * attention + self.weight * ctc.to(attention.dtype)

    def _before(self, symbols: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return what t frames may have said before a new symbol of [m, c] comes, [m, f+1, c].

        After the same symbol there must have been a blank.
        """
        in_blank, in_symbol, last = self.in_blank, self.in_symbol, self.last
        if rows is not None:
            in_blank, in_symbol, last = in_blank[rows], in_symbol[rows], last[rows]
        either = torch.logaddexp(in_blank, in_symbol)
        return torch.where((symbols == last[:, None])[:, None], in_blank[:, :, None], either[:, :, None])

    def _emissions(self, symbols: Tensor) -> Tensor:
        """Return log-probabilities [m, f, c] of symbols [m, c] of all live rows."""
        b, f, _ = self.log_probs.shape
        of_sentence = symbols.view(b, 1, -1).expand(-1, f, -1)  # [b, f, beam * c]
        found = self.log_probs.gather(2, of_sentence).view(b, f, self.beam, -1)
        return found.transpose(1, 2).flatten(0, 1)


def ctc_scorer(head: CTCHead | None, source: Encoded, beam: int, weight: float) -> CTCScorer:
    """Return the CTC scores of `beam` hypotheses for each encoded source; see `CTCScorer`."""
    assert head is not None, "suites refuse settings that do not fit the config"
    frames = head.upsample(source.states)  # [b, f, d]
    return CTCScorer(head.output(frames).log_softmax(-1), source.lengths * head.upsample.factor, beam, weight)


def _cumulated(x: Tensor) -> Tensor:
    """Return the sums of the first t = 0..f columns of x [n, f], [n, f+1]."""
    return torch.cat([x.new_zeros(len(x), 1), x.cumsum(1)], dim=1)


def _chained(before: Tensor, cumulated: Tensor) -> Tensor:
    """Return log r(t) [n, f+1], r(t) = p(t) (r(t-1) + before(t-1)) and r(0) = 0.

    before: [n, f] logarithms; cumulated: [n, f+1] sums of the first log p.
    """
    sums = cumulated[:, 1:] + (before - cumulated[:, :-1]).logcumsumexp(1)
    return torch.cat([sums.new_full((len(sums), 1), _FORBIDDEN), sums], dim=1)
