"""Transcripts of speech: the form in which they are trained on and scored, and the units they are made of."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from bench.text import CharTokenizer, SubwordTokenizer, Tokenizer, normalise

Case = Literal["lower", "upper", "keep"]
Units = Literal["characters", "subwords"]


def normalise_transcript(text: str, case: Case) -> str:
    """Return `text` as tokenisers have it (NFKC, white space merged, none at the ends), its letters in `case`.

    Tokenisers can give nothing else, so that without this a right answer could be counted as wrong.
    """
    text = normalise(text)
    return text if case == "keep" else normalise(text.lower() if case == "lower" else text.upper())


def unusable_symbol(text: str) -> str | None:
    """Return the first control character or half of a surrogate pair in `text`, as `U+001B`; None if there is none.

    The former nobody says, the latter is no text: UTF-8 cannot hold it.
    """
    found = (symbol for symbol in text if unicodedata.category(symbol) in ("Cc", "Cs"))
    return next((f"U+{ord(symbol):04X}" for symbol in found), None)


def least_tokens(text: str, units: Units) -> int:
    """Return how many tokens normalised `text` has at the least, before any vocabulary is known."""
    return len(text) if units == "characters" else len(text.split())


def train_tokenizer(texts: Sequence[str], units: Units, vocab_size: int, folder: Path) -> Tokenizer:
    """Return a tokeniser that knows every character of `texts`, saved into `folder`.

    Raises:
        DataError: `vocab_size` subwords are too few or cannot be had.
    """
    if units == "subwords":
        return SubwordTokenizer.train(texts, vocab_size, folder)
    tokenizer = CharTokenizer.train(texts)
    tokenizer.save(folder)
    return tokenizer
