"""Counts the passes through a model's encoder and decoder, seen from outside by forward hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bench.decoding import check_emitted
from bench.workload import SourceBatch, System
from models.interface import Model

ROLES = ("encoder", "decoder", "companion")


@dataclass(frozen=True)
class Observation:
    """What decoding took, sentence by sentence."""

    passes: dict[str, list[int]]
    """Passes by role; a role that the model does not observe is absent."""
    iterations: list[int]
    """Steps or refinement passes that the decoder itself reports."""
    tokens: list[int]
    """Emitted target tokens."""


@contextmanager
def counted_passes(model: Model) -> Iterator[dict[str, int]]:
    """Yield a counter that grows with each forward call of an observed module, by role.

    The encoders and decoders of companions count together, apart from the model's own.

    Roles that the model does not observe are absent, which is not the same as zero passes. Hooks cost time: nothing
    is timed inside.
    """
    observed = model.observed_modules()
    companions = [part for other in model.companions.values() for part in other.observed_modules().values()]
    if companions:
        observed["companion"] = [module for part in companions for module in part]
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


def observe(system: System, batches: Sequence[SourceBatch]) -> Observation:
    """Decode batches of one sentence each and count what each took; no passes if other modules than its own decode.

    Raises:
        StepFailure: an output holds what no target can; see `bench.decoding.check_emitted`.
    """
    seen: dict[str, list[int]] = {}
    iterations, tokens = [], []
    with counted_passes(system.model) as counts:
        for batch in batches:
            before = dict(counts)
            output = system.decode(batch)
            check_emitted(output.sentences(), system.data)
            for role, total in counts.items() if system.settings.by_own_modules() else ():
                seen.setdefault(role, []).append(total - before[role])
            iterations += output.iterations.tolist()
            tokens.append(output.emitted())
    assert len(iterations) == len(tokens), "passes are counted sentence by sentence"
    return Observation(seen, iterations, tokens)
