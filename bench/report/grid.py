"""A table of the report: what a sheet says, with a number for each cell that it can be sorted by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bench.sheets import MISSING, Sheet

SYSTEM, FAMILY, DATA, SETTINGS = "System", "Family", "Trained on", "Settings"
_FACTORS = {"k": 1e3, "M": 1e6, "G": 1e9}
_MARK = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_LESS_IS_BETTER = (
    "(ms)",
    "passes",
    "FLOPs",
    "Bytes",
    "Iterations",
    "Parameters",
    "(min)",
    "Infeasible",
    "unknown",
)
"""What headings say of values that are better when less, or that nobody wants many of."""
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
class Column:
    """A column of a table."""

    title: str
    falling: bool = False
    """Whether a first click had better bring the largest numbers to the top: where more is better."""


@dataclass(frozen=True)
class Grid:
    """A table."""

    title: str
    header: list[Column]
    num_names: int
    rows: list[Row]
    notes: list[str]
    """The footnotes whose marks stand in it."""

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
        return Grid(self.title, [self.header[i] for i in kept], self.num_names, cut, _noted(cut, self.notes))


def grid(sheet: Sheet, notes: Sequence[str] = ()) -> Grid:
    """Return `sheet` as a table of the report, with those of `notes` (each after its mark) that belong to it.

    What names a row stands in one column, so that it can stay in sight: `ctc (distilled) [beam=5]`.
    """
    places = {
        name: sheet.header.index(name) if name in sheet.header else None for name in (SYSTEM, FAMILY, DATA, SETTINGS)
    }

    def named(row: list[str], name: str) -> str:
        place = places[name]
        return "" if place is None else row[place]

    merged = [place for name, place in places.items() if place is not None and name in (SYSTEM, SETTINGS)]
    others = [i for i in range(len(sheet.header)) if i not in merged]
    num_names = 1 + sum(i < sheet.num_names for i in others)
    rows = []
    for row in sheet.rows:
        system, data, settings = (named(row, name) for name in (SYSTEM, DATA, SETTINGS))
        name = f"{system} ({data})" if data not in ("", "raw") else system
        name += f" [{settings}]" if settings not in ("", "default") else ""
        values = [Value(name, name, ""), *(_value(row[i], i >= sheet.num_names) for i in others)]
        rows.append(Row(values, named(row, FAMILY), data))
    header = [Column("Cell"), *(Column(sheet.header[i], _falls(sheet.title, sheet.header[i])) for i in others)]
    return Grid(sheet.title, header, num_names, rows, _noted(rows, notes))


def _falls(sheet: str, column: str) -> bool:
    """Return whether more is better in a column, as its heading or that of the table says."""
    text = column if re.search("[↑↓]", column) else f"{sheet} {column}"
    return "↓" not in text and not any(word in text for word in _LESS_IS_BETTER)


def _noted(rows: Sequence[Row], notes: Sequence[str]) -> list[str]:
    marks = {mark for row in rows for value in row.values for mark in _MARK.findall(value.text)}
    return [note for note in notes if note.split(" ", 1)[0] in marks]


def _value(text: str, is_number: bool) -> Value:
    found = _NUMBER.match(text) if is_number else None
    if found is None:
        return Value(text, text, "")
    key = float(found[1]) * _FACTORS.get(found[2], 1.0)
    return Value(text, found[0], text[found.end() :], key)
