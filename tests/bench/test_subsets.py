"""Names of subsets are read as they are written, sort by number, and nothing else is taken for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.subsets import Subset, tag_title

NUMBER = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**9), 10**9).map(float)


@given(st.sampled_from(["snr_db", "wpm", "x1"]), st.tuples(NUMBER, NUMBER).filter(lambda ends: ends[0] < ends[1]))
def test_a_subset_is_read_as_it_was_written(tag, ends):
    subset = Subset(tag, *ends)
    assert Subset.parse(str(subset)) == subset


def test_names_are_short():
    assert str(Subset("snr_db", -5.0, 0.0)) == "snr_db=-5..0"
    assert str(Subset("seconds", 0.5, 1.25)) == "seconds=0.5..1.25"
    assert Subset.parse("wpm=1234567..1234568").range == "1234567.0..1234568.0"  # six digits would make both equal
    assert Subset.parse("snr_db=-5..0").middle == -2.5


def test_subsets_rise_by_number_within_a_tag():
    names = ["snr_db=10..20", "wpm=5..9", "snr_db=-5..0", "snr_db=5..10", "snr_db=0..5"]
    assert sorted(names, key=Subset.parse) == [
        "snr_db=-5..0", "snr_db=0..5", "snr_db=5..10", "snr_db=10..20", "wpm=5..9",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["", "snr_db", "snr_db=0", "snr_db=0-5", "snr_db=5..0", "snr_db=5..5", "=0..5", "snr db=0..5", "snr_db=0..5 ",
     "snr_db=..5", "snr_db=0..inf", "snr_db=0..1e999", "snr_db=nan..5", "5=0..5", "speaker=anna"],
)  # fmt: skip
def test_anything_else_is_refused(name):
    with pytest.raises(ValueError, match=r"is no subset; one is written tag=from\.\.to"):
        Subset.parse(name)


def test_known_tags_have_titles_and_units():
    assert tag_title("snr_db") == "SNR (dB)"
    assert tag_title("position") == "Position in the reference (%)"
    assert tag_title("made_up") == "made_up"
