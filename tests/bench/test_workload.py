import pytest
import torch

from bench.preparation import PreparedData
from bench.steps import StepFailure
from bench.workload import Output, OutputMismatch, Scored, System, draw_sample
from models.interface import BLANK, BOS, EOS, MASK, PAD, PLH, UNK
from tests.bench import tiny
from tests.bench.scripted import batches_of


def output(rows, scores):
    width = max(map(len, rows))
    tokens = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return Output(tokens, lengths, torch.tensor(scores), lengths)


def system(*scored):
    return System(torch.nn.Identity(), None, [Scored("", tokens, score) for tokens, score in scored], "cpu")


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
    assert all(s.text == texts[s.id] and s.source == data.tokenizer.encode(s.text) for s in sample)
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


def test_only_emitted_target_tokens_count():
    row = [7, UNK, PAD, BOS, EOS, MASK, BLANK, PLH, 8]
    assert output([row, [9]], [0.0, 0.0]).emitted() == 4  # 7, the unknown word, 8 and 9


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
