"""Decoding of a whole corpus in length-sorted batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from bench.batching import bucket, pad_sources
from bench.checkpoint import inference
from bench.preparation import Source
from bench.steps import StepFailure
from models.interface import NUM_SPECIAL, SPECIAL_NAMES, DataSpec, Model, Options


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
    sentences = sentences_of(decoded.tokens, decoded.lengths)
    return [Output(ids, score) for ids, score in zip(sentences, decoded.scores.float().tolist(), strict=True)]


def sentences_of(tokens: Tensor, lengths: Tensor) -> list[list[int]]:
    """Return the emitted ids of each sentence, from padded ids [b, t] and lengths [b].

    Raises:
        StepFailure: a length is none, or more than there is.
    """
    rows, counts = tokens.tolist(), lengths.tolist()
    for row, count in zip(rows, counts, strict=True):
        if not 0 <= count <= len(row):
            raise StepFailure(f"the decoder gave {count} as the length of an output of {len(row)} tokens")
    return [row[:count] for row, count in zip(rows, counts, strict=True)]


def check_emitted(sentences: Iterable[Sequence[int]], data: DataSpec) -> None:
    """Check that outputs consist of target tokens alone and are no longer than the data allows.

    Raises:
        StepFailure: they do not, or are.
    """
    for ids in sentences:
        if len(ids) > data.max_target_length:
            raise StepFailure(f"the decoder gave {len(ids)} tokens; no target has more than {data.max_target_length}")
        for i in ids:
            if not NUM_SPECIAL <= i < data.vocab_size:
                what = f"the special symbol {SPECIAL_NAMES[i]}" if 0 <= i < NUM_SPECIAL else "none of the vocabulary's"
                raise StepFailure(
                    f"the decoder emitted id {i}, {what}; allowed are {NUM_SPECIAL} to {data.vocab_size - 1}"
                )


def decode_corpus(
    model: Model,
    sources: Sequence[Source],
    settings: Options,
    data: DataSpec,
    batch_size: int,
    precision: str,
    max_tokens: int | None = None,
    after_batch: Callable[[int], None] | None = None,
) -> list[Output]:
    """Decode `sources` in batches of similar length; outputs come back in the order of `sources`.

    data: what outputs must be in line with; batch_size: sentences per batch; max_tokens: padded source positions per
    batch, no limit by default; after_batch: told the number of sentences done after each batch.

    Raises:
        StepFailure: an output holds what no target can; see `check_emitted`.
    """
    model.eval()
    sizes = [len(s) for s in sources]
    largest = max(sizes, default=1)
    outputs: list[Output | None] = [None] * len(sources)
    done = 0
    for indices in bucket(sizes, length_order(sources), max_tokens or batch_size * max(largest, 1), batch_size):
        decoded = decode_batch(model, [sources[i] for i in indices], settings, precision)
        check_emitted((output.tokens for output in decoded), data)
        for i, output in zip(indices, decoded, strict=True):
            outputs[i] = output
        done += len(indices)
        if after_batch is not None:
            after_batch(done)
    return [o for o in outputs if o is not None]
