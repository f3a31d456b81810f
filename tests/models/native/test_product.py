"""The product of a row in C against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from models.native import product
from models.native.library import Library, _compiler, load_library
from models.native.product import row_product

# Where there is a compiler, code that it does not take fails here.
pytestmark = pytest.mark.skipif(_compiler() is None, reason="there is no C compiler")


@pytest.mark.parametrize("outputs", [1, 7, 24, 50, 600])
@pytest.mark.parametrize("inputs", [1, 16, 40, 515])
@pytest.mark.parametrize("extras", ["nothing", "bias", "relu", "added"])
@torch.inference_mode()
def test_product(outputs, inputs, extras):
    torch.manual_seed(outputs)
    x, weight = torch.randn(1, 1, inputs), torch.randn(outputs, inputs)
    bias = None if extras == "nothing" else torch.randn(outputs)
    added = torch.randn(1, 1, outputs) if extras == "added" else None
    expected = F.linear(x, weight, bias)
    expected = expected.relu() if extras == "relu" else expected if added is None else expected + added
    result = row_product(x, weight, bias, extras == "relu", added)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_an_infinite_bias_bans():
    result = row_product(torch.ones(1, 8), torch.ones(3, 8), torch.tensor([0.0, float("-inf"), 1.0]))
    assert result.tolist() == [[8, float("-inf"), 9]]


def test_what_c_does_not_do():
    x, weight = torch.randn(1, 8), torch.randn(3, 8)
    assert row_product(x, weight, None) is None  # gradients may be wanted
    with torch.inference_mode():
        assert row_product(x, weight, None) is not None
        assert row_product(torch.randn(2, 8), weight, None) is None
        assert row_product(torch.randn(0, 8), weight, None) is None
        assert row_product(x.double(), weight.double(), None) is None
        assert row_product(x, torch.randn(8, 3).t(), None) is None
        assert row_product(x, weight, torch.randn(6)[::2]) is None
        assert row_product(torch.randn(1, 7), weight, None) is None
        assert row_product(x, weight, torch.randn(2)) is None
        assert row_product(x, weight, None, added=torch.randn(2, 3)) is None


@torch.inference_mode()
def test_a_library_without_threads_is_for_one_thread(monkeypatch):
    library = load_library()
    monkeypatch.setattr(product, "load_library", lambda: Library(library.code, False, library.made_by))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert (row_product(torch.randn(1, 8), torch.randn(3, 8), None) is None) == (threads == 2)
    finally:
        torch.set_num_threads(before)
