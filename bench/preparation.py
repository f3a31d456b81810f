"""The prepare step: a task's data, tokenised once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bench.steps import Progress
from bench.tasks.base import SPLITS, Example, Task
from bench.tasks.registry import load_task
from bench.text import Tokenizer, load_tokenizer
from models.interface import DataSpec


def run(spec: dict[str, Any], folder: Path, parents: dict[str, Path], progress: Progress) -> None:
    """Write the prepared data of `spec["task"]` configured by `spec["config"]`."""
    progress(done=0.0)
    build_task(spec["task"], spec["config"]).prepare(folder)


def build_task(name: str, config: dict[str, Any]) -> Task:
    """Return the task called `name` with `config` validated."""
    task = load_task(name)
    return task(task.Config(**config))


Source: TypeAlias = Sequence[int] | npt.NDArray[np.floating[Any]]
"""What a model reads of one example: ids, or feature frames [frames, features]."""


@dataclass(frozen=True)
class EncodedPair:
    """A pair as a model takes it; targets hold neither bos nor eos."""

    source: Source
    target: list[int]
    labels: list[int] | None = None
    """What the family asks for beside the target (see `models.interface.Family.labels`)."""


class PreparedData:
    """A prepared task as read from its artifact."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer: Tokenizer = load_tokenizer(folder)
        self.counts: dict[str, Any] = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        self._recordings: dict[str, Recordings] = {}
        self._places: dict[str, tuple[str, int]] = {}
        """Split and number of each example that was read, by id."""

    @property
    def speech(self) -> bool:
        """Whether sources are recordings."""
        return bool(self.counts.get("modality") == "speech")

    def examples(self, split: str) -> list[Example]:
        """Return the examples of `split`, in order."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; there are: {', '.join(SPLITS)}")
        examples: list[Example] = []
        with (self.folder / f"{split}.jsonl").open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                row["references"] = tuple(row["references"])
                self._places[row["id"]] = (split, len(examples))
                examples.append(Example(**row))
        return examples

    def encode(self, examples: list[Example]) -> list[EncodedPair]:
        """Return what models take of `examples`, which `examples` has returned."""
        encode = self.tokenizer.encode
        if self.speech:
            return [EncodedPair(self.recordings(e).features(self._places[e.id][1]), encode(e.target)) for e in examples]
        return [EncodedPair(encode(e.source), encode(e.target)) for e in examples]

    def recordings(self, example: Example) -> Recordings:
        """Return the recordings of the split that `example` is from."""
        split = self._places[example.id][0]
        if split not in self._recordings:
            self._recordings[split] = Recordings(self.folder, split)
        return self._recordings[split]

    @cached_property
    def extractor(self) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
        """What turns a waveform into features: filterbanks, then normalisation by the training split's mean."""
        from bench.features import FeatureExtractor, FeatureOptions, Normaliser

        description = json.loads((self.folder / "features.json").read_text(encoding="utf-8"))
        extract = FeatureExtractor(FeatureOptions(**description["options"]))
        if description["normaliser"] is None:
            return extract
        normalise = Normaliser.from_json(description["normaliser"])
        return lambda waveform: normalise(extract(waveform))

    def waveform(self, example: Example) -> npt.NDArray[np.float32]:
        """Return the samples of an example of the dev or test split, mono, in [-1, 1]."""
        return self.recordings(example).waveform(self._places[example.id][1])

    @property
    def data_spec(self) -> DataSpec:
        """What a model must know: sizes, and the length limits that preparation measured."""
        return DataSpec(
            vocab_size=self.tokenizer.size,
            max_source_length=self.counts["max_source_length"],
            max_target_length=self.counts["max_target_length"],
            modality="speech" if self.speech else "text",
            num_features=self.counts.get("num_features", 0),
        )


class Recordings:
    """Features and audio of a split, as `bench.tasks.speech` writes them; read from disk where they are needed."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder
        self.split = split
        self._features, self._frames = self._read("features"), self._ends("frames")

    def features(self, number: int) -> npt.NDArray[np.floating[Any]]:
        """Return the normalised features of recording `number`, float16 [frames, features]."""
        start, end = self._frames[number : number + 2]
        return self._features[start:end]

    def waveform(self, number: int) -> npt.NDArray[np.float32]:
        """Return the samples of recording `number`, float32 [n] in [-1, 1]; training splits keep none."""
        start, end = self._ends("samples")[number : number + 2]
        return np.asarray(self._read("audio")[start:end], dtype=np.float32) / np.float32(2**15)

    def _read(self, name: str) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = np.load(self.folder / f"{self.split}.{name}.npy", mmap_mode="r", allow_pickle=False)
        return array

    def _ends(self, name: str) -> npt.NDArray[np.int64]:
        """Return where each recording begins and the last one ends, [n + 1]."""
        return np.concatenate([[0], np.cumsum(self._read(name))])
