import pytest
import torch

from bench.preparation import PreparedData
from bench.steps import StepFailure
from bench.workload import Output, OutputMismatch, Scored, Sentence, System, draw_sample, make_workload, spread
from models.interface import PAD, UNK, DataSpec
from tests.bench import tiny
from tests.bench.scripted import batches_of

DATA = DataSpec(vocab_size=100, max_source_length=5, max_target_length=3)


def output(rows, scores):
    width = max(map(len, rows))
    tokens = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return Output(tokens, lengths, torch.tensor(scores), lengths)


def system(*scored):
    return System(torch.nn.Identity(), None, [Scored("", tokens, score) for tokens, score in scored], DATA, "cpu")


def test_the_sample_is_fixed_and_sorted_by_length(tmp_path):
    data = PreparedData(tiny.prepare(tmp_path))
    ids = {f"test-{i}" for i in range(1, 20)}  # not test-0
    sample = draw_sample(data, "test", ids, 10)
    assert sample == draw_sample(data, "test", ids, 10)
    assert len({s.id for s in sample}) == 10
    assert {s.id for s in sample} <= ids
    lengths = [len(s.source) for s in sample]
    assert lengths == sorted(lengths)
    texts = {e.id: e.source for e in data.examples("test")}
    assert all(s.example.source == texts[s.id] for s in sample)
    assert all(s.source == data.tokenizer.encode(s.example.source) for s in sample)
    assert {s.id for s in draw_sample(data, "test", ids, 1000)} == ids


def test_a_sample_of_nothing_is_refused(tmp_path):
    data = PreparedData(tiny.prepare(tmp_path))
    with pytest.raises(StepFailure, match="no sentence of the dev split"):
        draw_sample(data, "dev", {"test-1"}, 10)


def test_batches_are_cut_in_order_and_padded():
    first, second = batches_of([[7], [8, 9], [10, 11, 12]], 2)
    assert first.src.tolist() == [[7, PAD], [8, 9]]
    assert first.src_len.tolist() == [1, 2]
    assert second.src.tolist() == [[10, 11, 12]]


def test_a_workload_of_fewer_batches_is_spread_over_the_lengths():
    sample = [Sentence(str(i), None, [7] * (i + 1)) for i in range(10)]
    work = make_workload(sample, 2, max_batches=3)
    assert work.indices == (0, 1, 4, 5, 8, 9)
    assert [batch.src_len.tolist() for batch in work.batches] == [[1, 2], [5, 6], [9, 10]]
    assert make_workload(sample, 1, max_batches=1).indices == (5,)
    # Nine are one batch of 6 and a rest, which is no batch of 6.
    assert make_workload(sample[:9], 6, max_batches=1).indices == tuple(range(6))
    assert make_workload(sample[:3], 6, max_batches=1).indices == (0, 1, 2), "unless it is all there is"
    for most in (None, 4, 100):
        assert make_workload(sample, 3, most).indices == tuple(range(10))


def test_outputs_of_a_part_of_the_sample_are_compared_with_their_own():
    scored = system(([7], -1.0), ([8], -2.0), ([9], -3.0))
    assert scored.count_ties([output([[7]], [-1.0]), output([[9]], [-3.0])], indices=[0, 2]) == 0
    with pytest.raises(OutputMismatch, match="1 of 2 outputs differ"):
        scored.count_ties([output([[7], [8]], [-1.0, -2.0])], indices=[0, 2])


def test_emitted_tokens_are_counted_without_padding():
    assert output([[7, 8, 9], [9]], [0.0, 0.0]).emitted() == 3 + 1


def test_equal_outputs_have_no_ties_whatever_their_scores():
    assert system(([7, 8], -1.0), ([9], -2.0)).count_ties([output([[7, 8]], [-5.0]), output([[9]], [0.0])]) == 0


def test_a_difference_at_an_equal_score_is_a_tie():
    scored = system(([7, 8], -1.0), ([9], -2.0))
    assert scored.count_ties([output([[7, 8], [10]], [-1.0, -2.00009])]) == 1


@pytest.mark.parametrize("score", [-2.0002, float("nan"), float("-inf")])
def test_any_other_difference_is_a_mismatch(score):
    scored = system(([7, 8], -1.0), ([9], -2.0), ([9], -2.0))
    with pytest.raises(OutputMismatch, match="1 of 3 outputs differ from the scored hypotheses"):
        scored.count_ties([output([[7, 8], [10], [9, 9]], [-1.0, score, -2.0])])


def sample(count, ties):
    """A system and its outputs for `count` sentences, of which the first `ties` differ at the scored score."""
    scores = [-1.0 - i for i in range(count)]
    rows = [[8] if i < ties else [7] for i in range(count)]
    return system(*(([7], score) for score in scores)), [output(rows, scores)]


@pytest.mark.parametrize(("count", "allowed"), [(10, 1), (99, 1), (100, 2), (160, 3)])
def test_a_few_ties_are_tolerated_and_no_more(count, allowed):  # 2 % of the sample, and one in any case
    scored, outputs = sample(count, allowed)
    assert scored.count_ties(outputs) == allowed
    scored, outputs = sample(count, allowed + 1)
    message = (
        f"{allowed + 1} of {count} outputs differ from the scored hypotheses at an equal score; tolerated are {allowed}"
    )
    with pytest.raises(OutputMismatch, match=message):
        scored.count_ties(outputs)


def test_scores_that_are_all_equal_excuse_nothing():
    scored = system(*(([7], 0.0) for _ in range(100)))
    assert scored.count_ties([output([[7]] * 100, [0.0] * 100)]) == 0
    with pytest.raises(
        OutputMismatch, match="1 of 100 outputs differ from the scored hypotheses, and all have the same"
    ):
        scored.count_ties([output([[8]] + [[7]] * 99, [0.0] * 100)])


@pytest.mark.parametrize(
    ("ids", "answer"),
    [([UNK], "emitted id 3, the special symbol <unk>"), ([7] * 4, "gave 4 tokens; no target has more than 3")],
    ids=["unknown-word", "too-long"],
)
def test_timed_outputs_hold_what_targets_can_also_if_they_were_scored(ids, answer):
    with pytest.raises(StepFailure, match=answer):
        system((ids, 0.0)).count_ties([output([ids], [0.0])])


@pytest.mark.parametrize(
    ("count", "expected"), [(3, [0, 1, 2]), (8, list(range(8))), (15, [0, 2, 4, 6, 8, 10, 12, 14])]
)
def test_a_spread_has_the_ends_in_it(count, expected):
    assert spread(count, 8) == expected


def test_outputs_of_fixed_length_may_differ_a_little_but_not_in_length():
    """Untrained models are undecided, and their outputs take the same work whatever they say."""

    class Fixed:
        output_length = "source"

    def fixed(*scored):
        return System(torch.nn.Identity(), Fixed(), [Scored("", ids, -1.0) for ids in scored], DATA, "cpu")

    scored = fixed(*[[7, 8]] * 30)
    assert scored.count_ties([output([[9, 9]] * 3 + [[7, 8]] * 27, [0.0] * 30)]) == 3
    with pytest.raises(OutputMismatch, match="4 of 30 outputs of fixed length differ"):
        scored.count_ties([output([[9, 9]] * 4 + [[7, 8]] * 26, [0.0] * 30)])
    with pytest.raises(OutputMismatch, match="1 of 30 outputs have another length"):
        scored.count_ties([output([[7]] + [[7, 8]] * 29, [0.0] * 30)])
