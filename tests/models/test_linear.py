"""Linear maps: either library gives the product and its gradients, and which one is asked."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import linear as module
from models.linear import Linear, in_blocks, linear, prefers_onednn, product, product_of_transposes


@pytest.fixture(params=["onednn", "default"])
def library(request, monkeypatch):
    """Every product by one library, however small."""
    if request.param == "onednn" and not module._agrees():
        pytest.skip("this build of PyTorch has no oneDNN kernel for float32 products")
    monkeypatch.setattr(module, "prefers_onednn", lambda: request.param == "onednn")
    monkeypatch.setattr(module, "LARGE_WEIGHT", 0)
    return request.param


@pytest.mark.parametrize("shape", [(1, 8), (5, 8), (2, 3, 8), (300, 8)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("outputs", [3, 20])
def test_value_and_gradients(library, shape, with_bias, outputs):
    torch.manual_seed(0)
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(outputs, 8, requires_grad=True)
    bias = torch.randn(outputs, requires_grad=True) if with_bias else None
    leaves = [x, weight, *([bias] if with_bias else [])]
    result = linear(x, weight, bias)
    seed = torch.randn(result.shape)
    gradients = torch.autograd.grad(result, leaves, seed)
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact = F.linear(*doubles)
    torch.testing.assert_close(result, exact.float(), atol=1e-4, rtol=1e-4)
    for got, expected in zip(gradients, torch.autograd.grad(exact, doubles, seed.double()), strict=True):
        torch.testing.assert_close(got, expected.float(), atol=1e-3, rtol=1e-4)


def test_operands_that_are_views(library):
    torch.manual_seed(1)
    wide = torch.randn(7, 6, 8)
    x, weight = wide.transpose(0, 1)[:, 1:4], torch.randn(8, 12).t()[2:9]
    torch.testing.assert_close(product(x, weight), x @ weight.t(), atol=1e-5, rtol=1e-5)
    layer = Linear(8, 4)
    layer(x).sum().backward()  # an expanded gradient
    torch.testing.assert_close(layer.bias.grad, torch.full((4,), 18.0))
    torch.testing.assert_close(layer.weight.grad, x.sum((0, 1)).expand(4, 8), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("p", "q"), [(3, 9), (9, 3), (4, 4)])
def test_product_of_transposes(library, p, q):
    a, b = torch.randn(50, p), torch.randn(50, q)
    torch.testing.assert_close(product_of_transposes(a, b), a.t() @ b, atol=1e-4, rtol=1e-4)


def test_only_what_is_wanted_is_differentiated(library):
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(4, 8)
    (gradient,) = torch.autograd.grad(linear(x, weight).sum(), [x])
    torch.testing.assert_close(gradient, weight.sum(0).expand(3, 8), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert not linear(x, weight).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight), x.detach() @ weight.t(), atol=1e-5, rtol=1e-5)


def test_nothing_and_other_types_go_the_usual_way(library):
    weight = torch.randn(4, 8)
    assert linear(torch.zeros(0, 8), weight).shape == (0, 4)
    assert linear(torch.zeros(2, 0, 8), weight).shape == (2, 0, 4)
    assert linear(torch.ones(2, 8).double(), weight.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.ones(2, 8), weight).dtype == torch.bfloat16


def test_an_infinite_bias_bans(library):
    bias = torch.tensor([0.0, float("-inf"), 1.0])
    result = product(torch.ones(2, 8), torch.ones(3, 8), bias)
    assert result[:, 1].isneginf().all()
    torch.testing.assert_close(result[:, [0, 2]], torch.tensor([[8.0, 9.0]] * 2))


def test_small_products_are_not_worth_the_call(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "prefers_onednn", lambda: asked.append(1) or False)
    product(torch.ones(31, 128), torch.ones(512, 128))
    assert not asked
    product(torch.ones(32, 128), torch.ones(512, 128))
    product(torch.ones(1, 512), torch.ones(512, 512))
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("machine", "processor", "agrees", "preferred"),
    [
        ("x86_64", "vendor_id : AuthenticAMD", True, True),
        ("AMD64", "AMD64 Family 25 Model 17, AuthenticAMD", True, True),
        ("x86_64", "vendor_id : GenuineIntel", True, False),
        ("x86_64", "vendor_id : AuthenticAMD", False, False),
        ("x86_64", "i386", True, False),
        ("x86_64", "", True, False),
        ("aarch64", "", True, False),
    ],
)
def test_onednn_is_preferred_where_mkl_is_not_at_home(monkeypatch, machine, processor, agrees, preferred):
    monkeypatch.setattr(module.platform, "machine", lambda: machine)
    monkeypatch.setattr(module, "_processor", lambda: processor)
    monkeypatch.setattr(module, "_agrees", lambda: agrees)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert prefers_onednn.__wrapped__() is preferred


def test_a_kernel_that_disagrees_or_refuses_is_not_used(monkeypatch):
    monkeypatch.setattr(module, "_onednn", lambda x, weight, bias: F.linear(x, weight, bias) + 1)
    assert not module._agrees()

    def refuses(x, weight, bias):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(module, "_onednn", refuses)
    assert not module._agrees()


@pytest.mark.parametrize("options", ["relu", "added", "both are refused"])
@pytest.mark.parametrize("wanted", [True, False])
def test_what_is_done_on_the_way(library, options, wanted):
    torch.manual_seed(2)
    x, weight, bias = (t.requires_grad_(wanted) for t in (torch.randn(2, 3, 8), torch.randn(5, 8), torch.randn(5)))
    added = torch.randn(2, 5, 3).transpose(1, 2).requires_grad_(wanted)
    plain = F.linear(x, weight, bias)
    if options == "relu":
        result, expected = linear(x, weight, bias, relu=True), plain.relu()
    elif options == "added":
        result, expected = linear(x, weight, bias, added=added), plain + added
    else:
        with pytest.raises(AssertionError), torch.no_grad():
            product(x, weight, bias, relu=True, added=added)
        return
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    if wanted:
        leaves = [x, weight, bias] + [added] * (options == "added")
        seed = torch.randn(result.shape)
        pairs = zip(torch.autograd.grad(result, leaves, seed), torch.autograd.grad(expected, leaves, seed), strict=True)
        for got, exact in pairs:
            torch.testing.assert_close(got, exact, atol=1e-4, rtol=1e-4)


needs_onednn = pytest.mark.skipif(not module._agrees(), reason="this build of PyTorch has no oneDNN kernel")


def frozen(outputs, inputs):
    return nn.Parameter(torch.randn(outputs, inputs), requires_grad=False)


@needs_onednn
@pytest.mark.parametrize("rows", [1, 2, 7, 32, 200])
def test_blocks_give_the_same_product(rows):
    torch.manual_seed(3)
    weight, x, bias = frozen(130, 70), torch.randn(rows, 70), torch.randn(130)
    blocks = in_blocks(weight)
    assert blocks.is_mkldnn
    assert blocks.shape == weight.shape
    plain, blocked = module._onednn(x, weight, bias), module._onednn(x, blocks, bias)
    if rows == 1:  # other kernels
        torch.testing.assert_close(blocked, plain, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(blocked, plain)


@needs_onednn
def test_blocks_are_made_once_and_follow_the_parameter():
    weight, x = frozen(6, 8), torch.randn(3, 8)
    blocks = in_blocks(weight)
    assert in_blocks(weight) is blocks

    def check():
        torch.testing.assert_close(module._onednn(x, in_blocks(weight), None), x @ weight.t(), atol=1e-5, rtol=1e-5)

    weight.mul_(2)
    check()
    weight.data = torch.randn(6, 8)  # leaves the version as it is
    check()
    weight.detach().copy_(torch.randn(6, 8))
    check()


@needs_onednn
def test_what_is_trained_has_no_blocks():
    """A fused optimiser changes parameters and counts no version up."""
    weight = nn.Parameter(torch.randn(6, 8))
    optimizer = torch.optim.AdamW([weight], fused=True)
    with torch.no_grad():
        assert in_blocks(weight) is weight
        before = linear(torch.ones(2, 8), weight)
    linear(torch.ones(2, 8), weight).sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.equal(linear(torch.ones(2, 8), weight), before)
    assert in_blocks(torch.randn(6, 8)).is_mkldnn is False


@needs_onednn
def test_what_was_trained_again_has_new_blocks(library):
    """Fused optimisers count no version up."""
    layer = Linear(8, 6).requires_grad_(False)
    layer(torch.ones(2, 8))
    optimizer = torch.optim.AdamW(layer.requires_grad_(True).parameters(), fused=True)
    layer(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    layer.requires_grad_(False)
    torch.testing.assert_close(layer(torch.ones(2, 8)), layer.weight.sum(1).expand(2, 6) + layer.bias)


@needs_onednn
def test_blocks_go_with_their_parameter():
    weight = frozen(6, 8)
    in_blocks(weight)
    key, other = id(weight), module._blocks[id(weight)]
    del weight
    gc.collect()
    assert key not in module._blocks
    # Another parameter that has the same identity by now keeps its own.
    new = frozen(6, 8)
    in_blocks(new)
    module._forget(id(new), other.parameter)
    assert id(new) in module._blocks


def test_decoding_reads_blocks(library, monkeypatch):
    made = []
    monkeypatch.setattr(module, "in_blocks", lambda weight: made.append(weight) or weight)
    layer = Linear(8, 4)
    layer(torch.ones(2, 8))
    assert not made  # trained
    layer.requires_grad_(False)
    layer(torch.ones(2, 8))
    assert bool(made) is (library == "onednn")
