"""The error picture against counts worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors_by_position import METRICS, PARTS, count_errors, errors_by_position, part_of
from bench.metrics import EDIT_KINDS
from bench.quality import score
from bench.tasks.base import Example

TEXT = st.text("ab c", max_size=25)
CORPUS = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=5)


def examples_of(*references):
    return [Example(str(i), "", texts[0], tuple(texts)) for i, texts in enumerate(references)]


def picture(hypotheses, *references):
    """The ten values of each kind."""
    scores = errors_by_position(hypotheses, examples_of(*references))
    return {kind: [s.value for s in scores if s.metric == f"cer_{kind}"] for kind in EDIT_KINDS}


def test_each_error_is_in_its_tenth():
    # Ten characters, one a tenth. b is replaced, x and y come before d, g is missing, z is added at the end.
    found = picture(["aBcxydefhijz"], ["abcdefghij"])
    assert found == {
        "substitutions": [0, 100, 0, 0, 0, 0, 0, 0, 0, 0],
        "deletions": [0, 0, 0, 0, 0, 0, 100, 0, 0, 0],
        "insertions": [0, 0, 0, 200, 0, 0, 0, 0, 0, 100],
    }


def test_rates_are_over_the_characters_of_all_references_in_a_tenth():
    # The second reference has two characters a tenth, of which the very first is replaced: 1 of 1 + 2. The third has
    # none but in the tenths of its four middles (12.5, 37.5, 62.5, 87.5 %), and nothing of it is right.
    found = picture(["abcdefghij", "XaBbCcDdEeFfGgHhIiJj", ""], ["abcdefghij"], ["AaBbCcDdEeFfGgHhIiJj"], ["wxyz"])
    assert found["substitutions"] == pytest.approx([100 / 3] + [0] * 9)
    assert found["deletions"] == pytest.approx([25.0 if part in (1, 3, 6, 8) else 0.0 for part in range(10)])
    assert found["insertions"] == [0] * 10


def test_a_character_belongs_to_the_tenth_of_its_middle():
    # Of three characters the middles lie at 1/6, 1/2 and 5/6: the second, the sixth and the ninth tenth.
    assert [part_of(2 * i + 1, 3) for i in range(3)] == [1, 5, 8]
    assert [part_of(2 * i + 1, 1) for i in range(1)] == [5]
    # A gap at a boundary belongs to the later tenth, that at the end to the last one.
    assert [part_of(2 * i, 10) for i in range(11)] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]


def test_a_tenth_without_characters_is_undefined():
    assert picture(["b"], ["a"])["substitutions"] == [None] * 5 + [100] + [None] * 4


def test_what_is_said_where_nothing_was_is_in_no_tenth():
    assert picture(["abc", "xbcdefghij"], [""], ["abcdefghij"])["insertions"] == [0] * 10
    assert picture(["abc"], [""])["insertions"] == [None] * 10


def test_of_several_references_it_is_the_one_that_cer_takes():
    # One edit against the second, and against the third, which is longer: its last character is missing.
    assert picture(["abcdefghi"], ["xxxxxxxxxx", "abcdefgh", "abcdefghij"])["deletions"] == [0] * 9 + [100]


@settings(max_examples=60)
@given(CORPUS)
def test_weighted_by_characters_the_tenths_make_the_rate(corpus):
    examples = examples_of(*[references for _, references in corpus])
    hypotheses = [text for text, _ in corpus]
    counts, lengths = count_errors(hypotheses, examples)
    # Where the closest reference is empty, what is inserted has no place.
    placed = [i for i, row in enumerate(lengths) if row.sum()]
    if placed:
        texts, own = [hypotheses[i] for i in placed], [examples[i] for i in placed]
        for kind, result in enumerate(score(METRICS, texts, own, bootstrap_samples=0)):
            total = np.float64(counts[:, kind].sum()) / lengths.sum()
            assert 100 * total == pytest.approx(result.value, rel=1e-12, abs=1e-12)


def test_scores_say_what_they_are():
    scores = errors_by_position(["ab", "cd"], examples_of(["ab"], ["c"]))
    assert [(s.metric, s.subset) for s in scores[:11]] == [
        *[("cer_substitutions", f"position={10 * i}..{10 * i + 10}") for i in range(PARTS)],
        ("cer_deletions", "position=0..10"),
    ]
    assert len(scores) == 30
    assert {(s.unit, s.ci_low, s.ci_high, s.n) for s in scores} == {("%", None, None, 2)}
    assert all("tool:jiwer" in s.signature for s in scores)
