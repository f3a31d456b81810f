"""Copies by fertility, the choice of fertilities, and the decoder stack, against values worked out by hand."""

import pytest
import torch

from models.decoding.fertility import average_fertility, copied_positions, sampled_fertility
from models.decoding.noise import draw_seeds
from models.fertility_nat import Settings
from models.interface import PAD
from models.layers import sinusoids
from models.positional import PositionalStack
from tests.models.families import SPEC, pairs
from tests.models.fertility_models import encoded, nat
from tests.oracles.positional import layer_output


@pytest.mark.parametrize(
    ("fertility", "copies"),
    [
        ([1, 1, 1], [0, 1, 2]),
        ([0, 2, 0, 0, 1], [1, 1, 4]),
        ([0, 0, 7], [2] * 7),
        ([3, 0, 2], [0, 0, 0, 2, 2]),
        ([1, 0, 0], [0]),
        ([0, 0], []),
    ],
)
def test_copies_by_hand(fertility, copies):
    s = len(fertility)
    assert copied_positions(torch.tensor([fertility]), 8).tolist() == [copies + [s] * (8 - len(copies))]
    assert copied_positions(torch.tensor([fertility]), 2).tolist() == [(copies + [s] * 2)[:2]]


def test_copies_of_many_rows_are_those_of_each_alone():
    fertility = torch.randint(0, 4, (50, 6), generator=torch.Generator().manual_seed(0))
    width = int(fertility.sum(1).max())
    for row, got in zip(fertility, copied_positions(fertility, width), strict=True):
        expected = torch.arange(6).repeat_interleave(row)
        assert got.tolist() == expected.tolist() + [6] * (width - len(expected))


def test_the_decoder_reads_the_embeddings_of_the_copied_tokens(monkeypatch):
    model = nat()
    src, src_len = torch.tensor([[11, 12, 13], [14, 15, PAD]]), torch.tensor([3, 2])
    source, memory, _ = model._encode(src, src_len)
    seen = []
    monkeypatch.setattr(model.decoder, "run", lambda *args: seen.append(args) or torch.zeros(4, 6, 32))
    fertility = torch.tensor([[2, 0, 1], [0, 3, 0], [1, 1, 0], [0, 2, 0]])  # two candidates a sentence
    model._run(source, memory, fertility, 4)
    x, lengths, _ = seen[0]
    canvas = torch.tensor([[11, 11, 13, PAD], [12, 12, 12, PAD], [14, 15, PAD, PAD], [15, 15, PAD, PAD]])
    torch.testing.assert_close(x, model.embedding(canvas), atol=0, rtol=0)
    assert lengths.tolist() == [3, 3, 2, 2]


def test_one_fertility_for_all_gives_outputs_of_that_many_times_the_length():
    model = nat()
    model.fertility.weight.data.zero_()
    src, src_len = encoded(pairs(12, seed=1, longest=6))
    for fertility, settings in [(2, "argmax"), (2, "average"), (3, "argmax")]:
        model.fertility.bias.data = 20.0 * torch.eye(4)[fertility]
        decoded = model.decode(src, src_len, Settings(fertility=settings))
        assert decoded.lengths.tolist() == (src_len * fertility).tolist()
        assert decoded.iterations.tolist() == [1] * 12


def test_sums_stay_between_one_and_the_limit():
    model = nat()
    real = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])
    log_probs = torch.tensor([[-0.1, -0.2, -0.1], [-0.5, -0.4, -9.0], [-1.0, -2.0, -3.0]])[..., None].expand(3, 3, 4)
    none, much = torch.zeros(3, 3), torch.tensor([[9, 9, 9], [3, 3, 3], [3, 3, 3]])
    legal = model._legal(torch.stack([none.long(), much], dim=1), log_probs, real)
    assert legal[:, 0].tolist()[:2] == [[0, 1, 0], [1, 0, 0]]  # of the real token least likely to have no copy
    assert legal[2].sum(-1).tolist() == [1, 1]
    assert SPEC.max_target_length == 20
    assert legal[:2, 1].tolist() == [[9, 9, 2], [3, 3, 0]]


# Fertilities.


def test_average_is_the_rounded_expectation():
    probabilities = torch.tensor([[[0.7, 0.3, 0.0], [0.4, 0.1, 0.5], [0.0, 0.4, 0.6], [0.0, 1.0, 0.0]]])
    expectations = [0.3, 1.1, 1.6, 1.0]
    assert average_fertility(probabilities.log()).tolist() == [[round(x) for x in expectations]]


def test_average_decoding_uses_the_average_where_it_differs_from_the_most_probable():
    model = nat()
    model.fertility.weight.data.zero_()
    model.fertility.bias.data = torch.tensor([0.4, 0.0, 0.3, 0.3]).clamp(min=1e-9).log()
    src, src_len = encoded(pairs(8, seed=2, longest=6))
    decoded = model.decode(src, src_len, Settings(fertility="average"))
    assert decoded.lengths.tolist() == (src_len * 2).tolist()  # 0.3 * 2 + 0.3 * 3 = 1.5, which rounds to 2
    assert model.decode(src, src_len, Settings()).lengths.tolist() == [1] * 8  # all zeros, and the guard


def test_samples_follow_the_distribution_and_never_take_what_is_impossible():
    probabilities = torch.tensor([[0.5, 0.2, 0.3, 0.0], [0.0, 0.1, 0.0, 0.9]])
    n = 4000
    seeds = draw_seeds(torch.Generator().manual_seed(0), n)
    drawn = sampled_fertility(probabilities.log().expand(n, 2, 4), seeds, 3)
    assert drawn.shape == (n, 3, 2)
    for candidate in range(3):
        for position in range(2):
            share = torch.bincount(drawn[:, candidate, position], minlength=4) / n
            torch.testing.assert_close(share, probabilities[position], atol=0.03, rtol=0)
            assert (share[probabilities[position] == 0] == 0).all()
    joint = torch.bincount(drawn[:, 0, 0] * 4 + drawn[:, 1, 0], minlength=16).view(4, 4) / n
    torch.testing.assert_close(joint, torch.outer(probabilities[0], probabilities[0]), atol=0.03, rtol=0)


def test_samples_depend_on_neither_padding_nor_batch_nor_how_many_there_are():
    log_probs = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    seeds = draw_seeds(torch.Generator().manual_seed(1), 5)
    whole = sampled_fertility(log_probs, seeds, 7)
    wider = torch.cat([log_probs, torch.full((5, 3, 6), 1 / 6).log()], dim=1)
    assert torch.equal(sampled_fertility(wider, seeds, 7)[..., :4], whole)
    assert torch.equal(sampled_fertility(log_probs[2:3], seeds[2:3], 3)[0], whole[2, :3])


# The decoder stack.


@pytest.mark.parametrize("lengths", [[5, 3, 1], [1, 1, 1]])
def test_the_stack_is_that_of_the_paper_on_each_sentence_alone(lengths):
    torch.manual_seed(0)
    stack = PositionalStack(2, 8, 2, 16, 0.0, "pre", 10).eval()
    x, memory = torch.randn(3, max(lengths), 8), torch.randn(3, 4, 8)
    real = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[:, None, None]
    got = stack(x, self_mask=real, memory=stack.project_memory(memory))
    for i, t in enumerate(lengths):
        expected = x[i, :t]
        for layer in stack.layers:
            expected = layer_output(layer, expected, sinusoids(10, 8)[:t], memory[i])
        torch.testing.assert_close(got[i, :t], stack.final_norm(expected), atol=1e-5, rtol=1e-5)
