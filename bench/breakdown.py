"""Where decoding spends its time: in the encoder, in the decoder's layers, in the output layer, or elsewhere.

The parts are told apart by the building blocks that models are made of, whose methods are wrapped for as long as it
takes. Waiting for the device at each border makes decoding slower, so nothing that is reported as speed is timed here:
what counts is the proportion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from bench.timing import Clock
from bench.workload import SourceBatch, System
from models.encoder import SourceEncoder
from models.interface import Model
from models.layers import Stack
from models.output import OutputLayer
from models.recurrent import Attention, Bridge, EarlyDecoder, LateDecoder, RecurrentEncoder

PARTS = ("encoder", "decoder", "output", "companion", "other")
BLOCKS: tuple[tuple[str, tuple[type[nn.Module], ...], tuple[str, ...]], ...] = (
    ("encoder", (SourceEncoder, RecurrentEncoder, Bridge), ("forward", "with_summary", "summarised")),
    ("decoder", (Stack, EarlyDecoder, LateDecoder, Attention), ("forward", "step", "project_memory", "annotate")),
    ("output", (OutputLayer,), ("forward",)),
)
"""Part, the building blocks that belong to it, and the methods by which they work. Of nested ones the outer counts."""


class Stopwatch:
    """Adds up the time inside wrapped calls, by part; a call inside another one belongs to the outer."""

    def __init__(self, clock: Clock, synchronise: Callable[[], None]) -> None:
        self.clock = clock
        self.synchronise = synchronise
        self.nanoseconds = dict.fromkeys(PARTS, 0)
        self.inside = False

    def wrapped(self, work: Callable[..., Any], part: str) -> Callable[..., Any]:
        """Return `work` as a function that adds its time to `part`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return work(*args, **kwargs)
            self.inside = True
            self.synchronise()
            start = self.clock()
            try:
                return work(*args, **kwargs)
            finally:
                self.synchronise()
                self.nanoseconds[part] += self.clock() - start
                self.inside = False

        return timed


@contextmanager
def watched(model: Model, stopwatch: Stopwatch) -> Iterator[None]:
    """Let `stopwatch` time the parts of `model`; all of its companions are a part of their own."""
    replaced: list[tuple[nn.Module, str]] = []

    def wrap(module: nn.Module, part: str, names: Sequence[str]) -> None:
        for name in names:
            method = getattr(module, name, None)
            if method is not None and name not in vars(module):
                vars(module)[name] = stopwatch.wrapped(method, part)
                replaced.append((module, name))

    try:
        for owner in (model, *model.companions.values()):
            for module in owner.modules():
                for part, kinds, names in BLOCKS:
                    if isinstance(module, kinds):
                        wrap(module, part if owner is model else "companion", names)
        yield
    finally:
        for module, name in replaced:
            del vars(module)[name]


def break_down(
    system: System, batches: Sequence[SourceBatch], clock: Clock, synchronise: Callable[[], None]
) -> dict[str, float]:
    """Return the share of each of `PARTS` in the time of decoding `batches`, in %; empty if none of them was seen."""
    stopwatch = Stopwatch(clock, synchronise)
    with watched(system.model, stopwatch):
        synchronise()
        start = clock()
        for batch in batches:
            system.decode(batch)
        synchronise()
        total = clock() - start
    known = sum(stopwatch.nanoseconds.values())
    if not known or not total:
        return {}
    stopwatch.nanoseconds["other"] = max(total - known, 0)
    return {part: 100 * spent / total for part, spent in stopwatch.nanoseconds.items() if spent}
