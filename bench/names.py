"""Names that what writes results and what reads them must agree on. No torch."""

from __future__ import annotations

import json
import re
from typing import Any

SENTENCES = "sentences.jsonl"
"""Beside the outputs of a task's cells: the sentences that they are for, line by line."""


FREE_RUNNING, TEACHER_FORCED = "token_accuracy", "teacher_forced_accuracy"
"""Metrics by position in the reference; see `bench.accuracy_by_position`."""

FIXED_LENGTH = "|length:source"
"""How the signature of the length ratio ends if outputs were made as long as their sources."""


def cell_id(system: str, data: str, seed: int | None, settings: str) -> str:
    """Return what tells the cells of a task apart, fit for file names: `ctc-distilled-s1-beam=5`."""
    return "-".join(filter(None, (system, data, f"s{seed}", slug(settings))))


def slug(text: str) -> str:
    """Return `text` with only letters, digits and `._=+-`, fit for a file name."""
    return re.sub(r"[^A-Za-z0-9._=+]+", "-", text).strip("-")


def escape(text: str) -> str:
    r"""Return `text` on one line: a backslash is written as `\\`, a line feed as `\n`, a carriage return as `\r`."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def read_json_lines(text: str) -> list[Any]:
    """Return the values of a text that has one a line; only line feeds end lines, for values may hold other breaks.

    Raises:
        ValueError: a line is no JSON.
    """
    return [json.loads(line) for line in text.split("\n") if line]


def unescape(line: str) -> str:
    """Return the text that `escape` has put on one line."""
    return re.sub(r"\\(.)", lambda match: {"n": "\n", "r": "\r"}.get(match[1], match[1]), line)
