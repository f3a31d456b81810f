"""Counted arithmetic and bytes against cases worked out by hand, and the bound that follows from them."""

import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.roofline import Bound, Cost, CostCounter, Roof, bound_of, measure_roof
from models.interface import EOS, DataSpec
from models.linear import linear
from models.registry import built_in_families
from tests.models.families import SMALL, VOCAB

FLOAT = 4


@torch.inference_mode()
def cost_of(work):
    with CostCounter() as counter:
        work()
    return counter.cost


def test_a_product_costs_two_operations_for_each_triple_and_reads_and_writes_its_matrices():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert cost_of(lambda: a @ b).operations == {(2 * 3 * 5 * 7, FLOAT * (15 + 35 + 21)): 1}


def test_a_linear_layer_is_its_product_and_its_bias():
    layer, x = nn.Linear(6, 4), torch.randn(2, 3, 6)
    cost = cost_of(lambda: layer(x))
    assert cost.flops == 2 * (2 * 3) * 6 * 4
    assert cost.bytes == FLOAT * (36 + 24 + 4 + 24)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("trained", [True, False])  # if not, oneDNN reads it in blocks
def test_a_product_by_either_library_costs_the_same(rows, trained):
    x, weight, bias = torch.randn(rows, 3, 512), nn.Parameter(torch.randn(600, 512), trained), torch.randn(600)
    linear(x, weight, bias)  # large enough for oneDNN, which is looked at once
    cost = cost_of(lambda: linear(x, weight, bias))
    assert cost.flops == 2 * 3 * rows * 512 * 600
    assert cost.bytes == FLOAT * (3 * rows * 512 + 600 * 512 + 600 + 3 * rows * 600)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("trained", [True, False])
def test_what_is_added_on_the_way_is_no_part_of_the_product(rows, trained):
    x, weight, bias = torch.randn(rows, 3, 512), nn.Parameter(torch.randn(600, 512), trained), torch.randn(600)
    added = torch.randn(rows, 3, 600)
    linear(x, weight, bias, added=added)
    cost = cost_of(lambda: linear(x, weight, bias, added=added))
    assert cost.flops == 2 * 3 * rows * 512 * 600
    assert cost.bytes == FLOAT * (3 * rows * 512 + 600 * 512 + 600 + 3 * rows * 600)


def test_attention_multiplies_queries_with_keys_and_weights_with_values():
    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    masks = {"without": None, "with": torch.ones(2, 1, 1, 7, dtype=torch.bool)}
    for mask in masks.values():
        cost = cost_of(lambda mask=mask: F.scaled_dot_product_attention(query, key, value, attn_mask=mask))
        assert cost.flops == 2 * (2 * 2 * 3 * 5 * 7 * 8)


def test_recurrent_layers_multiply_with_two_matrices_at_each_position():
    layer, x = nn.LSTM(5, 6, batch_first=True), torch.randn(2, 9, 5)
    assert cost_of(lambda: layer(x)).flops == 2 * (2 * 9) * (4 * 6) * (5 + 6)


def test_a_convolution_multiplies_at_each_place_of_its_kernel():
    layer, x = nn.Conv1d(3, 4, 5, stride=2, padding=2), torch.randn(2, 3, 10)
    assert cost_of(lambda: layer(x)).flops == 2 * 2 * 5 * 4 * 3 * 5  # 5 positions of 10 are left


def test_what_is_expanded_is_moved_once():
    matrix, row = torch.randn(4, 6), torch.randn(1, 4).expand(3, 4)
    assert cost_of(lambda: row @ matrix).bytes == FLOAT * (4 + 24 + 18)


@pytest.mark.parametrize("b", [1, 3])
def test_greedy_decoding_of_a_transformer_by_hand(b):
    """Layer by layer from the paper's formulas; every sentence runs to the length limit, so none leaves the batch."""
    torch.manual_seed(0)
    family = built_in_families()["transformer"]
    d, f, s, limit = SMALL["model_dim"], SMALL["ffn_dim"], 6, 9
    model = family.model(family.config(**SMALL), DataSpec(VOCAB, s, limit)).eval()
    model.output.ban[EOS] = float("-inf")  # no eos before the limit
    src, src_len = torch.randint(8, VOCAB, (b, s)), torch.full((b,), s)
    decoded = model.decode(src, src_len, family.settings())
    steps = int(decoded.iterations.max())
    assert steps == limit + 1
    assert (decoded.iterations == steps).all()
    cost = cost_of(lambda: model.decode(src, src_len, family.settings()))
    projections = 2 * d * d  # of one position by one matrix
    feed_forward = 2 * 2 * d * f
    encoder = s * (4 * projections + 2 * 2 * s * d + feed_forward)
    memory = s * 2 * projections
    decoder = sum(
        4 * projections + 2 * 2 * i * d  # self-attention over the i positions so far
        + 2 * projections + 2 * 2 * s * d  # cross-attention; its keys and values are in the memory
        + feed_forward + 2 * d * VOCAB
        for i in range(1, steps + 1)
    )  # fmt: skip
    assert cost.flops == b * (encoder + memory + decoder)


def test_every_operation_takes_the_slower_of_its_two_times():
    cost = Cost()
    cost.operations[100, 10] = 3  # 3 x 100 operations: 0.1 s each, against 0.01 s
    cost.operations[10, 50] = 2  # 2 x 50 bytes: 0.05 s each, against 0.01 s
    assert Roof(flops=1000, bandwidth=1000).seconds(cost) == pytest.approx(3 * 0.1 + 2 * 0.05)
    assert (cost.flops, cost.bytes) == (320, 130)


def test_only_the_chosen_batches_count():
    matrix = torch.randn(2, 2)
    system = SimpleNamespace(decode=lambda n: [matrix @ matrix for _ in range(n)])
    bound = bound_of(system, [1, 10, 100], [0, 2], Roof(flops=16, bandwidth=1e9))
    assert bound == Bound((0, 2), flops=101 * 16, bytes=101 * 48, seconds=pytest.approx(101))


def test_a_device_is_measured():
    roof = measure_roof("cpu", "float32", 0, lambda: None)
    a, b = torch.randn(2, 256, 256)
    assert roof.flops > 1e8
    assert roof.bandwidth > 1e7
    cost = cost_of(lambda: a @ b)
    start = time.perf_counter()
    for _ in range(20):
        a @ b
    assert roof.seconds(cost) * 20 < 2 * (time.perf_counter() - start), "the bound is no bound"
