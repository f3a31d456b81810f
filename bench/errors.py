"""Errors that a user can mend: printed as one line, exit code 3."""

from collections.abc import Iterable

from rapidfuzz import process
from rapidfuzz.distance import DamerauLevenshtein

MAX_REASON = 200
"""Most characters of a reason that is made from an error."""


class UserError(Exception):
    """Bad input: a suite, a file or an argument. The message names the field, the value and what is allowed."""


class DataError(UserError):
    """A data file is missing, damaged or not what the task needs."""


def reason_of(error: BaseException) -> str:
    """Return what to report of an unexpected error: its type and the first line that says something, in one line."""
    from pydantic import ValidationError

    text = str(error)
    if isinstance(error, ValidationError):  # its first line only counts
        details = error.errors(include_url=False, include_context=False)
        found = [": ".join(filter(None, (".".join(map(str, d["loc"])), d["msg"]))) for d in details]
        text = "; ".join(" ".join(each.split()) for each in found)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    reason = f"{type(error).__name__}: {next(filter(None, lines), '')}".removesuffix(": ")
    return reason if len(reason) <= MAX_REASON else f"{reason[: MAX_REASON - 1]}…"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return "; did you mean 'X'?" for the closest allowed name, else an empty string."""
    names = list(allowed)
    # First a slip of the fingers, then an abbreviation: else 'cct' would be nearer to 'insertion' than to 'ctc'.
    match = process.extractOne(name, names, scorer=DamerauLevenshtein.normalized_similarity, score_cutoff=0.55)
    match = match or process.extractOne(name, names, score_cutoff=60)
    return f"; did you mean {match[0]!r}?" if match else ""
