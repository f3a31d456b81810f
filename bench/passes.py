"""Counts the passes through a model's encoder and decoder, seen from outside by forward hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from models.interface import Model

ROLES = ("encoder", "decoder")


@contextmanager
def counted_passes(model: Model) -> Iterator[dict[str, int]]:
    """Yield a counter that grows with each forward call of an observed module, by role.

    Roles that the model does not observe are absent, which is not the same as zero passes. Hooks cost time: nothing
    is timed inside.
    """
    observed = model.observed_modules()
    counts = {role: 0 for role in ROLES if observed.get(role)}

    def count(role: str) -> None:
        counts[role] += 1

    # A module listed twice under a role is still one module, and one call of it is one pass.
    handles = [
        module.register_forward_hook(lambda *_, role=role: count(role))
        for role in counts
        for module in {id(m): m for m in observed[role]}.values()
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
