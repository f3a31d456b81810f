"""Layers in C against the same layers in PyTorch, and when each of them does the work."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models import layers as module
from models.attention import KeyValues
from models.layers import Layer, Stack
from models.native import stack as native
from models.native.library import _compiler, load_library
from models.native.stack import MOST_ROWS, run_layers

# Where there is a compiler, code that it does not take fails here.
pytestmark = pytest.mark.skipif(_compiler() is None, reason="there is no C compiler")


@pytest.fixture(autouse=True)
def decoding():
    with torch.inference_mode():
        yield


def make(dim=48, heads=4, hidden=40, norm="pre", cross=True, depth=2, seed=0, convolution=0):
    torch.manual_seed(seed)
    stack = Stack(depth, dim, heads, hidden, 0.1, norm, cross, convolution).eval()
    with torch.no_grad():
        for parameter in stack.parameters():  # norms and biases too
            parameter.add_(0.3 * torch.randn_like(parameter))
    return stack


def by_pytorch(stack, *args, **kwargs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_layers", lambda *_: None)
        return stack(*args, **kwargs)


def check(got, expected):
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


@pytest.fixture
def by_threads(monkeypatch):
    """A function that sets the number of threads, of which small products use all."""
    before = torch.get_num_threads()
    monkeypatch.setattr(native, "WORK_PER_THREAD", 1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2, 3])
def threads(request, by_threads):
    by_threads(request.param)
    return request.param


# Widths of heads and layers that are multiples of a vector's and that are not.
@pytest.mark.parametrize("shape", [{}, {"dim": 64, "heads": 2, "hidden": 256}, {"dim": 36, "heads": 4, "hidden": 7}])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(("b", "t"), [(1, 1), (1, 7), (3, 2), (8, 1), (2, 4)])
@pytest.mark.parametrize("causal", [False, True])
def test_layers(threads, shape, norm, b, t, causal):
    stack = make(norm=norm, cross=False, **shape)
    x = torch.randn(b, t, stack.layers[0].self_attention.query.in_features)
    expected = by_pytorch(stack, x, causal=causal)
    kept = x.clone()
    layers = run_layers(stack, x, causal=causal)
    assert torch.equal(x, kept)
    check(stack.final_norm(layers), expected)
    check(stack(x, causal=causal), expected)


@pytest.mark.parametrize("beams", [1, 2, 3])
@pytest.mark.parametrize("sentences", [1, 2])
def test_masks_and_a_memory_that_beams_share(threads, beams, sentences):
    stack = make()
    x = torch.randn(sentences * beams, 1, 48).expand(-1, -1, 48)
    states = torch.randn(sentences, 11, 48)
    memory = stack.project_memory(states)
    assert not memory[0][0].is_contiguous()
    mask = torch.rand(sentences, 1, 1, 11) < 0.6
    mask[..., 0] = True
    expected = by_pytorch(stack, x, memory=memory, memory_mask=mask)
    check(stack.final_norm(run_layers(stack, x, memory=memory, memory_mask=mask)), expected)
    one_mask = mask[:1]  # for all
    expected = by_pytorch(stack, x, memory=memory, memory_mask=one_mask.expand(sentences, 1, 1, 11))
    check(stack.final_norm(run_layers(stack, x, memory=memory, memory_mask=one_mask)), expected)
    check(stack.final_norm(run_layers(stack, x, memory=memory)), by_pytorch(stack, x, memory=memory))


def test_the_mask_of_self_attention():
    stack = make(cross=False)
    x = torch.randn(2, 3, 48)
    mask = torch.tensor([[True, True, True], [True, True, False]])[:, None, None]
    check(stack.final_norm(run_layers(stack, x, mask)), by_pytorch(stack, x, mask))
    assert run_layers(stack, x, mask.expand(2, 1, 3, 3)) is None  # by query: PyTorch's
    wide = torch.stack([mask, ~mask], -1)[..., 0]  # every second element in memory
    assert run_layers(stack, x, wide) is None
    check(stack(x, wide), by_pytorch(stack, x, mask))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_steps_fill_the_caches(threads, norm, monkeypatch):
    stack = make(norm=norm, depth=3)
    memory = stack.project_memory(torch.randn(2, 5, 48))
    steps = [torch.randn(4, 1, 48) for _ in range(4)]
    ours, theirs = (stack.empty_caches(4, 6, like=steps[0]) for _ in range(2))
    rows = torch.tensor([3, 0])
    for number, x in enumerate(steps):
        with monkeypatch.context() as patch:
            patch.setattr(module, "run_layers", lambda *_: None)
            expected = stack.step(x, theirs, memory)
        layers = run_layers(stack, x, caches=ours, memory=memory)
        check(stack.final_norm(layers), expected)
        for own, other in zip(ours, theirs, strict=True):
            assert own.length == other.length == number + 1
            check(own.both[:, :, :, : number + 1], other.both[:, :, :, : number + 1])
        if number == 1:  # rows leave: caches are views of larger ones then
            for cache in (*ours, *theirs):
                cache.select(rows)
            memory = [(k[1:], v[1:]) for k, v in memory]
            steps[2:] = [later[rows] for later in steps[2:]]


def test_a_row_is_the_same_alone_and_in_any_company_and_by_any_number_of_threads(by_threads):
    stack = make(dim=80, hidden=200)
    x, states = torch.randn(MOST_ROWS, 1, 80), torch.randn(MOST_ROWS, 6, 80)
    memory = [(k.contiguous(), v.contiguous()) for k, v in stack.project_memory(states)]
    results = []
    for threads in (1, 2, 3):
        by_threads(threads)
        results.append(run_layers(stack, x, memory=memory))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    for size in range(1, MOST_ROWS):
        part = run_layers(stack, x[:size], memory=[(k[:size], v[:size]) for k, v in memory])
        assert torch.equal(part, results[0][:size])


def test_weights_may_change_and_move():
    stack = make(cross=False)
    x = torch.randn(1, 2, 48)
    run_layers(stack, x)
    for parameter in stack.parameters():
        parameter.mul_(1.1)
    check(stack.final_norm(run_layers(stack, x)), by_pytorch(stack, x))
    for parameter in stack.parameters():
        parameter.data = parameter * 0.8
    check(stack.final_norm(run_layers(stack, x)), by_pytorch(stack, x))
    twin = copy.deepcopy(stack)
    check(stack.final_norm(run_layers(twin, x)), by_pytorch(stack, x))
    other = make(cross=False, seed=7)
    stack.load_state_dict(other.state_dict(), assign=True)  # other parameters in the old ones' places
    check(stack.final_norm(run_layers(stack, x)), by_pytorch(other, x))
    stack.layers[1] = make(cross=False, seed=8).layers[1]
    check(stack.final_norm(run_layers(stack, x)), by_pytorch(stack, x))


def test_threads_are_pytorchs_whatever_else_is_loaded():
    """Sentencepiece brings an OpenMP of its own."""
    __import__("sentencepiece")
    script = (
        "import sentencepiece, torch; from models.native.library import _compiler, load_library; "
        "print(load_library() is None or load_library().threaded)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str("libgomp" in Path("/proc/self/maps").read_text() or load_library() is None)


class More(Layer):
    """A family's own layer, which does more."""

    def _rest(self, x, memory, memory_mask):
        return super()._rest(x, memory, memory_mask) + 1


def test_layers_that_do_more_are_pytorchs():
    stack, x = make(cross=False), torch.randn(1, 2, 48)
    stack.layers[1] = More(48, 4, 40, 0.1, "pre", cross=False).eval()
    assert run_layers(stack, x) is None
    stack = make(cross=False)
    stack.layers[0].self_attention.query.bias = None
    assert run_layers(stack, x) is None
    stack = make(cross=False)
    seen = []
    stack.layers[0].register_forward_hook(lambda *_: seen.append(1))
    stack(x)
    assert seen
    stack = make(cross=False)
    stack.layers[1].norm_feed.eps = 0.1
    check(stack(x), by_pytorch(stack, x))
    assert run_layers(stack, x) is None


def test_what_does_not_fit_is_left_to_pytorch_which_says_so():
    stack, x = make(), torch.randn(2, 1, 48)
    memory = stack.project_memory(torch.randn(1, 3, 48))
    assert run_layers(stack, x, memory=memory) is not None
    assert run_layers(stack, x) is None
    assert run_layers(stack, x, memory=memory[:1]) is None
    assert run_layers(stack, torch.randn(2, 1, 32), memory=memory) is None
    assert run_layers(stack, x[:1], memory=stack.project_memory(torch.randn(2, 3, 48))) is None
    assert run_layers(stack, x, memory=memory, memory_mask=torch.ones(3, 1, 1, 3, dtype=torch.bool)) is None
    assert run_layers(stack, x, memory=memory, memory_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool)) is None
    assert run_layers(stack, x, memory=memory, memory_mask=torch.ones(1, 1, 1, 3)) is None
    assert run_layers(make(cross=False), x, memory=memory) is None
    caches = stack.empty_caches(2, 1, like=x)
    stack.step(x, caches, memory)
    assert run_layers(stack, x, caches=caches, memory=memory) is None
    with pytest.raises(IndexError):  # the caches are full
        stack.step(x, caches, memory)
    for other in (stack.empty_caches(3, 4, like=x), stack.empty_caches(2, 4, like=x.double())):
        assert run_layers(stack, x, caches=other, memory=memory) is None


@pytest.mark.parametrize("t", [1, 4])
def test_nothing_to_attend_to(t):
    stack, x = make(), torch.randn(2, t, 48)
    memory = stack.project_memory(torch.randn(2, 3, 48))
    mask = torch.tensor([[True, False, True], [False] * 3])[:, None, None]
    expected = by_pytorch(stack, x, memory=memory, memory_mask=mask)
    check(stack.final_norm(run_layers(stack, x, memory=memory, memory_mask=mask)), expected)
    assert expected.isfinite().all()


def test_other_defaults_of_pytorch_change_nothing():
    stack, x = make(cross=False), torch.randn(1, 2, 48)
    expected = run_layers(stack, x)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(run_layers(stack, x), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_c_does_not_do_pytorch_does():
    stack, x = make(cross=False), torch.randn(1, 2, 48)
    assert run_layers(stack, x) is not None
    assert run_layers(stack, torch.randn(1, MOST_ROWS + 1, 48)) is None
    assert run_layers(stack, torch.randn(0, 1, 48)) is None
    assert run_layers(stack, x.double()) is None
    assert run_layers(make(cross=False, convolution=3), x) is None
    assert run_layers(stack.train(), x) is None
    stack.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert run_layers(stack, x) is None
    with FlopCounterMode(display=False) as counter:  # sees what PyTorch does
        stack(x)
    assert counter.get_total_flops() > 0
    memory = [(k.double(), v.double()) for k, v in make().project_memory(torch.randn(1, 3, 48))]
    assert run_layers(make(), x, memory=memory) is None


def test_gradients_are_pytorchs():
    with torch.inference_mode(False):
        stack, x = make(cross=False).train(False), torch.randn(1, 2, 48)
        assert run_layers(stack, x) is None
        stack(x).sum().backward()
        assert stack.layers[0].self_attention.query.weight.grad is not None


def test_a_compiler_takes_the_code():
    assert load_library() is not None


def test_without_c_everything_works(monkeypatch):
    monkeypatch.setattr(native, "load_library", lambda: None)
    stack, x = make(cross=False, seed=5), torch.randn(1, 2, 48)
    assert run_layers(stack, x) is None
    assert stack(x).shape == (1, 2, 48)


def test_a_step_with_caches_of_another_kind_of_memory():
    """A stack without cross-attention has none."""
    stack = make(cross=False)
    caches: list[KeyValues] = stack.empty_caches(1, 3, like=torch.empty(0))
    first, second = torch.randn(2, 1, 1, 48)
    stack.step(first, caches)
    together = torch.cat([first, second], 1)
    check(stack.step(second, caches), by_pytorch(stack, together, causal=True)[:, 1:])
    assert isinstance(stack.final_norm, nn.LayerNorm)
