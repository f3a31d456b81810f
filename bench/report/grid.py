"""A table of the report: what a sheet says, with a number for each cell that it can be sorted by."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.sheets import MISSING, Sheet

FAMILY, DATA = "Family", "Trained on"
_FACTORS = {"k": 1e3, "M": 1e6, "G": 1e9}
_NUMBER = re.compile(r"([+-]?\d+(?:\.\d+)?)(?: ([kMG]))?(?![A-Za-z0-9.])")


@dataclass(frozen=True)
class Value:
    """A cell of a table."""

    text: str
    main: str
    """The value itself."""
    rest: str
    """What follows it: interval, spread, footnote."""
    key: float | None = None
    """What it is sorted by; None if there is no number."""


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    values: list[Value]
    family: str
    data: str


@dataclass(frozen=True)
class Grid:
    """A table."""

    title: str
    header: list[str]
    num_names: int
    rows: list[Row]

    @property
    def families(self) -> list[str]:
        """The families that occur, in their order."""
        return list(dict.fromkeys(row.family for row in self.rows if row.family))

    @property
    def kinds_of_data(self) -> list[str]:
        """What systems were trained on, in the order of the rows."""
        return list(dict.fromkeys(row.data for row in self.rows if row.data))

    def of_family(self, family: str) -> Grid | None:
        """Return the rows of one family, without columns that it has no values in; None if nothing is left."""
        rows = [row for row in self.rows if row.family == family]
        kept = [
            i for i in range(len(self.header)) if i < self.num_names or any(r.values[i].text != MISSING for r in rows)
        ]
        if not rows or len(kept) == self.num_names:
            return None
        cut = [Row([row.values[i] for i in kept], row.family, row.data) for row in rows]
        return Grid(self.title, [self.header[i] for i in kept], self.num_names, cut)


def grid(sheet: Sheet) -> Grid:
    """Return `sheet` as a table of the report."""
    places = {name: sheet.header.index(name) if name in sheet.header else None for name in (FAMILY, DATA)}

    def named(row: list[str], name: str) -> str:
        place = places[name]
        return "" if place is None else row[place]

    rows = [
        Row([_value(text, i >= sheet.num_names) for i, text in enumerate(row)], named(row, FAMILY), named(row, DATA))
        for row in sheet.rows
    ]
    return Grid(sheet.title, list(sheet.header), sheet.num_names, rows)


def _value(text: str, is_number: bool) -> Value:
    found = _NUMBER.match(text) if is_number else None
    if found is None:
        return Value(text, text, "")
    key = float(found[1]) * _FACTORS.get(found[2], 1.0)
    return Value(text, found[0], text[found.end() :], key)
