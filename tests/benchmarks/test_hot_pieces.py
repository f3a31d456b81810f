"""Micro-benchmarks of the pieces that decoding and training spend their time in.

`make microbench` times them; in `make test` each runs once, so that none of them rots. Every timed function ends with a
synchronisation of the device.
"""

import pytest
import torch

from models.alignment import best_alignment, collapse
from models.attention import Attention
from models.decoding.edits import Canvas, bounded, expert_edits
from models.interface import NUM_SPECIAL, PAD, DataSpec
from models.output import OutputLayer
from models.registry import built_in_families

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DIM, HEADS, VOCAB, LENGTH = 256, 4, 8000, 24
SHAPE = {"encoder_layers": 2, "decoder_layers": 2, "model_dim": DIM, "num_heads": HEADS, "ffn_dim": 1024}
ONE_PASS = ("iterations", "steps")
"""Settings by which a family is held to one pass of its decoder, or to one round of passes."""

batch_sizes = pytest.mark.parametrize("batch", [1, 32])


@pytest.fixture(autouse=True)
def _as_when_decoding():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture
def timed(benchmark):
    """Return a function that times another until the device is done, and returns what it returned."""

    def run(work):
        def once():
            result = work()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            return result

        return benchmark(once)

    return run


def ids(batch, length=LENGTH):
    return torch.randint(NUM_SPECIAL, VOCAB, (batch, length), device=DEVICE)


def all_of(batch, length=LENGTH):
    return torch.full((batch,), length, device=DEVICE)


@batch_sizes
def test_cached_attention_step(timed, batch):
    attention = Attention(DIM, HEADS).to(DEVICE)
    x = torch.randn(batch, 1, DIM, device=DEVICE)
    cache = attention.empty_cache(batch, LENGTH, like=x)

    def steps():
        cache.length = 0
        for _ in range(LENGTH):
            result = attention.step(x, cache)
        return result

    assert timed(steps).shape == (batch, 1, DIM)


@batch_sizes
def test_beam_reorder(timed, batch):
    beam = 5
    x = torch.randn(batch * beam, 1, DIM, device=DEVICE)
    cache = Attention(DIM, HEADS).to(DEVICE).empty_cache(batch * beam, 2 * LENGTH, like=x)
    cache.keys.normal_()
    cache.length = LENGTH
    rows = torch.arange(batch * beam, device=DEVICE).view(batch, beam).flip(1).flatten()
    before = cache.keys[0, :, :LENGTH].clone()
    timed(lambda: cache.select(rows))
    assert any(torch.equal(cache.keys[i, :, :LENGTH], before) for i in (0, beam - 1))


@batch_sizes
def test_ctc_collapse(timed, batch):
    alignment = ids(batch, 3 * LENGTH)
    tokens, lengths = timed(lambda: collapse(alignment, all_of(batch, 3 * LENGTH)))
    assert tokens.shape[0] == len(lengths) == batch


@batch_sizes
def test_viterbi_alignment(timed, batch):
    output = OutputLayer(torch.randn(VOCAB, DIM, device=DEVICE), banned=(PAD,)).to(DEVICE)
    hidden, target = torch.randn(batch, 3 * LENGTH, DIM, device=DEVICE), ids(batch)
    frames, lengths = all_of(batch, 3 * LENGTH), all_of(batch)
    _, fits = timed(lambda: best_alignment(output, hidden, frames, target, lengths))
    assert fits.all()


@batch_sizes
def test_edit_scripts(timed, batch):
    reference = bounded(ids(batch), all_of(batch))
    canvas: Canvas = bounded(ids(batch, LENGTH - 5), all_of(batch, LENGTH - 5))
    edits = timed(lambda: expert_edits(canvas, reference))
    assert edits.delete.shape[0] == batch


@batch_sizes
@pytest.mark.parametrize("name", sorted(built_in_families()))
def test_decode_of_one_pass(timed, name, batch):
    """Greedy decoding of an AR model, one pass or one round of refinement of the others."""
    family = built_in_families()[name]
    spec = DataSpec(vocab_size=VOCAB, max_source_length=LENGTH, max_target_length=LENGTH)
    fields = {key: value for key, value in SHAPE.items() if key in family.config.model_fields}
    model = family.model(family.config(**fields), spec).to(DEVICE).eval()
    settings = family.settings(**{key: 1 for key in ONE_PASS if key in family.settings.model_fields})
    source, lengths = ids(batch), all_of(batch)
    decoded = timed(lambda: model.decode(source, lengths, settings))
    assert decoded.tokens.shape[0] == batch
