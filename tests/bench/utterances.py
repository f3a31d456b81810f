"""Utterances of noise, and three splits of them that tests alter before they prepare them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.audio import from_pcm, to_pcm
from bench.errors import DataError
from bench.features import FeatureExtractor
from bench.preparation import PreparedData
from bench.tasks.speech import SpeechOptions, Utterance, prepare_speech
from tests.bench.recordings import noise

SHIFT = 160
"""Samples from one frame to the next."""


def utterance(name: str, text: str, samples: int | None = None, seed: int = 0, **fields: Any) -> Utterance:
    """Return an utterance of noise; by default it has enough frames for its text."""
    waveform = noise(samples if samples is not None else SHIFT * (20 + 8 * len(text)), seed)
    return Utterance(name, text, fields.pop("path", f"{name}.wav"), lambda: waveform, **fields)


def unreadable(name: str) -> Utterance:
    def load() -> Any:
        raise DataError(f"{name}.wav: no such file")

    return Utterance(name, "good text", f"{name}.wav", load)


class SpeechCorpus:
    """Three splits that tests alter before they prepare them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.splits = {
            "train": [utterance(f"t{i}", text, seed=i) for i, text in enumerate(["Abc cab", "bca", "a b c", "ccb a"])],
            "dev": [utterance("d0", "cab", seed=10), utterance("d1", "a bc", seed=11)],
            "test": [utterance(f"e{i}", text, seed=20 + i) for i, text in enumerate(["abc", "CBA cba", "b"])],
        }

    def prepare(self, name: str = "prepared", **options: Any) -> PreparedData:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        prepare_speech(folder, self.splits, SpeechOptions(**options))
        return PreparedData(folder)

    def error(self, **options: Any) -> str:
        """Return the message with which preparation refuses, having left nothing behind."""
        with pytest.raises(DataError) as caught:
            self.prepare(**options)
        assert list((self.folder / "prepared").iterdir()) == []
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def raw(self, split: str, **features: Any) -> list[Any]:
        """Return the features of a split before normalisation."""
        extract = FeatureExtractor(SpeechOptions(features=features).features)
        return [extract(from_pcm(to_pcm(u.load()))) for u in self.splits[split]]


def arrays(data: PreparedData, split: str, values: str, lengths: str) -> list[Any]:
    """Return what lies one after the other in `<split>.<values>.npy`, taken apart."""
    flat, sizes = np.load(data.folder / f"{split}.{values}.npy"), np.load(data.folder / f"{split}.{lengths}.npy")
    assert sizes.dtype == np.int64
    assert len(flat) == sizes.sum()
    return np.split(flat, np.cumsum(sizes)[:-1])
