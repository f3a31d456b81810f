"""Token accuracy along the sentence, against values that can be counted by hand."""

import pytest

from bench.accuracy_by_position import accuracy_by_position, matched, nearest
from bench.decoding import decode_corpus
from bench.evaluation import next_tokens
from bench.names import FREE_RUNNING, TEACHER_FORCED
from bench.preparation import EncodedPair
from models.interface import NUM_SPECIAL
from models.registry import built_in_families
from tests.models.families import SPEC, build, pairs

A, B, C, D, E = range(NUM_SPECIAL, NUM_SPECIAL + 5)


def nothing(chosen):
    return None


def by_part(scores, metric):
    return {s.subset: s.value for s in scores if s.metric == metric}


def test_a_token_is_right_where_the_alignment_finds_it():
    assert matched([A, C, D], [A, B, C, D]).tolist() == [True, False, True, True]
    assert matched([], [A, B]).tolist() == [False, False]
    assert matched([A], []).tolist() == []


def test_the_reference_is_the_nearest():
    assert nearest([A, B], [[C, D], [A, C], [A, B, E]]) == [A, C]


def test_tenths_hold_the_tokens_whose_middle_lies_in_them():
    # Ten tokens, the last two lost; and two tokens, in the third and the eighth tenth, of which the second is wrong.
    long = [A, B, C, D, E, A, B, C, D, E]
    scores = accuracy_by_position([long[:8], [A, C]], [[long], [[A, B]]], nothing)
    values = by_part(scores, FREE_RUNNING)
    assert values["position=0..10"] == 100
    assert values["position=20..30"] == 100
    assert values["position=70..80"] == 50
    assert values["position=80..90"] == values["position=90..100"] == 0
    assert len(values) == 10
    assert not by_part(scores, TEACHER_FORCED)


def test_teacher_forcing_reads_the_reference_that_is_nearest():
    asked = []

    def predict(chosen):
        asked.extend(chosen)
        return [[A, E] for _ in chosen]

    scores = accuracy_by_position([[A, B]], [[[C, D], [A, B]]], predict)
    assert asked == [[A, B]]
    values = by_part(scores, TEACHER_FORCED)
    assert (values["position=20..30"], values["position=70..80"]) == (100, 0)
    assert values["position=0..10"] is None


@pytest.mark.parametrize("name", [name for name, family in built_in_families().items() if family.autoregressive])
def test_forced_along_its_own_greedy_output_a_model_says_just_that(name):
    model = build(name)
    sources = [pair.source for pair in pairs(6)]
    outputs = decode_corpus(model, sources, built_in_families()[name].settings(beam=1), SPEC, 3, "float32")
    said = [EncodedPair(source, output.tokens) for source, output in zip(sources, outputs, strict=True)]
    assert len({len(pair.target) for pair in said}) > 1, "padding has something to spoil"
    assert next_tokens(model, said, 4, "float32") == [pair.target for pair in said]
    changed = [EncodedPair(pair.source, [A if t != A else B for t in pair.target]) for pair in said]
    assert next_tokens(model, changed, 4, "float32") != [pair.target for pair in changed]


def test_families_that_are_not_left_to_right_have_none():
    assert next_tokens(build("ctc"), [EncodedPair([A], [B])], 1, "float32") is None
