"""Decoding of a whole corpus in length-sorted batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.batching import bucket, pad_sources
from bench.checkpoint import inference
from bench.preparation import Source
from models.interface import Model, Options


@dataclass(frozen=True)
class Output:
    """The decoded ids of one sentence and the decoder's own score."""

    tokens: list[int]
    score: float


def length_order(sources: Sequence[Source]) -> list[int]:
    """Return indices of `sources`, longest first, so that memory peaks at once and padding stays small."""
    return sorted(range(len(sources)), key=lambda i: -len(sources[i]))


def decode_batch(model: Model, sources: Sequence[Source], settings: Options, precision: str) -> list[Output]:
    """Decode `sources` as one batch, from sources to id lists."""
    device = next(model.parameters()).device
    src, src_len = pad_sources(sources)
    with inference(device.type, precision):
        decoded = model.decode(src.to(device), src_len.to(device), settings)
    tokens, lengths = decoded.tokens.tolist(), decoded.lengths.tolist()
    return [
        Output(row[:length], score)
        for row, length, score in zip(tokens, lengths, decoded.scores.float().tolist(), strict=True)
    ]


def decode_corpus(
    model: Model,
    sources: Sequence[Source],
    settings: Options,
    batch_size: int,
    precision: str,
    max_tokens: int | None = None,
    after_batch: Callable[[int], None] | None = None,
) -> list[Output]:
    """Decode `sources` in batches of similar length; outputs come back in the order of `sources`.

    batch_size: sentences per batch; max_tokens: padded source positions per batch, no limit by default;
    after_batch: told the number of sentences done after each batch.
    """
    model.eval()
    sizes = [len(s) for s in sources]
    largest = max(sizes, default=1)
    outputs: list[Output | None] = [None] * len(sources)
    done = 0
    for indices in bucket(sizes, length_order(sources), max_tokens or batch_size * max(largest, 1), batch_size):
        decoded = decode_batch(model, [sources[i] for i in indices], settings, precision)
        for i, output in zip(indices, decoded, strict=True):
            outputs[i] = output
        done += len(indices)
        if after_batch is not None:
            after_batch(done)
    return [o for o in outputs if o is not None]
