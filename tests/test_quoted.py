"""Every figure that pages quote from results is in their records."""

import pytest

from bench.records import Record, write_records
from tests import quoted

PAGES = ["README.md", "docs/findings.md"]


def figures_in(claim):
    """The figures of each place where a page says what is claimed."""
    found = quoted.pattern(claim.template).finditer(claim.page.read_text(encoding="utf-8"))
    return [list(match.groups()) for match in found]


@pytest.mark.parametrize("claim", quoted.claims(), ids=lambda claim: claim.template[:60])
def test_a_page_quotes_what_was_measured(claim):
    assert figures_in(claim) == [claim.figures()], "python -m tests.quoted puts the new ones there"


@pytest.mark.parametrize("page", PAGES)
def test_sections_of_results_have_no_figure_without_a_source(page):
    assert quoted.unclaimed(page) == []


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Two seeds of one system, and a curve."""
    folder = tmp_path / "results" / "small"
    folder.mkdir(parents=True)

    def record(system, settings, seed, metric, value, **others):
        return Record("s", "t", "test", system, "ctc", settings, "raw", seed, metric, value, "%", **others)

    records = [
        record("a", "beam=1", 1, "cer", 10.0),
        record("a", "beam=1", 2, "cer", 20.0),
        record("a", "beam=1", 1, "cer", 7.26, subset="snr_db=0..5"),
        record("a", "beam=1", 1, "speedup", 1.234, batch_size=8, reference="b [beam=1]"),
        record("a", "beam=1", 1, "speedup", 9.9, batch_size=8, reference="other"),
        record("b", "beam=1", 1, "cer", 30.0),
        record("b", "", 1, "train_tokens", 12_345_678),
        record("b", "beam=1", 1, "wer", None, status="failed"),
    ]
    write_records(folder / "records.csv", records)
    curves = ["task,system,data,seed,score", "t,a,raw,1,1.0", "t,a,raw,1,-2.5", "t,a,distilled,1,4", "u,a,raw,1,9"]
    curves += ["t,b,raw,1,7", "t,b,raw,2,8"]
    (folder / "curves.csv").write_text("\n".join(curves) + "\n")
    monkeypatch.setattr(quoted, "ROOT", tmp_path)
    cells = {"a": "a raw beam=1", "b": "b raw beam=1"}
    return quoted.Source({"results": "small", "task": "t", "reference": "b [beam=1]", "cells": cells})


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("a cer", "15.0"),
        ("a cer snr_db=0..5 .2f", "7.26"),
        ("a speedup @8", "1.23"),
        ("a cer /b", "50"),
        ("min a,b cer .0f", "15"),
        ("max a,b cer", "30.0"),
        ("max * speedup .1f", "9.9"),
        ("b train_tokens .1M", "12.3"),
        ("a curve #-1", "-2.5"),
    ],
)
def test_fields(source, field, text):
    assert source.value(field) == text


@pytest.mark.parametrize("field", ["c cer", "a bleu", "a speedup @1", "b wer", "a cer snr_db=5..10", "b curve #0"])
def test_fields_without_a_value(source, field):
    with pytest.raises(LookupError):
        source.value(field)


class Known:
    """A source that has the same figures for all fields in turn."""

    def __init__(self, *figures):
        self.figures = iter(figures)

    def value(self, field):
        return next(self.figures)


def test_other_figures_are_noticed_and_written(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("# Results\n\n| a | 1.0 | -22 |\n| ab | 3 | 4 |\n\nIt was 17 %\nof 300, and 5k.\n\n# End\n9\n")
    row = quoted.Claim(page, "| a | {x cer} | {y cer} |", Known("-1.5", "22"))
    prose = quoted.Claim(page, "It was {x wer} % of {y wer}", Known("8", "1,000"))
    monkeypatch.setattr(quoted, "claims", lambda: [row, prose])
    assert figures_in(row) == [["1.0", "-22"]]
    quoted.main()
    assert page.read_text() == (
        "# Results\n\n| a | -1.5 | 22 |\n| ab | 3 | 4 |\n\nIt was 8 %\nof 1,000, and 5k.\n\n# End\n9\n"
    )
    assert figures_in(prose) == [["8", "1,000"]]
    monkeypatch.setattr(quoted, "ROOT", tmp_path)
    description = tmp_path / "quoted.yaml"
    description.write_text("sections: {page.md: ['# Results', '# End']}\nno results: ['| ab | 3 | 4 |']\n")
    monkeypatch.setattr(quoted, "CLAIMS", description)
    assert quoted.unclaimed("page.md") == [", and 5k."]


def test_a_page_that_says_something_else_is_not_written(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    monkeypatch.setattr(quoted, "claims", lambda: [quoted.Claim(page, "It was {x cer} %", Known("1"))])
    with pytest.raises(SystemExit, match="does not say"):
        quoted.main()
    assert page.read_text() == "nothing"
