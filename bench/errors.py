"""Errors that a user can mend: printed as one line, exit code 3."""

from collections.abc import Iterable

from rapidfuzz import process
from rapidfuzz.distance import DamerauLevenshtein


class UserError(Exception):
    """Bad input: a suite, a file or an argument. The message names the field, the value and what is allowed."""


class DataError(UserError):
    """A data file is missing, damaged or not what the task needs."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return "; did you mean 'X'?" for the closest allowed name, else an empty string."""
    names = list(allowed)
    # First a slip of the fingers, then an abbreviation: else 'cct' would be nearer to 'insertion' than to 'ctc'.
    match = process.extractOne(name, names, scorer=DamerauLevenshtein.normalized_similarity, score_cutoff=0.55)
    match = match or process.extractOne(name, names, score_cutoff=60)
    return f"; did you mean {match[0]!r}?" if match else ""
