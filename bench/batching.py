"""Length-bucketed padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from bench.preparation import EncodedPair, Source
from models.interface import PAD, Batch


def collate(pairs: Sequence[EncodedPair]) -> Batch:
    """Pad `pairs` into one batch; every side is at least one position wide."""
    src, src_len = pad_sources([p.source for p in pairs])
    tgt, tgt_len = pad([p.target for p in pairs])
    labels = pad([p.labels or [] for p in pairs])[0] if any(p.labels is not None for p in pairs) else None
    return Batch(src, src_len, tgt, tgt_len, labels)


def pad_sources(sources: Sequence[Source]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids [b, s] padded with PAD, or frames [b, s, features] float32 padded with 0, and their lengths [b]."""
    recordings = [source for source in sources if isinstance(source, np.ndarray)]
    if not recordings:
        return pad(sources)  # type: ignore[arg-type]
    assert len(recordings) == len(sources), "a batch holds either ids or frames"
    lengths = torch.tensor([len(x) for x in recordings], dtype=torch.long)
    shape = (len(recordings), max([1, *map(len, recordings)]), recordings[0].shape[1])
    padded = np.zeros(shape, dtype=np.float32)
    for i, frames in enumerate(recordings):
        padded[i, : len(frames)] = frames
    return torch.from_numpy(padded), lengths


def pad(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids [b, t] padded with PAD, t at least 1, and their lengths [b]."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    padded = np.full((len(rows), max([1, *map(len, rows)])), PAD, dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded), lengths


def bucket(sizes: Sequence[int], order: Sequence[int], max_tokens: int, max_sentences: int) -> list[list[int]]:
    """Cut `order` (indices) into batches whose longest size times their count stays within `max_tokens`.

    An item that is larger than `max_tokens` on its own becomes a batch of its own.
    """
    batches: list[list[int]] = []
    current: list[int] = []
    longest = 0
    for index in order:
        size = max(sizes[index], 1)
        if current and (max(longest, size) * (len(current) + 1) > max_tokens or len(current) >= max_sentences):
            batches.append(current)
            current, longest = [], 0
        current.append(index)
        longest = max(longest, size)
    if current:
        batches.append(current)
    return batches


class TrainingBatches:
    """An endless, stateless stream of training batches: epoch and position determine a batch.

    Within an epoch sentences are shuffled, sorted by length inside windows of `window` sentences, cut into batches
    by positions, and the batches shuffled; all of it seeded by (seed, epoch).
    """

    def __init__(
        self,
        pairs: Sequence[EncodedPair],
        max_tokens: int,
        max_sentences: int,
        seed: int,
        max_frames: int = 8000,
        window: int = 8192,
        curriculum: int = 0,
    ) -> None:
        """Cut batches of at most `max_tokens` positions, or of speech `max_frames` frames, padding included.

        curriculum: epochs in which longer and longer sources come in: epoch i of n has only the shortest i n-ths of
            them (after Bengio et al. 2009; Amodei et al. 2016 sort the first epoch by length).
        """
        if not pairs:
            raise ValueError("no training pairs")
        self.pairs = pairs
        speech = isinstance(pairs[0].source, np.ndarray)
        self.max_size = max_frames if speech else max_tokens
        self.max_sentences = max_sentences
        self.seed = seed
        self.window = window
        self.curriculum = curriculum
        # Both sides cost work: the longer one is what a batch is measured by, and eos needs a position. A transcript
        # is always shorter than its recording.
        self.sizes = [len(p.source) if speech else max(len(p.source), len(p.target)) + 1 for p in pairs]

    def epoch(self, number: int) -> list[list[int]]:
        """Return the batches of an epoch as indices of pairs."""
        rng = np.random.default_rng([self.seed, number])
        shuffled = rng.permutation(len(self.pairs))
        if number < self.curriculum:
            count = -(-len(self.pairs) * (number + 1) // self.curriculum)
            shortest = np.zeros(len(self.pairs), dtype=bool)
            shortest[np.argsort(self.sizes, kind="stable")[:count]] = True
            shuffled = shuffled[shortest[shuffled]]
        batches: list[list[int]] = []
        for start in range(0, len(shuffled), self.window):
            part = shuffled[start : start + self.window]
            # A stable sort over shuffled items: sentences of equal size meet in a new order each epoch.
            part = part[np.argsort([self.sizes[i] for i in part], kind="stable")]
            batches += bucket(self.sizes, part.tolist(), self.max_size, self.max_sentences)
        return [batches[i] for i in rng.permutation(len(batches))]

    def stream(self, epoch: int, position: int) -> Iterator[tuple[int, int, Batch]]:
        """Yield (epoch, position of the next batch, batch) from batch `position` of `epoch` on, without end."""
        while True:
            batches = self.epoch(epoch)
            for i in range(position, len(batches)):
                yield epoch, i + 1, collate([self.pairs[j] for j in batches[i]])
            epoch, position = epoch + 1, 0
