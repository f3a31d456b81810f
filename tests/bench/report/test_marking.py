"""How outputs are set beside references."""

import pytest

from bench.report.marking import Piece, by_words, error_share, marked


def test_words_that_differ_are_marked_against_the_nearest_reference():
    pieces = marked("the red house falls", ["a tree", "the small red house"])
    assert pieces == [
        Piece("same", "the"), Piece("missing", "small"), Piece("same", "red house"), Piece("extra", "falls"),
    ]  # fmt: skip


def test_a_changed_word_is_missing_and_extra():
    assert marked("the green house", ["the red house"]) == [
        Piece("same", "the"), Piece("missing", "red"), Piece("extra", "green"), Piece("same", "house"),
    ]  # fmt: skip


def test_single_words_are_compared_by_characters():
    assert not by_words("abd", ["abc"])
    assert marked("abd", ["abc"]) == [Piece("same", "ab"), Piece("missing", "c"), Piece("extra", "d")]
    assert by_words("a b", ["ab"])


def test_nothing_said_is_all_missing_and_nothing_wanted_all_extra():
    assert marked("", ["a b"]) == [Piece("missing", "a b")]
    assert marked("a b", [""]) == [Piece("extra", "a b")]
    assert marked("", [""]) == []


def test_without_references_or_without_end_nothing_is_marked():
    assert marked("a b", []) == [Piece("same", "a b")]
    assert marked("", []) == []
    assert [piece.kind for piece in marked("x " * 5000, ["y"])] == ["same"]


def test_what_cannot_be_shown_is_replaced():
    assert marked("a\u202eb\x00 d", ["c"])[-1].text == "a\ufffdb\ufffd d"


@pytest.mark.parametrize(("output", "share"), [("a b c d", 0.0), ("a b c x", 0.25), ("", 1.0)])
def test_the_share_of_errors(output, share):
    assert error_share(output, ["e f", "a b c d"]) == share
