"""The tidy record: one measured value, one CSV row. No torch from here down."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.subsets import Subset

STATUSES = ("ok", "failed", "oom", "timeout", "skipped")


@dataclass(frozen=True)
class Record:
    """One measured value. A missing value is None (an empty cell), never a sentinel. Rates are percentages 0-100."""

    suite: str
    task: str
    split: str
    system: str
    family: str
    settings: str
    """Canonical short form, `beam=5 alpha=0.6`; empty for values of the trained model itself."""
    data: str
    """raw | distilled: what the system was trained on."""
    seed: int | None
    metric: str
    value: float | None
    unit: str
    ci_low: float | None = None
    ci_high: float | None = None
    """Bounds of the 95 % interval."""
    n: int | None = None
    """Sentences (quality), timed rounds (rates, speed-ups) or distinct sentences (latency) behind the value."""
    batch_size: int | None = None
    part: str = ""
    """For times and real-time factors: tokenise | features | decode | detokenise | end_to_end."""
    reference: str = ""
    """For speed-ups: the system and settings compared with, `transformer [beam=1]`."""
    subset: str = ""
    """The part of the test set that the value is over, `snr_db=0..5` (see `bench.subsets`); empty: all of it."""
    device: str = ""
    dtype: str = ""
    threads: int | None = None
    status: str = "ok"
    reason: str = ""
    signature: str = ""
    """How the metric was computed (sacreBLEU's signature, for instance)."""
    run: str = ""
    """Identity of the run that measured it."""


FIELDS = tuple(f.name for f in fields(Record))
OLD_FIELDS = tuple(name for name in FIELDS if name != "subset")
"""The columns of files that were written before values could be over a part of the test set."""
_INT = {"seed", "n", "batch_size", "threads"}
_FLOAT = {"value", "ci_low", "ci_high"}


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write `records` to a CSV file, atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        # Before Python 3.13 the writer does not see that a carriage return needs quotes.
        quoting_writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(FIELDS)
        for record in records:
            cells = [_to_cell(getattr(record, name)) for name in FIELDS]
            (quoting_writer if any("\r" in cell for cell in cells) else writer).writerow(cells)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_records(path: Path) -> list[Record]:
    """Read a CSV file of records.

    Raises:
        ValueError: the file is not a complete table of records (wrong header, short row, unparsable number, status or
            subset, an end in the middle of a row).
    """
    with path.open(newline="", encoding="utf-8") as file:
        try:
            text = file.read()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 ({error})") from error
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(rows, None)
        if header is None or tuple(header) not in (FIELDS, OLD_FIELDS):
            raise ValueError(f"not a table of records (its header is {header})")
        if not text.endswith("\n"):
            raise ValueError("the file ends in the middle of a row")
        return [_from_row(header, row) for row in rows]
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path}:{rows.line_num}: {error}") from error


def read_results(folder: Path) -> list[Record]:
    """Read the records of a results folder.

    Raises:
        UserError: there are none, or they are damaged.
    """
    path = folder / "records.csv"
    if not path.is_file():
        raise UserError(f"{folder}: no records.csv here; is it the results folder of a suite?")
    try:
        records = read_records(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not records:
        raise UserError(f"{path}: no records; run the suite again")
    return records


def _from_row(header: list[str], row: list[str]) -> Record:
    if len(row) != len(header):
        raise ValueError(f"{len(row)} cells where {len(header)} belong")
    values: dict[str, Any] = {name: _from_cell(name, cell) for name, cell in zip(header, row, strict=True)}
    if values["status"] not in STATUSES:
        raise ValueError(f"unknown status {values['status']!r}; there are: {', '.join(STATUSES)}")
    if values.get("subset"):
        Subset.parse(values["subset"])
    return Record(**values)


def _to_cell(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        raise ValueError("a missing value is None, never NaN")
    return repr(round(value, 6))


def _from_cell(name: str, cell: str) -> Any:
    if name in _INT:
        return int(cell) if cell else None
    if name in _FLOAT:
        number = float(cell) if cell else None
        if number is not None and math.isnan(number):
            raise ValueError("a missing value is an empty cell, never NaN")
        return number
    return cell
