"""Errors that a user can mend: printed as one line, exit code 3."""

from collections.abc import Iterable

from rapidfuzz import process


class UserError(Exception):
    """Bad input: a suite, a file or an argument. The message names the field, the value and what is allowed."""


class DataError(UserError):
    """A data file is missing, damaged or not what the task needs."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return "; did you mean 'X'?" for the closest allowed name, else an empty string."""
    match = process.extractOne(name, list(allowed), score_cutoff=60)
    return f"; did you mean {match[0]!r}?" if match else ""
