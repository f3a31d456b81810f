"""The fine-tuning stage of the NAT with fertilities: reverse KL and REINFORCE."""

from dataclasses import replace

import pytest
import torch

import models.fertility_nat as module
from bench.batching import collate
from models.decoding.fertility import average_fertility, sampled_fertility
from models.decoding.noise import draw_seeds
from models.fertility_nat import reverse_cross_entropy
from models.interface import EOS, NUM_SPECIAL
from models.output import OutputLayer
from tests.models.families import VOCAB, labelled, pairs
from tests.models.fertility_models import ITEMS, batch_from, encoded, nat
from tests.oracles.fertility_nat import reverse_kl


class Indifferent:
    """A teacher to whom all symbols are alike: each token more costs as much as any other."""

    def __init__(self):
        self.output = OutputLayer(torch.zeros(VOCAB, 4), banned=[i for i in range(NUM_SPECIAL) if i != EOS])

    def teacher_forced(self, batch):
        real = torch.arange(batch.tgt.shape[1] + 1) <= batch.tgt_len[:, None]
        return torch.zeros(int(real.sum()), 4), None, real


def test_reverse_cross_entropy_and_its_gradient_in_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_LOGITS", 3 * 9)  # chunks of three rows
    torch.manual_seed(0)
    student = OutputLayer(torch.randn(9, 4, requires_grad=True), banned=(0, 1, 2))
    teacher = OutputLayer(torch.randn(9, 5, requires_grad=True), banned=(0, 1))
    hidden, states = torch.randn(8, 4, requires_grad=True), torch.randn(8, 5)
    weights = torch.rand(8)
    got = reverse_cross_entropy(student, hidden, teacher, states)
    expected = []
    for h, g in zip(hidden, states, strict=True):
        p = (student.weight[3:] @ h).softmax(0)
        log_q = (teacher.weight[2:] @ g).detach().log_softmax(0)
        expected.append(-sum(p[y - 3] * log_q[y - 2] for y in range(3, 9)))
    torch.testing.assert_close(got, torch.stack(expected))
    wanted = torch.autograd.grad((torch.stack(expected) * weights).sum(), [hidden, student.weight])
    (got * weights).sum().backward()
    torch.testing.assert_close([hidden.grad, student.weight.grad], list(wanted))
    assert teacher.weight.grad is None


def test_fine_tuning_adds_reverse_kl_and_reinforce_by_the_paper():
    model = nat(seed=4, fine_tune=0.25, fine_tune_weight=0.3)
    batch, num_tokens = batch_from(ITEMS), 8
    model.progress = 0.74
    plain = model.loss(batch, torch.Generator().manual_seed(3))
    model.progress = 0.75
    losses = model.loss(batch, torch.Generator().manual_seed(3))

    seeds = draw_seeds(torch.Generator().manual_seed(3), len(ITEMS))
    expected, reinforced, advantages = 0.0, 0.0, []
    for i, (source, _, gold) in enumerate(ITEMS):
        fertilities = model._encode(torch.tensor([source]), torch.tensor([len(source)]))[2]
        sampled = sampled_fertility(fertilities, seeds[i : i + 1], 1)[0, 0].tolist()
        average = average_fertility(fertilities)[0].tolist()
        assert sum(sampled) > 0
        assert sum(average) > 0
        worse = reverse_kl(model, source, sampled) - reverse_kl(model, source, average)
        advantages.append(worse.item())
        reinforced += advantages[-1] * sum(fertilities[0, k, f] for k, f in enumerate(sampled))
        expected += reverse_kl(model, source, gold)
    assert max(map(abs, advantages)) > 0.1, "the test needs samples that differ from the average"
    wanted = 0.7 * plain.total + 0.3 * (expected + reinforced) / num_tokens
    torch.testing.assert_close(losses.total, wanted)
    assert losses.parts["reverse_kl"].item() == pytest.approx(expected.item() / num_tokens, rel=1e-4)
    assert losses.parts["advantage"].item() == pytest.approx(sum(advantages) / num_tokens, rel=1e-3)

    parameters = list(model.parameters())
    got = torch.autograd.grad(losses.total, parameters, retain_graph=True)
    for a, b in zip(got, torch.autograd.grad(wanted, parameters), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    assert all(p.grad is None for p in model.companions["teacher"].parameters())


def test_a_pair_that_does_not_fit_is_left_out_of_fine_tuning_too():
    model = nat(seed=4, fine_tune=1.0)
    misfit = ([11, 12, 16], [17, 18, 19, 20], [1, 1, 1])
    losses = model.loss(batch_from([*ITEMS, misfit]), torch.Generator().manual_seed(0))
    without = model.loss(batch_from(ITEMS), torch.Generator().manual_seed(0))
    torch.testing.assert_close(losses.total * losses.num_tokens, without.total * without.num_tokens)


def test_fine_tuning_bears_dropout_padding_and_pairs_that_do_not_fit():
    model = nat(fine_tune=1.0)
    batch = labelled("fertility_nat", collate([*pairs(6, seed=2), replace(pairs(1)[0], source=[], target=[])]))
    batch.labels[0] = 0
    whole = model.loss(batch, torch.Generator().manual_seed(0))
    wider = replace(
        batch, src=torch.nn.functional.pad(batch.src, (0, 3)), tgt=torch.nn.functional.pad(batch.tgt, (0, 4))
    )
    assert model.loss(wider, torch.Generator().manual_seed(0)).total.item() == pytest.approx(
        whole.total.item(), rel=1e-4
    )
    assert whole.counts == {"infeasible": 1}
    with torch.autograd.set_detect_anomaly(True):
        nat(fine_tune=1.0, dropout=0.2).train().loss(batch, torch.Generator().manual_seed(0)).total.backward()


def test_fine_tuning_moves_fertilities_to_what_the_teacher_prefers():
    """REINFORCE does it: to this teacher shorter outputs are better, and nothing else matters."""
    model = nat(seed=5, fine_tune=1.0, fine_tune_weight=1.0)
    model.companions = {"teacher": Indifferent()}
    src, src_len = encoded(pairs(16, seed=8))
    batch = labelled("fertility_nat", collate(pairs(16, seed=8)))

    def expected_length():
        with torch.no_grad():
            return (model._encode(src, src_len)[2].exp() @ torch.arange(4.0)).mean().item()

    before = expected_length()
    optimizer = torch.optim.SGD([model.fertility.bias], lr=0.05)
    rng = torch.Generator().manual_seed(0)
    for _ in range(40):
        optimizer.zero_grad()
        model.loss(batch, rng).total.backward()
        optimizer.step()
    assert expected_length() < before - 0.3
