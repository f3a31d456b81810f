"""An n-gram language model as tables: the longest stored context of a prefix gives the distribution of what follows.

Interpolated Witten-Bell smoothing (Witten & Bell 1991; Chen & Goodman 1999): what follows a context h in the text has
probability (count + T(h) p(symbol | shorter context)) / (total + T(h)), where T(h) is the number of different symbols
that followed h. Below the empty context lies the uniform distribution.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.interface import BOS, EOS, NUM_SPECIAL

MOST_ENTRIES = 2**26
"""Probabilities that all tables may hold together: 256 MiB."""


class NgramModel:
    """Probabilities of the next symbol, end of sentence included, after the last `order` - 1 symbols."""

    def __init__(self, order: int, codes: list[Tensor], tables: list[Tensor]) -> None:
        """Take for each context length 0..order-1 the rising codes of contexts [c] and their log-probabilities [c, v].

        The code of a context is the number that its ids spell to the base v.
        """
        self.order = order
        self.codes = codes
        self.tables = tables

    @classmethod
    def fit(cls, sentences: Sequence[Sequence[int]], order: int, vocab_size: int) -> NgramModel:
        """Count `sentences` of ids.

        Raises:
            ValueError: order below 1, no sentence, or too many contexts for the vocabulary.
        """
        if order < 1:
            raise ValueError(f"the order of a language model must be at least 1, not {order}")
        if not sentences:
            raise ValueError("a language model needs text")
        history = np.array(
            [([BOS] * (order - 1) + list(s))[i : i + order - 1] for s in sentences for i in range(len(s) + 1)],
            dtype=np.int64,
        )
        following = np.array([symbol for s in sentences for symbol in (*s, EOS)])
        history = history.reshape(len(following), order - 1)
        emitted = np.zeros(vocab_size)
        emitted[[EOS, *range(NUM_SPECIAL, vocab_size)]] = 1
        below = emitted[None] / emitted.sum()
        codes: list[np.ndarray] = []
        tables: list[np.ndarray] = []
        entries = 0
        for length in range(order):
            code = _codes(history[:, order - 1 - length :], vocab_size)
            known, row = np.unique(code, return_inverse=True)
            entries += len(known) * vocab_size
            if entries > MOST_ENTRIES:
                raise ValueError(
                    f"a language model of order {order} has too many contexts for {vocab_size} symbols; "
                    f"order {length} fits"
                )
            counts = np.zeros((len(known), vocab_size))
            np.add.at(counts, (row, following), 1)
            kinds = (counts > 0).sum(1, keepdims=True)
            if length:  # the shorter context of each: its code without the first id
                below = below[np.searchsorted(codes[-1], known % vocab_size ** (length - 1))]
            below = (counts + kinds * below) / (counts.sum(1, keepdims=True) + kinds)
            codes.append(known)
            with np.errstate(divide="ignore"):
                tables.append(np.log(below))
        return cls(order, [torch.from_numpy(c) for c in codes], [torch.from_numpy(t).float() for t in tables])

    def to(self, device: torch.device | str) -> NgramModel:
        """Return the same model on `device`."""
        return NgramModel(self.order, [c.to(device) for c in self.codes], [t.to(device) for t in self.tables])

    def next_log_probs(self, context: Tensor) -> Tensor:
        """Return log-probabilities [n, v] of what follows contexts [n, order - 1], filled up with BOS from the left.

        Symbols that are never emitted have minus infinity.
        """
        result = self.tables[0].expand(context.shape[0], -1)
        v = result.shape[1]
        code = torch.zeros_like(context[:, 0]) if context.shape[1] else None
        for length in range(1, self.order):
            assert code is not None
            code = code + context[:, -length] * v ** (length - 1)
            known = self.codes[length]
            row = torch.searchsorted(known, code).clamp(max=len(known) - 1)
            result = torch.where((known[row] == code)[:, None], self.tables[length][row], result)
        return result


def _codes(contexts: np.ndarray, base: int) -> np.ndarray:
    """Return the numbers that contexts [n, k] spell, [n]; the last id counts 1."""
    weights = base ** np.arange(contexts.shape[1] - 1, -1, -1, dtype=np.int64)
    result: np.ndarray = contexts @ weights if contexts.shape[1] else np.zeros(len(contexts), dtype=np.int64)
    return result
