"""Tiny data and models for the tests that run over every family found in `models`."""

from dataclasses import replace

import torch

from bench.batching import collate, pad
from bench.preparation import EncodedPair
from models.interface import BLANK, NUM_SPECIAL, DataSpec
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


# Who fills a role in these tests.
COMPANIONS = {"teacher": "transformer", "ctc": "ctc", "draft": "transformer"}


def build(name, seed=0, **changes):
    """A small model of the family with its companions; only the fields that its Config has are set."""
    family = built_in_families()[name]
    fields = {k: v for k, v in {**SMALL, **changes}.items() if k in family.config.model_fields}
    torch.manual_seed(seed)
    model = family.model(family.config(**fields), SPEC).eval()
    if seed >= 0:  # a companion's own roles stay open
        model.companions = {role.name: build(COMPANIONS[role.name], -1, **changes) for role in family.roles}
    return model


def labelled(name, batch, frames_per_token=3):
    """The batch with labels of the kind that the family asks for: right ones, though no aligner chose them."""
    match built_in_families()[name].labels:
        case "fertility":
            rows = [[n // s + (i < n % s) for i in range(s)] for s, n in _lengths(batch)]
        case "ctc_alignment":
            targets = [row[:n].tolist() for row, n in zip(batch.tgt, batch.tgt_len, strict=True)]
            rows = [
                _some_alignment(target, s * frames_per_token)
                for target, s in zip(targets, batch.src_len.tolist(), strict=True)
            ]
        case _:
            return batch
    return replace(batch, labels=pad(rows)[0])


def _lengths(batch):
    return list(zip(batch.src_len.tolist(), batch.tgt_len.tolist(), strict=True))


def _some_alignment(target, frames):
    """Symbols from the left, a blank between equal ones, the last one held to half of the rest."""
    path = []
    for token in target:
        path += [BLANK, token] if path and path[-1] == token else [token]
    if len(path) > frames:
        return []
    spare = frames - len(path)
    return path + (target[-1:] or [BLANK]) * (spare // 2) + [BLANK] * (spare - spare // 2)


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
