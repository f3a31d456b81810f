"""How an output differs from a reference, piece by piece, for people to see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from bench.figures.style import literal

MAX_PIECES = 4000
"""Longer texts are compared no further: nobody reads them."""


@dataclass(frozen=True)
class Piece:
    """A stretch of text."""

    kind: str
    """same | extra (in the output alone) | missing (in the reference alone)."""
    text: str


def marked(output: str, references: Sequence[str]) -> list[Piece]:
    """Return `output` as pieces that say how it differs from the nearest of `references`.

    Words are compared, or characters where there is but one word (see `by_words`). Characters that cannot be shown are
    replaced. Without references, or if it is very long, all of it is `same`.
    """
    if not references or len(output) > MAX_PIECES:
        return [Piece("same", literal(output))] if output else []
    words = by_words(output, references)
    pieces = [_compare(_parts(output, words), _parts(reference, words), words) for reference in references]
    return min(pieces, key=_difference)


def by_words(output: str, references: Sequence[str]) -> bool:
    """Return whether pieces are made of words, with a space between two of them."""
    return any(len(text.split()) > 1 for text in (output, *references))


def error_share(output: str, references: Sequence[str]) -> float:
    """Return the edits between `output` and the nearest of `references`, in words over the words of the longer, 0-1."""
    return min((Levenshtein.normalized_distance(output.split(), each.split()) for each in references), default=0.0)


def _parts(text: str, words: bool) -> list[str]:
    return text.split() if words else list(text)


def _compare(output: Sequence[str], reference: Sequence[str], words: bool) -> list[Piece]:
    gap = " " if words else ""
    pieces: list[Piece] = []
    missing: list[str] = []
    extra: list[str] = []

    def close() -> None:
        """Put what differs since the last piece that does not."""
        for kind, parts in (("missing", missing), ("extra", extra)):
            if parts:
                pieces.append(Piece(kind, literal(gap.join(parts))))
                parts.clear()

    for code in Levenshtein.opcodes(reference, output):
        old, new = reference[code.src_start : code.src_end], output[code.dest_start : code.dest_end]
        if code.tag == "equal":
            close()
            pieces.append(Piece("same", literal(gap.join(new))))
        else:
            missing += old
            extra += new
    close()
    return pieces


def _difference(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.text) for piece in pieces if piece.kind != "same")
