import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bench.multimodality import is_mixed_mode
from tests.oracles import interleaving

TOKENS = st.lists(st.sampled_from("abc"), max_size=5)


@given(TOKENS, st.lists(TOKENS, max_size=4))
def test_equals_the_definition(output, references):
    assert is_mixed_mode(output, references) == interleaving.is_mixed_mode(output, references)


@given(TOKENS, TOKENS, st.lists(st.tuples(st.booleans(), st.booleans()), min_size=10, max_size=10))
def test_every_interleaving_is_found(first, second, choices):
    """Random outputs are rarely interleavings; these all are."""
    assume(first != second)
    output, rest = [], [list(first), list(second)]
    for side, keep in choices:
        if rest[side]:
            token = rest[side].pop(0)
            output += [token] * keep
    alone = any(interleaving.is_subsequence(output, reference) for reference in (first, second))
    assert is_mixed_mode(output, [first, second]) == (not alone)


@pytest.mark.parametrize(
    ("output", "mixed"),
    [
        ("13 . August 2023", False),  # right
        ("13 . 2023", False),  # merely truncated
        ("", False),
        ("13 . August", False),
        ("13 . 2023 - 08", True),  # a splice: the beginnings of both
        ("2023 - August 2023", True),  # a splice: the beginning of B, the end of A
        ("13 . - 08 - 13", True),  # position-wise
        ("13 . Mai 2023", False),  # wrong content
        ("13 . . August - 2023", False),  # no reference has two full stops
    ],
)
def test_examples(output, mixed):
    references = ["13 . August 2023", "2023 - 08 - 13"]
    assert is_mixed_mode(output.split(), [reference.split() for reference in references]) is mixed


def test_three_references_are_no_pair():
    references = [["a", "x"], ["b", "y"], ["c", "z"]]
    assert is_mixed_mode(["a", "y"], references)
    assert not is_mixed_mode(["a", "b", "c"], references)


def test_a_reference_is_not_mixed_with_its_double():
    assert not is_mixed_mode(["a", "a"], [["a", "b"], ["a", "b"]])
    assert is_mixed_mode(["a", "a"], [["a", "b"], ["a", "c"]])


def test_the_greedy_choice_can_be_wrong():
    # Taking the first "a" from the second reference leaves nothing for "b"; the frontier keeps both ways open.
    assert is_mixed_mode(["a", "b", "c"], [["a", "c"], ["b", "a"]])
    assert is_mixed_mode(["a", "b", "c"], [["b", "a"], ["a", "c"]])
