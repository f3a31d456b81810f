"""Parts of the test set that values are over, named by a tag of the examples and its range: `snr_db=0..5`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?"
_NAME = re.compile(rf"(?P<tag>[^\W\d]\w*)=(?P<low>{_NUMBER})\.\.(?P<high>{_NUMBER})")

POSITION = "position"
"""The tag of the subsets that are parts of every reference: from 0 to 100 % of its length."""

TAGS = {
    "snr_db": ("SNR", "dB"),
    "wpm": ("Speed", "words/min"),
    "seconds": ("Duration", "s"),
    POSITION: ("Position in the reference", "%"),
}
"""How tags are called, and their units; others go by their own names."""


@dataclass(frozen=True, order=True)
class Subset:
    """A tag from one value to another. Subsets sort by tag, then by rising numbers."""

    tag: str
    low: float
    high: float

    @classmethod
    def parse(cls, name: str) -> Subset:
        """Read a name.

        Raises:
            ValueError: it is none: a tag, `=`, and two rising numbers with `..` between them.
        """
        if found := _NAME.fullmatch(name):
            low, high = float(found["low"]), float(found["high"])
            if low < high and math.isfinite(low) and math.isfinite(high):
                return cls(found["tag"], low, high)
        raise ValueError(f"{name!r} is no subset; one is written tag=from..to, such as snr_db=0..5")

    def __str__(self) -> str:
        return f"{self.tag}={self.range}"

    @property
    def range(self) -> str:
        """`0..5`."""
        return f"{_shortest(self.low)}..{_shortest(self.high)}"

    @property
    def middle(self) -> float:
        """Half-way between both ends."""
        return (self.low + self.high) / 2


def _shortest(number: float) -> str:
    """Return `number` so that it is read as itself: without `.0` if it is whole."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def tag_title(tag: str) -> str:
    """Return what a tag is called, with its unit: `SNR (dB)`."""
    title, unit = TAGS.get(tag, (tag, ""))
    return f"{title} ({unit})" if unit else title
