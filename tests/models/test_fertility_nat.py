"""The NAT with fertilities: objective, decoding with and without a teacher, against slow twins."""

from dataclasses import replace

import pytest
import torch

from bench.batching import collate, pad
from models.decoding.fertility import sampled_fertility
from models.decoding.noise import row_seeds
from models.fertility_nat import Config, Settings
from tests.models.families import batch_of, build, pairs
from tests.models.fertility_models import ITEMS, batch_from, encoded, nat
from tests.oracles.fertility_nat import greedy_output, negative_log_likelihood


def test_the_loss_is_the_bound_on_the_log_likelihood_per_token():
    model = nat(fertility_weight=0.7)
    losses = model.loss(batch_from(ITEMS), torch.Generator())
    parts = [negative_log_likelihood(model, *item) for item in ITEMS]
    assert losses.num_tokens == 8
    tokens, fertilities = (sum(column) / 8 for column in zip(*parts, strict=True))
    torch.testing.assert_close(losses.total, tokens + 0.7 * fertilities)
    torch.testing.assert_close(losses.parts["cross_entropy"], tokens.detach())
    torch.testing.assert_close(losses.parts["fertility"], fertilities.detach())


@pytest.mark.parametrize("labels", [[], [1, 1, 1, 0], [0, 3], [0, 0, 4]])
def test_a_pair_whose_labels_do_not_fit_is_counted_and_left_out(labels):
    """No labels (what the aligner gives if the target is too long), a wrong sum, or more than the limit of 3."""
    model = nat()
    misfit = ([11, 12, 16], [17, 18, 19, 20], labels)
    losses = model.loss(batch_from([*ITEMS, misfit]), torch.Generator())
    without = model.loss(batch_from(ITEMS), torch.Generator())
    assert losses.counts == {"infeasible": 1}
    assert without.counts == {"infeasible": 0}
    assert losses.num_tokens == without.num_tokens + 4  # the unit of the budget
    torch.testing.assert_close(losses.total * losses.num_tokens, without.total * without.num_tokens)


def test_empty_targets_teach_zeros_and_a_batch_of_nothing_is_no_error():
    model = nat()
    losses = model.loss(batch_from([([11, 12], [], [0, 0])]), torch.Generator())
    assert losses.num_tokens == 0
    expected = -model._encode(torch.tensor([[11, 12]]), torch.tensor([2]))[2][0, :, 0].sum()
    torch.testing.assert_close(losses.total, expected)
    with torch.autograd.set_detect_anomaly(True):
        nothing = model.loss(batch_from([([], [20], []), ([], [], [])]), torch.Generator())
        nothing.total.backward()
    assert nothing.total == 0
    assert nothing.counts == {"infeasible": 1}


def test_labels_are_required():
    with pytest.raises(ValueError, match="no labels"):
        nat().loss(batch_of(2), torch.Generator())


# Decoding.


@torch.inference_mode()
def test_output_and_score_are_those_of_the_chosen_fertilities():
    model, items = nat(seed=1), pairs(12, seed=3, longest=6)
    src, src_len = encoded(items)
    decoded = model.decode(src, src_len, Settings())
    for i, item in enumerate(items):
        fertilities = model._encode(torch.tensor([item.source]), torch.tensor([len(item.source)]))[2][0]
        fertility = fertilities.argmax(-1).tolist()
        if sum(fertility) == 0:
            continue
        tokens, score = greedy_output(model, item.source, fertility)
        assert decoded.tokens[i, : decoded.lengths[i]].tolist() == tokens
        assert decoded.scores[i].item() == pytest.approx(score, abs=1e-3)


@torch.inference_mode()
def test_noisy_decoding_returns_what_the_teacher_scores_best_of_all_candidates_one_by_one():
    model, items, count = nat(seed=2), pairs(16, seed=4, longest=6), 6
    src, src_len = encoded(items)
    decoded = model.decode(src, src_len, Settings(fertility="noisy", candidates=count, seed=5))
    teacher = model.companions["teacher"]
    winners = []
    for i, item in enumerate(items):
        source, length = torch.tensor([item.source]), torch.tensor([len(item.source)])
        log_probs = model._encode(source, length)[2]
        drawn = sampled_fertility(log_probs, row_seeds(source, length, 5), count - 1)[0].tolist()
        outputs, scores = [], []
        for fertility in [log_probs[0].argmax(-1).tolist(), *drawn]:
            if sum(fertility) == 0:
                fertility[int(log_probs[0, :, 0].argmin())] = 1
            outputs.append(greedy_output(model, item.source, fertility)[0])
            alone = collate([replace(item, target=outputs[-1])])
            scores.append(float(teacher.log_likelihood(alone)) / (len(outputs[-1]) + 1))  # the mean, eos counted
        best = max(range(count), key=lambda k, scores=scores: scores[k])
        winners.append(best)
        assert decoded.tokens[i, : decoded.lengths[i]].tolist() == outputs[best]
        assert decoded.scores[i].item() == pytest.approx(scores[best], abs=1e-3)
    assert len(set(winners)) > 2, "the test needs sentences that different candidates win"


@torch.inference_mode()
def test_one_candidate_is_the_most_probable_one_and_more_can_only_please_the_teacher():
    model = nat(seed=2)
    src, src_len = encoded(pairs(16, seed=4))
    plain = model.decode(src, src_len, Settings())
    one, few, many = (model.decode(src, src_len, Settings(fertility="noisy", candidates=n)) for n in (1, 3, 12))
    assert torch.equal(one.tokens, plain.tokens)
    assert (few.scores >= one.scores - 1e-4).all()
    assert (many.scores >= few.scores - 1e-4).all()
    assert (many.scores > one.scores + 1e-3).any()


@torch.inference_mode()
def test_noisy_decoding_does_not_depend_on_the_batch():
    model, items = nat(seed=3), pairs(32, seed=6)
    settings = Settings(fertility="noisy", candidates=4)
    src, src_len = encoded(items)
    together = model.decode(src, src_len, settings)
    for i, item in enumerate(items):
        alone = model.decode(*pad([item.source]), settings)
        assert alone.tokens[0].tolist()[: alone.lengths[0]] == together.tokens[i].tolist()[: together.lengths[i]]
    other = model.decode(src, src_len, Settings(fertility="noisy", candidates=4, seed=2))
    assert other.tokens.shape != together.tokens.shape or not torch.equal(other.tokens, together.tokens)


def test_noisy_decoding_costs_one_pass_of_each_model():
    model = nat()
    calls = []
    watched = [model.encoder.stack, model.decoder.stack, model.companions["teacher"].encoder.stack]
    assert watched[:2] == [part for parts in model.observed_modules().values() for part in parts]
    for part in watched:
        part.register_forward_hook(lambda part, *_: calls.append(watched.index(part)))
    with torch.inference_mode():
        model.decode(*encoded(pairs(4)), Settings(fertility="noisy", candidates=5))
    assert sorted(calls) == [0, 1, 2]


# The start, and what is needed.


def test_the_encoder_can_start_from_the_teachers():
    model = nat(encoder_from_teacher=True)
    source = encoded(pairs(3))
    theirs = model.companions["teacher"].encoder
    assert not torch.equal(model.encoder(*source).states, theirs(*source).states)
    model.begin_training()
    assert torch.equal(model.encoder(*source).states, theirs(*source).states)
    assert model.output.weight is model.embedding.tokens.weight
    assert torch.equal(model.output.weight, theirs.frontend.embedding.tokens.weight)
    assert model.output.weight is not theirs.frontend.embedding.tokens.weight

    other = nat()
    before = other.encoder(*source).states
    other.begin_training()
    assert torch.equal(other.encoder(*source).states, before)


def test_a_teacher_of_another_shape_is_refused():
    model = nat(encoder_from_teacher=True)
    model.companions = {"teacher": build("transformer", encoder_layers=2)}
    with pytest.raises(ValueError, match="shape"):
        model.begin_training()


def test_what_needs_a_teacher():
    assert Config().needs() == Settings().needs() == Settings(fertility="average").needs() == frozenset()
    assert Config(fine_tune=0.1).needs() == Config(encoder_from_teacher=True).needs() == {"teacher"}
    assert Settings(fertility="noisy").needs() == {"teacher"}
