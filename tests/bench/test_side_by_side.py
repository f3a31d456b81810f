"""Two results folders side by side, as the verb prints them."""

import pytest

from bench.cli import main
from bench.side_by_side import changes, turns
from bench.sides import Side
from tests.bench.gate_runs import damaged, sentences, write_side

TEST = sentences(60)
GOOD = damaged(TEST, 0.1)
CUT = [*(" ".join(output.split()[:-2]) for output in GOOD[:30]), *GOOD[30:]]


@pytest.fixture
def folders(tmp_path):
    def write(first, second, **options):
        both = options.pop("both", {})
        return (
            write_side(tmp_path / "first", first, TEST, **both),
            write_side(tmp_path / "second", second, options.pop("test", TEST), **both, **options),
        )

    return write


def test_what_changed_has_a_difference_with_an_interval_and_the_rest_has_none(folders):
    first, second = map(Side.read, folders({"a": GOOD, "b": GOOD}, {"a": CUT, "b": GOOD}))
    cut, same = changes(first, second, "toy", "bleu")
    assert cut.difference.value == pytest.approx(
        second.cells[cut.key].get("bleu").value - first.cells[cut.key].get("bleu").value
    )
    assert cut.difference.low < cut.difference.value < cut.difference.high < 0
    assert (cut.differing, cut.sentences) == (30, 60)
    assert (same.difference.value, same.difference.low, same.difference.high, same.differing) == (0, 0, 0, 0)


def test_the_sentences_that_changed_most_come_first(folders):
    worse = [*GOOD[:7], "nothing of it", *GOOD[8:20], GOOD[20] + " too", *GOOD[21:]]
    first, second = map(Side.read, folders({"a": GOOD}, {"a": worse}))
    found = turns(first, second, [change.key for change in changes(first, second, "toy", "bleu")])
    assert [turn.sentence.id for turn in found] == ["test-7", "test-20"]
    assert found[0].change > found[1].change > 0
    better = turns(second, first, [change.key for change in changes(first, second, "toy", "bleu")])
    assert [turn.change for turn in better] == [-turn.change for turn in found]


def test_only_what_both_have_is_compared(folders):
    first, second = map(
        Side.read, folders({"a": GOOD, "gone": GOOD}, {"a": GOOD[:40], "new": GOOD[:40]}, test=TEST[:40])
    )
    found = {change.key[1]: change for change in changes(first, second, "toy", "bleu")}
    assert list(found) == ["a", "gone", "new"]
    assert found["a"].sentences == 40
    assert (found["gone"].second, found["gone"].sentences) == (None, 0)
    assert (found["new"].first, found["new"].difference.value) == (None, None)


def test_the_verb_shows_quality_speed_and_sentences(folders, capsys):
    rates = {"a": {1: (99, 100, 101), 8: (300, 310, 320)}}
    slower = {"a": {1: (49, 50, 51), 8: (300, 310, 320)}}
    first, second = folders({"a": GOOD, "gone": GOOD}, {"a": CUT}, rates=slower, fingerprint="another")
    write_side_again(first, rates)
    assert main(["compare", str(first), str(second), "--sentences", "1"]) == 0
    shown = capsys.readouterr().out
    assert "a [beam=1], seed 1" in shown
    assert "100 → 50.0 (-50 %)" in shown
    assert "30 of 60" in shown
    assert "not there" in shown
    assert "different machines" in shown
    assert shown.count("% wrong words") == 1
    assert "[-" in shown.split("\n  first ")[1]


def write_side_again(folder, rates):
    """Write the first folder anew, with times."""
    for file in (folder / "hypotheses" / "toy").iterdir():
        file.unlink()
    (folder / "hypotheses" / "toy").rmdir()
    write_side(folder, {"a": GOOD, "gone": GOOD}, TEST, rates=rates)


def test_a_metric_can_be_chosen_and_must_be_there(folders, capsys):
    first, second = folders({"a": GOOD}, {"a": CUT}, both={"metrics": ("bleu", "chrf")})
    assert main(["compare", str(first), str(second), "--metric", "chrf"]) == 0
    assert "chrF2" in capsys.readouterr().out
    assert main(["compare", str(first), str(second), "--metric", "wer"]) == 3
    assert "--metric 'wer': toy has bleu, chrf" in capsys.readouterr().err


def test_folders_of_other_tasks_are_refused(tmp_path, capsys):
    first = write_side(tmp_path / "first", {"a": GOOD}, TEST)
    second = write_side(tmp_path / "second", {"a": GOOD}, TEST, task="other")
    assert main(["compare", str(first), str(second)]) == 3
    assert "no task in common" in capsys.readouterr().err
