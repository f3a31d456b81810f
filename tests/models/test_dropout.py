"""Dropout: the rate, the scale, the gradient, and what a seed repeats."""

import pytest
import torch

from models.dropout import Dropout, dropout


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
def test_drops_at_its_rate_and_keeps_the_mean(rate):
    torch.manual_seed(0)
    n = 1_000_003  # not a multiple of four
    out = dropout(torch.ones(n), rate)
    dropped = out == 0
    deviation = (rate * (1 - rate) / n) ** 0.5
    assert abs(dropped.double().mean().item() - rate) < 4 * deviation
    torch.testing.assert_close(out[~dropped], torch.full_like(out[~dropped], 1 / (1 - rate)), rtol=1e-4, atol=0)


def test_elements_are_dropped_independently():
    """Four elements share a call of the generator."""
    torch.manual_seed(1)
    dropped = (dropout(torch.ones(200_000, 8), 0.3) == 0).double()
    for column in range(8):
        assert abs(dropped[:, column].mean().item() - 0.3) < 4 * (0.21 / 200_000) ** 0.5
    correlation = torch.corrcoef(dropped.T) - torch.eye(8)
    assert correlation.abs().max() < 5 / 200_000**0.5


def test_the_gradient_passes_where_elements_are_kept():
    x = torch.randn(5, 7, 3, dtype=torch.float64).transpose(0, 1).requires_grad_()
    torch.manual_seed(2)
    out = dropout(x, 0.25)
    gradient = torch.randn(7, 5, 3, dtype=torch.float64)
    out.backward(gradient)
    torch.testing.assert_close(x.grad, torch.where(out == 0, 0.0, gradient / 0.75))
    torch.testing.assert_close(out, torch.where(out == 0, 0.0, x / 0.75))


def test_a_seed_gives_the_same_masks_again():
    x = torch.ones(1000)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5), first)
    assert not torch.equal(first, second)


def test_does_nothing_without_training_or_rate():
    x = torch.randn(10)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x
    assert dropout(x[:0], 0.5).shape == (0,)


def test_the_module_drops_in_training():
    torch.manual_seed(4)
    assert (Dropout(0.5).train()(torch.ones(100)) == 0).any()


def test_a_rate_that_drops_nearly_all_stays_finite():
    torch.manual_seed(5)
    out = dropout(torch.ones(100_000), 1 - 1e-9)
    assert out.isfinite().all()
