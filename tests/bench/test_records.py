"""Records survive being written and read; files that are no complete table of records are refused."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.records import FIELDS, OLD_FIELDS, STATUSES, Record, read_records, write_records
from tests.bench.synthetic import NINE, failed, records

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
NUMBER = st.none() | st.floats(-1e6, 1e6).map(lambda x: round(x, 6) + 0.0)
COUNT = st.none() | st.integers(0, 10**9)
RECORD = st.builds(
    Record,
    **{name: TEXT for name in FIELDS if name not in ("status", "subset")}
    | dict.fromkeys(("value", "ci_low", "ci_high"), NUMBER)
    | dict.fromkeys(("seed", "n", "batch_size", "threads"), COUNT),
    status=st.sampled_from(STATUSES),
    subset=st.sampled_from(["", "snr_db=-5..0", "position=10..20"]),
)


@given(st.lists(RECORD, max_size=3))
@settings(max_examples=40)
@example([replace(records(NINE[:1])[0], reason="step 1\rstep 2\r\n")])
def test_any_record_is_read_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    write_records(path, rows)
    assert read_records(path) == rows


def test_a_missing_value_is_an_empty_cell(tmp_path):
    write_records(tmp_path / "r.csv", [failed(NINE[0], "oom", 'it said "no", then\nstopped')])
    with (tmp_path / "r.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["value"], row["ci_low"], row["n"], row["status"]) == ("", "", "", "oom")
    assert row["reason"] == 'it said "no", then\nstopped'


def test_values_are_kept_to_six_decimals(tmp_path):
    row = replace(records(NINE[:1])[0], value=1 / 3, ci_low=2.0000001, ci_high=1e9 + 0.25)
    write_records(tmp_path / "r.csv", [row])
    (read,) = read_records(tmp_path / "r.csv")
    assert (read.value, read.ci_low, read.ci_high) == (0.333333, 2.0, 1e9 + 0.25)


def test_nan_is_not_written_and_the_old_file_stays(tmp_path):
    path = tmp_path / "r.csv"
    write_records(path, records(NINE[:1]))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="never NaN"):
        write_records(path, [replace(records(NINE[:1])[0], value=float("nan"))])
    assert path.read_bytes() == before


def written(path: Path) -> str:
    first, *others = records(NINE[:1])
    rows = [first, replace(first, subset="snr_db=0..5"), *others, failed(NINE[1], reason='a "quoted", reason')]
    write_records(path, rows)
    return path.read_text(encoding="utf-8")


def test_a_file_cut_anywhere_but_between_rows_is_refused(tmp_path):
    path = tmp_path / "r.csv"
    text = written(path)
    tail = len(text.splitlines(keepends=True)[-1])
    for length in (0, 1, len(text) // 2, *range(len(text) - tail + 1, len(text))):
        assert not text[:length].endswith("\n")
        path.write_text(text[:length], encoding="utf-8")
        with pytest.raises(ValueError, match=str(path)):
            read_records(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("suite,task", "suit,task", r"r\.csv:1: not a table of records"),
        ("suite,task", "task,suite", "not a table of records"),
        (",run\n", ",run,more\n", "not a table of records"),
        (",ok,", ",fine,", "unknown status 'fine'; there are: ok, failed"),
        (",97.2,", ",nan,", "never NaN"),
        (",97.2,", ",N/A,", "could not convert"),
        (",97.2,", ",97.2,1,", "cells where"),
        (",1000,", ",1e3,", "invalid literal"),
        ("snr_db=0..5", "snr_db=5..0", r"r\.csv:3: 'snr_db=5\.\.0' is no subset"),
        ("snr_db=0..5", "loud", "'loud' is no subset"),
        (",subset,", ",", r"r\.csv:2: 25 cells where 24 belong"),
        (",subset,", ",part_of,", "not a table of records"),
        ('a ""quoted""', 'a "quoted"', r"r\.csv:\d+: "),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(tmp_path, old, new, message):
    path = tmp_path / "r.csv"
    text = written(path)
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_records(path)


def old(path: Path, rows: list[Record]) -> str:
    """The table as it was before there were subsets."""
    write_records(path, rows)
    with path.open(newline="", encoding="utf-8") as file:
        table = list(csv.reader(file))
    column = FIELDS.index("subset")
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([row[:column] + row[column + 1 :] for row in table])
    path.write_text(text.getvalue(), encoding="utf-8")
    return text.getvalue()


def test_records_of_former_versions_are_read(tmp_path):
    path = tmp_path / "r.csv"
    rows = records(NINE[:2])
    assert old(path, rows).startswith(",".join(OLD_FIELDS) + "\n")
    assert read_records(path) == rounded(rows)
    write_records(path, read_records(path))
    assert path.read_text(encoding="utf-8").startswith(",".join(FIELDS) + "\n"), "and written as they are now"


def rounded(rows: list[Record]) -> list[Record]:
    """What is kept of numbers."""
    kept = ("value", "ci_low", "ci_high")
    return [replace(row, **{n: x if (x := getattr(row, n)) is None else round(x, 6) for n in kept}) for row in rows]


def test_a_damaged_file_of_a_former_version_is_refused(tmp_path):
    path = tmp_path / "r.csv"
    text = old(path, records(NINE[:1]))
    for damaged, message in (
        (text[:-1], "ends in the middle"),
        (text.replace(",ok,", ",ok,,", 1), "25 cells where 24 belong"),
        (text.replace("suite,task", "task,suite"), "not a table of records"),
    ):
        path.write_text(damaged, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_records(path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "r.csv"
    path.write_bytes(written(path).encode().replace(b"transformer", b"transf\xff\xfermer"))
    with pytest.raises(ValueError, match=r"r\.csv: not UTF-8"):
        read_records(path)
