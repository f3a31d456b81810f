"""Every figure that README quotes from results is in their records."""

import pytest

from bench.records import Record, write_records
from tests import quoted

PAGES = ["README.md"]


def figures_in(page, template):
    """The figures of each place where `page` says `template`."""
    found = quoted.pattern(template).finditer(page.read_text(encoding="utf-8"))
    return [list(match.groups()) for match in found]


@pytest.mark.parametrize(("page", "template", "figures"), list(quoted.claims()), ids=lambda x: str(x)[:60])
def test_a_page_quotes_what_was_measured(page, template, figures):
    assert figures_in(page, template) == [figures], "python -m tests.quoted puts the new ones there"


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
    (folder / "curves.csv").write_text("task,system,data,score\nt,a,raw,1.0\nt,a,raw,2.5\nt,a,distilled,4\n")
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
        ("a curve #-1", "2.5"),
    ],
)
def test_fields(source, field, text):
    assert source.value(field) == text


@pytest.mark.parametrize("field", ["c cer", "a bleu", "a speedup @1", "b wer", "a cer snr_db=5..10"])
def test_fields_without_a_value(source, field):
    with pytest.raises(LookupError):
        source.value(field)


def test_other_figures_are_noticed_and_written(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("# Results\n\n| a | 1.0 | 22 |\n| ab | 3 | 4 |\n\nIt was 17 %\nof 300, and 5.\n\n# End\n9\n")
    row, prose = "| a | {x cer} | {y cer} |", "It was {x wer} % of {y wer}"
    monkeypatch.setattr(quoted, "claims", lambda: [(page, row, ["1.5", "22"]), (page, prose, ["8", "1,000"])])
    assert figures_in(page, row) == [["1.0", "22"]]
    quoted.main()
    assert page.read_text() == (
        "# Results\n\n| a | 1.5 | 22 |\n| ab | 3 | 4 |\n\nIt was 8 %\nof 1,000, and 5.\n\n# End\n9\n"
    )
    assert figures_in(page, prose) == [["8", "1,000"]]
    monkeypatch.setattr(quoted, "ROOT", tmp_path)
    description = tmp_path / "quoted.yaml"
    description.write_text("sections: {page.md: ['# Results', '# End']}\nno results: ['| ab | 3 | 4 |']\n")
    monkeypatch.setattr(quoted, "CLAIMS", description)
    assert quoted.unclaimed("page.md") == [", and 5."]
    page.write_text("nothing")
    with pytest.raises(SystemExit, match="does not say"):
        quoted.main()
