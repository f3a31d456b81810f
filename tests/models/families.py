"""Tiny data and models for the tests that run over every family found in `models`."""

from dataclasses import replace

import numpy as np
import torch

from bench.batching import collate, pad
from bench.preparation import EncodedPair
from models.interface import BLANK, NUM_SPECIAL, DataSpec
from models.registry import built_in_families

VOCAB = NUM_SPECIAL + 20
SPEC = DataSpec(vocab_size=VOCAB, max_source_length=16, max_target_length=20)
SUBSAMPLING = 4
SPEECH = DataSpec(VOCAB, max_source_length=96, max_target_length=20, modality="speech", num_features=6)
SPECS = {"text": SPEC, "speech": SPEECH}
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


def build(name, seed=0, modality="text", **changes):
    """A small model of the family with its companions; only the fields that its Config has are set."""
    family = built_in_families()[name]
    fields = {k: v for k, v in {**SMALL, **changes}.items() if k in family.config.model_fields}
    torch.manual_seed(seed)
    model = family.model(family.config(**fields), SPECS[modality]).eval()
    if seed >= 0:  # a companion's own roles stay open
        model.companions = {role.name: build(COMPANIONS[role.name], -1, modality, **changes) for role in family.roles}
    return model


def labelled(name, batch, frames_per_position=None):
    """The batch with labels of the kind that the family asks for: right ones, though no aligner chose them."""
    speech = batch.src.is_floating_point()
    positions = ((batch.src_len + SUBSAMPLING - 1) // SUBSAMPLING if speech else batch.src_len).tolist()
    frames_per_position = frames_per_position or (1 if speech else 3)
    targets = [row[:n].tolist() for row, n in zip(batch.tgt, batch.tgt_len, strict=True)]
    rows = []
    for s, target in zip(positions, targets, strict=True):
        n = len(target)
        match built_in_families()[name].labels:
            case "fertility":
                rows.append([n // s + (i < n % s) for i in range(s)])
            case "ctc_alignment":
                rows.append(_some_alignment(target, s * frames_per_position))
            case _:
                return batch
    return replace(batch, labels=pad(rows)[0])


def _some_alignment(target, frames):
    """Symbols from the left, a blank between equal ones, the last one held to half of the rest."""
    path = []
    for token in target:
        path += [BLANK, token] if path and path[-1] == token else [token]
    if len(path) > frames:
        return []
    spare = frames - len(path)
    return path + (target[-1:] or [BLANK]) * (spare // 2) + [BLANK] * (spare - spare // 2)


def pairs(n, seed=0, longest=10, modality="text"):
    """Random pairs without structure, sources distinct; memorising them needs the whole model."""
    generator = torch.Generator().manual_seed(seed)

    def sentence():
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        return torch.randint(NUM_SPECIAL, VOCAB, (length,), generator=generator).tolist()

    made = {}
    while len(made) < n:
        source = sentence()
        made.setdefault(tuple(source), EncodedPair(source, sentence()[: len(source)]))
    if modality == "text":
        return list(made.values())
    # As many positions as a source of text has tokens, twice over: a target with its blanks fits.
    return [EncodedPair(recording(2 * len(p.source), generator), p.target) for p in made.values()]


def recording(positions, generator=None):
    """Random feature frames that subsampling makes `positions` of, float16 as they are stored."""
    frames = SUBSAMPLING * positions - (positions % SUBSAMPLING if positions else 0)
    return torch.randn(frames, SPEECH.num_features, generator=generator).numpy().astype(np.float16)


def batch_of(n, seed=0, longest=10, modality="text"):
    return collate(pairs(n, seed, longest, modality))
