"""Tiny data and models for the tests that run over every family found in `models`."""

import torch

from bench.batching import collate
from bench.preparation import EncodedPair
from models.interface import NUM_SPECIAL, DataSpec
from models.registry import built_in_families

VOCAB = NUM_SPECIAL + 20
SPEC = DataSpec(vocab_size=VOCAB, max_source_length=16, max_target_length=20)
SMALL = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "model_dim": 32,
    "num_heads": 2,
    "ffn_dim": 64,
    "dropout": 0.0,
    "label_smoothing": 0.0,
}


def build(name, seed=0, **changes):
    """A small model of the family; only the fields that its Config has are set."""
    family = built_in_families()[name]
    fields = {k: v for k, v in {**SMALL, **changes}.items() if k in family.config.model_fields}
    torch.manual_seed(seed)
    return family.model(family.config(**fields), SPEC).eval()


def pairs(n, seed=0, longest=10):
    """Random sentence pairs without structure, sources distinct; memorising them needs the whole model."""
    generator = torch.Generator().manual_seed(seed)

    def sentence():
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        return torch.randint(NUM_SPECIAL, VOCAB, (length,), generator=generator).tolist()

    made = {}
    while len(made) < n:
        source = sentence()
        made.setdefault(tuple(source), EncodedPair(source, sentence()[: len(source)]))
    return list(made.values())


def batch_of(n, seed=0, longest=10):
    return collate(pairs(n, seed, longest))
