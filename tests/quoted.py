"""Figures that a page quotes from committed results: `python -m tests.quoted` writes them anew.

`tests/quoted.yaml` holds sentences and rows of tables with fields in the place of figures. A field names a cell of a
results folder, one of its metrics, and where there are several values which: `{ctc cer snr_db=0..5}`. Its parts, in any
order after cell and metric:

- `@32`: batch size; `SUBSET=...`: part of the test set
- `/ar`: as a percentage of another cell's value
- `#-1`: of the metric `curve`, the score of the development set at the last point; `#0` is the first
- `.2f`: format, if not that of the metric; `.1M` is millions

`min ONE,OTHER` or `max ONE,OTHER` in the place of a cell is the least or greatest value of several, and `max *` that of
all there are, whatever their batch size.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from bench.records import Record, read_records

ROOT = Path(__file__).parent.parent
CLAIMS = Path(__file__).with_suffix(".yaml")
FIELD = re.compile(r"\{([^{}]+)\}")
NUMBER = re.compile(r"(?<![\w.-])-?\d+(?:,\d{3})*(?:\.\d+)?")
FORMATS = {"speedup": ".2f", "tokens_per_second": ".0f", "exact_match": ".0f", "mixed_mode_rate": ".0f"}
"""Formats of metrics, if not one decimal."""


@dataclass(frozen=True)
class Cell:
    """What a name stands for: a system with its data and settings, `ctc raw beam=1`."""

    system: str
    data: str
    settings: str

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Read `SYSTEM DATA [SETTINGS]`."""
        system, data, *settings = text.split(" ", 2)
        return cls(system, data, settings[0] if settings else "")


class Source:
    """The committed results that a group of sentences quotes from."""

    def __init__(self, group: dict[str, Any]) -> None:
        folder = ROOT / "results" / group["results"]
        self.records = [r for r in read_records(folder / "records.csv") if r.task == group["task"]]
        self.task: str = group["task"]
        self.curves = folder / "curves.csv"
        self.reference: str = group.get("reference", "")
        self.cells = {name: Cell.parse(text) for name, text in group["cells"].items()}

    def value(self, field: str) -> str:
        """Return what stands in the place of a field.

        Raises:
            LookupError: there is no such value, or no such cell.
        """
        first, *rest = field.split()
        if first in ("min", "max"):
            several, *rest = rest
            if several == "*":
                values = [r.value for r in self.records if r.metric == rest[0] and r.value is not None]
            else:
                values = [self._number(name, rest) for name in several.split(",")]
            number = min(values) if first == "min" else max(values)
        else:
            number = self._number(first, rest)
        usual = ".0f" if any(part[0] == "/" for part in rest) else FORMATS.get(rest[0], ".1f")
        chosen = next((part for part in rest if re.fullmatch(r"\.\d[fM]", part)), usual)
        return f"{number / 1e6:{chosen[:-1]}f}" if chosen[-1] == "M" else f"{number:{chosen}}"

    def _number(self, name: str, parts: list[str]) -> float:
        if name not in self.cells:
            raise LookupError(f"no cell is called {name!r}")
        metric, *others = parts
        number = self._measured(self.cells[name], metric, others)
        for part in others:
            if part[0] == "/":
                number *= 100 / self._measured(self.cells[part[1:]], metric, others)
        return number

    def _measured(self, cell: Cell, metric: str, parts: list[str]) -> float:
        if metric == "curve":
            (place,) = (int(part[1:]) for part in parts if part[0] == "#")
            return self._curve(cell)[place]
        batch = next((int(part[1:]) for part in parts if part[0] == "@"), None)
        subset = next((part for part in parts if "=" in part), "")

        def fits(r: Record) -> bool:
            own = (r.system, r.data) == (cell.system, cell.data) and r.settings in (cell.settings, "")
            which = r.metric == metric and r.batch_size == batch and r.subset == subset
            return own and which and r.reference in ("", self.reference) and r.part in ("", "decode")

        found = [r.value for r in self.records if fits(r)]
        seeds = {r.seed for r in self.records if fits(r)}
        if None in found or not found or len(found) != len(seeds):
            raise LookupError(f"{len(found)} values fit {cell} {metric} {' '.join(parts)}")
        return fmean(value for value in found if value is not None)

    def _curve(self, cell: Cell) -> list[float]:
        lines = [line.split(",") for line in self.curves.read_text(encoding="utf-8").splitlines()]
        head = lines[0]
        rows = [dict(zip(head, line, strict=True)) for line in lines[1:]]
        own = [r for r in rows if (r["task"], r["system"], r["data"]) == (self.task, cell.system, cell.data)]
        if len({r["seed"] for r in own}) != 1:
            raise LookupError(f"{self.curves} has not one curve of {cell}")
        return [float(r["score"]) for r in own]


@dataclass(frozen=True)
class Claim:
    """A sentence or a row of a page, with fields in the place of figures."""

    page: Path
    template: str
    source: Source

    def figures(self) -> list[str]:
        """Return what the results have for the fields.

        Raises:
            LookupError: they do not have it.
        """
        return [self.source.value(field) for field in FIELD.findall(self.template)]


def claims() -> list[Claim]:
    """Return all that pages quote."""
    description = yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))
    return [
        Claim(ROOT / page, template, source)
        for page, groups in description["pages"].items()
        for group in groups
        for source in [Source(group)]
        for template in group["text"]
    ]


def pattern(template: str) -> re.Pattern[str]:
    """Return what finds a template in a page, whatever its figures, and wherever its lines break; rows are whole."""
    parts = FIELD.split(template)[::2]
    literal = [r"\s+".join(re.escape(word) for word in re.split(r"\s+", part)) for part in parts]
    row = template.startswith("|")
    return re.compile(r"(?<=\n)" * row + f"({NUMBER.pattern})".join(literal) + r"(?=\n)" * row)


def unclaimed(page: str) -> list[str]:
    """Return the lines of a page's sections of results that quote figures nothing vouches for."""
    description = yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))
    text = (ROOT / page).read_text(encoding="utf-8")
    start, *end = description["sections"][page]
    text = text[text.index(start) : text.index(*end) if end else None]
    for claim in claims():
        if claim.page == ROOT / page:
            text = pattern(claim.template).sub("", text)
    for free in description["no results"]:
        text = pattern(free).sub("", text)
    text = re.sub(r"\]\([^)]*\)|`[^`]*`", "", text)  # links and code
    return [line for line in text.splitlines() if NUMBER.search(line)]


def main() -> None:
    """Put the results' figures into the pages."""
    for claim, figures in [(claim, claim.figures()) for claim in claims()]:
        old = claim.page.read_text(encoding="utf-8")
        found = list(pattern(claim.template).finditer(old))
        if not found:
            sys.exit(f"{claim.page.name} does not say: {claim.template}")
        new = old
        for match in reversed(found):
            for i in reversed(range(len(figures))):
                start, end = match.span(i + 1)
                new = new[:start] + figures[i] + new[end:]
        claim.page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
