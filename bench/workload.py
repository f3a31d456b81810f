"""What is timed: a fixed sample of sentences, the systems that decode it, and the check that they give what was scored.

The sample is the same for every system and, unless fewer batches are asked for, for every batch size. It is sorted by
source length before it is cut into batches, as a throughput-minded user would, so that padding is small for all alike;
at batch 1 the order changes nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.batching import pad_sources
from bench.decoding import check_emitted, sentences_of
from bench.preparation import PreparedData, Source
from bench.steps import StepFailure
from bench.tasks.base import Example
from models.interface import DataSpec, Model

SAMPLE_SEED = 1
SCORE_TOLERANCE = 1e-4
FIXED_SHARE = 0.1
"""Share of the sample that may differ where lengths are fixed; two sentences may in any case."""
TIED_SHARE = 0.02
"""Share of the sample that may differ from what was scored at an equal score; one sentence may in any case."""


class OutputMismatch(StepFailure):
    """A timed decoder gave something else than what was scored."""


@dataclass(frozen=True)
class Sentence:
    """A sentence of the sample."""

    id: str
    example: Example
    source: Source


@dataclass(frozen=True)
class Scored:
    """A hypothesis as the evaluation scored it."""

    text: str
    tokens: list[int]
    score: float
    """The decoder's own score."""


@dataclass(frozen=True)
class SourceBatch:
    """Padded sources on the host."""

    src: Tensor
    """See `models.interface.Batch`."""
    src_len: Tensor
    """[b] int64."""


@dataclass(frozen=True)
class Output:
    """What a decoder gave for a batch: tokens and lengths on the host, the rest where it was computed."""

    tokens: Tensor
    """[b, t] int64."""
    lengths: Tensor
    """[b] int64."""
    scores: Tensor
    """[b] float32."""
    iterations: Tensor
    """[b] int64."""

    def sentences(self) -> list[list[int]]:
        """Return the emitted ids of each sentence."""
        return sentences_of(self.tokens, self.lengths)

    def emitted(self) -> int:
        """Return the number of target tokens; see `bench.decoding.check_emitted` for what they are."""
        return int(self.lengths.sum())


def read_hypotheses(folder: Path) -> dict[str, Scored]:
    """Return the scored hypotheses of an evaluate artifact by sentence id."""
    with (folder / "hypotheses.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    nan = float("nan")
    return {
        row["id"]: Scored(row["hypothesis"], row["tokens"], nan if row["score"] is None else row["score"])
        for row in rows
    }


def draw_sample(data: PreparedData, split: str, ids: Collection[str], count: int) -> list[Sentence]:
    """Return `count` random sentences of `split` among `ids` (all of them if they are fewer), shortest source first.

    Raises:
        StepFailure: none of `ids` is in the split.
    """
    examples = [example for example in data.examples(split) if example.id in ids]
    if not examples:
        raise StepFailure(f"no sentence of the {split} split was decoded by every system")
    chosen = random.Random(SAMPLE_SEED).sample(examples, min(count, len(examples)))
    pairs = data.encode(chosen)
    sentences = [Sentence(e.id, e, pair.source) for e, pair in zip(chosen, pairs, strict=True)]
    return sorted(sentences, key=lambda sentence: len(sentence.source))


@dataclass(frozen=True)
class Workload:
    """What a round decodes at a batch size."""

    indices: tuple[int, ...]
    """Sentences of the sample, in its order."""
    batches: tuple[SourceBatch, ...]


def make_workload(sample: Sequence[Sentence], batch_size: int, max_batches: int | None = None) -> Workload:
    """Cut the sample, in order, into padded batches, and take at most `max_batches`, evenly from short to long.

    A rest that fills no batch is not among those that are chosen, unless it is all there is.
    """
    cuts = [range(start, min(start + batch_size, len(sample))) for start in range(0, len(sample), batch_size)]
    if max_batches is not None and len(cuts) > max_batches:
        cuts = [cut for cut in cuts if len(cut) == batch_size]
    chosen = [cuts[i] for i in spread(len(cuts), max_batches or len(cuts))]
    batches = [SourceBatch(*pad_sources([sample[i].source for i in indices])) for indices in chosen]
    return Workload(tuple(i for indices in chosen for i in indices), tuple(batches))


def spread(size: int, count: int) -> list[int]:
    """Return at most `count` numbers below `size`, evenly over them, the first and the last among them.

    A single one is the middle one.
    """
    if size <= count:
        return list(range(size))
    return [size // 2] if count == 1 else [round(i * (size - 1) / (count - 1)) for i in range(count)]


class System:
    """A trained model with the settings it decodes with, and its scored outputs for the sample."""

    def __init__(self, model: Model, settings: Any, scored: Sequence[Scored], data: DataSpec, device: str) -> None:
        self.model = model
        self.settings = settings
        self.scored = list(scored)
        self.data = data
        self.device = device

    def decode(self, batch: SourceBatch) -> Output:
        """Decode a batch from the host to the host: this is what is timed."""
        decoded = self.model.decode(batch.src.to(self.device), batch.src_len.to(self.device), self.settings)
        return Output(decoded.tokens.cpu(), decoded.lengths.cpu(), decoded.scores, decoded.iterations)

    def weight_bytes(self) -> int:
        """Return the size of the model's parameters and buffers."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def count_ties(self, outputs: Sequence[Output], indices: Sequence[int] | None = None) -> int:
        """Compare outputs with the scored ones; return how many differ at an equal score.

        indices: the sentences of the sample that the outputs are for; None: all of them.

        Another batch size sums in another order, and a decoder may then choose otherwise between two outputs that it
        scores the same. A few such ties are tolerated and reported; but scores that are the same for all outputs say
        nothing of any two. Of outputs of fixed length see `_count_differing`.

        Raises:
            OutputMismatch: outputs differ that are no such ties, or too many that are.
            StepFailure: an output holds what no target can; see `bench.decoding.check_emitted`.
        """
        tokens = [sentence for output in outputs for sentence in output.sentences()]
        check_emitted(tokens, self.data)
        expected = self.scored if indices is None else [self.scored[i] for i in indices]
        assert len(tokens) == len(expected), "a decoder must give one output per source"
        if tokens == [scored.tokens for scored in expected]:
            return 0
        if getattr(self.settings, "output_length", "model") == "source":
            return _count_differing(tokens, [scored.tokens for scored in expected])
        scores = [score for output in outputs for score in output.scores.tolist()]
        different = tied = 0
        for ids, score, scored in zip(tokens, scores, expected, strict=True):
            if ids != scored.tokens:
                # A score that is no number is never within the tolerance.
                if abs(score - scored.score) <= SCORE_TOLERANCE:
                    tied += 1
                else:
                    different += 1
        if different:
            raise OutputMismatch(f"{different} of {len(tokens)} outputs differ from the scored hypotheses")
        values = [scored.score for scored in expected]
        if max(values) - min(values) <= SCORE_TOLERANCE:
            raise OutputMismatch(
                f"{tied} of {len(tokens)} outputs differ from the scored hypotheses, and all have the same score"
            )
        allowed = max(1, int(TIED_SHARE * len(tokens)))
        if tied > allowed:
            raise OutputMismatch(
                f"{tied} of {len(tokens)} outputs differ from the scored hypotheses at an equal score; "
                f"tolerated are {allowed}"
            )
        return tied


def _count_differing(tokens: Sequence[list[int]], expected: Sequence[list[int]]) -> int:
    """Return how many outputs of fixed length differ from those expected.

    They take the same work whatever they say, and untrained models, for which lengths are fixed, are undecided often.

    Raises:
        OutputMismatch: a length differs, or more outputs than is tolerated.
    """
    longer = sum(len(ids) != len(others) for ids, others in zip(tokens, expected, strict=True))
    if longer:
        raise OutputMismatch(f"{longer} of {len(tokens)} outputs have another length than the scored hypotheses")
    differing = sum(ids != others for ids, others in zip(tokens, expected, strict=True))
    allowed = max(2, int(FIXED_SHARE * len(tokens)))
    if differing > allowed:
        raise OutputMismatch(
            f"{differing} of {len(tokens)} outputs of fixed length differ from the scored hypotheses; "
            f"tolerated are {allowed}"
        )
    return differing
