import pytest
import torch
import torch.nn.functional as F

from models import output
from models.output import OutputLayer


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 50, 10**6])
def test_cross_entropy_and_gradients_equal_the_dense_ones(monkeypatch, smoothing, chunk):
    monkeypatch.setattr(output, "CHUNK_LOGITS", chunk)
    torch.manual_seed(0)
    n, d, v, banned = 13, 6, 20, [0, 3]
    layer = OutputLayer(torch.nn.Parameter(torch.randn(v, d)), banned)
    hidden = torch.randn(n, d, requires_grad=True)
    target = torch.randint(4, v, (n,))
    row_weight = torch.rand(n)
    total, plain = layer.cross_entropy(hidden, target, row_weight, smoothing)
    keep = [i for i in range(v) if i not in banned]
    logits = hidden @ layer.weight[keep].T
    dense = F.cross_entropy(
        logits, torch.tensor([keep.index(t) for t in target.tolist()]), reduction="none", label_smoothing=smoothing
    )
    expected = (dense * row_weight).sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    if not smoothing:
        assert plain.item() == pytest.approx(expected.item(), rel=1e-5)
    got = torch.autograd.grad(total, [hidden, layer.weight])
    want = torch.autograd.grad(expected, [hidden, layer.weight])
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-5, rtol=1e-4)


def test_no_matrix_of_tokens_by_vocabulary_is_kept_for_backward():
    n, d, v = 64, 4, 50
    layer = OutputLayer(torch.nn.Parameter(torch.randn(v, d)), banned=[0])
    hidden = torch.randn(n, d, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        total, _ = layer.cross_entropy(hidden, torch.randint(1, v, (n,)), torch.ones(n), 0.1)
    total.backward()
    assert kept
    assert max(kept) < n * v


def test_banned_symbols_get_minus_infinity_and_no_probability():
    layer = OutputLayer(torch.nn.Parameter(torch.randn(6, 3)), banned=[1, 4])
    log_probs = layer(torch.randn(2, 3)).log_softmax(-1)
    assert torch.isinf(log_probs[:, [1, 4]]).all()
    assert torch.isfinite(log_probs[:, [0, 2, 3, 5]]).all()


def test_log_partition_without_gradient_equals_the_one_with():
    layer = OutputLayer(torch.nn.Parameter(torch.randn(9, 3)), banned=[2])
    hidden, weight = torch.randn(5, 3), torch.rand(5)
    total, log_z = layer.log_partition(hidden, weight)
    with torch.no_grad():
        total_eval, log_z_eval = layer.log_partition(hidden, weight)
    torch.testing.assert_close(log_z, log_z_eval)
    torch.testing.assert_close(total.detach(), total_eval)


def test_bfloat16_autocast_is_close_to_float32():
    torch.manual_seed(1)
    layer = OutputLayer(torch.nn.Parameter(torch.randn(30, 8)), banned=[0])
    hidden = torch.randn(40, 8, requires_grad=True)
    target = torch.randint(1, 30, (40,))
    exact, _ = layer.cross_entropy(hidden, target, torch.full((40,), 1 / 40), 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        lowered, _ = layer.cross_entropy(hidden, target, torch.full((40,), 1 / 40), 0.1)
    assert lowered.dtype == torch.float32
    assert lowered.item() == pytest.approx(exact.item(), rel=2e-2)
    lowered.backward()
    assert torch.isfinite(hidden.grad).all()


def test_most_probable_is_the_argmax_of_the_softmax_in_any_chunks(monkeypatch):
    torch.manual_seed(0)
    layer = OutputLayer(torch.randn(20, 8), banned=range(4))
    states = torch.randn(11, 8)
    best, ids = layer(states).log_softmax(-1).max(-1)
    for chunk in (2**26, 3 * 20, 1):
        monkeypatch.setitem(output.DECODING_LOGITS, "cpu", chunk)
        found, log_probs = layer.most_probable(states)
        assert found.tolist() == ids.tolist()
        torch.testing.assert_close(log_probs, best)
    assert [x.shape for x in layer.most_probable(states[:0])] == [(0,), (0,)]
