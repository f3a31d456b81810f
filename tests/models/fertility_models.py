"""Small models with fertilities, and pairs with labels for them, that several tests share."""

from dataclasses import replace

from bench.batching import collate, pad
from tests.models.families import build, pairs


def nat(seed=0, **changes):
    """A model with small fertilities; its teacher can be asked for its distributions."""
    model = build("fertility_nat", seed, **{"max_fertility": 3, **changes})
    teacher = model.companions["teacher"]
    for part in (model, teacher):
        for parameter in part.parameters():  # far from uniform
            parameter.data.mul_(1.5)
    return model


def encoded(items):
    return pad([p.source for p in items])


ITEMS = [([11, 12, 13], [20, 21], [0, 2, 0]), ([14, 15], [16, 22, 17, 11, 12], [3, 2]), ([18], [19], [1])]


def batch_from(items):
    sources, targets, labels = zip(*items, strict=True)
    batch = collate([replace(pairs(1)[0], source=s, target=t) for s, t in zip(sources, targets, strict=True)])
    return replace(batch, labels=pad(labels)[0])
