"""Utterances of one split: which of them are usable, and what becomes of the others.

What happens to an utterance that is not as it should be:

    unreadable   its recording cannot be read (missing, damaged, empty, of another format: see `bench.audio`)
    too_short    the recording is shorter than half a frame shift, so that it has no frame
    too_long     longer than `max_seconds`
    no_text      the transcript is empty, or nothing but white space
    symbols      the transcript has control characters or halves of surrogate pairs
    many_tokens  the transcript is longer than `max_target_tokens`

In the training split it is dropped, counted and listed in `data.json`; in the others, whose utterances are never
dropped, it is a DataError. Kept and counted are characters that the training split does not have
(`unknown_characters`: encoded as the unknown, scored as the text they are) and utterances of which CTC cannot give the
transcript after the usual subsampling to a quarter of the frames (`tight`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from bench.arrays import ArrayFile
from bench.audio import change_speed, from_pcm, to_pcm
from bench.errors import DataError
from bench.features import FeatureExtractor, FeatureOptions, FloatArray
from bench.tasks.base import Example
from bench.tasks.transcripts import Case, Units, least_tokens, normalise_transcript, unusable_symbol
from bench.text import Tokenizer
from models.interface import UNK, Options

SUBSAMPLING = 4
"""Frames for each position of the encoder's output, in nearly every model of speech."""
REASONS = ("unreadable", "too_short", "too_long", "no_text", "symbols", "many_tokens")
"""Why an utterance is dropped; see above."""


class SpeechOptions(Options):
    """What every task of speech can set."""

    features: FeatureOptions = FeatureOptions()
    """How audio becomes frames."""
    normalisation: Literal["global", "speaker", "utterance", "none"] = "global"
    """What is taken off each mel band: the training split's mean; the mean of the speaker's own utterances in the same
    split; that of the recording itself; or nothing. The first two also divide by the training split's standard
    deviation, the third by that of its recordings around their own means."""
    units: Units = "characters"
    """What transcripts are made of."""
    vocab_size: int | None = Field(None, gt=257)
    """Subword pieces, 256 bytes and the unknown among them, 1000 if not given; only for units: subwords."""
    case: Case = "lower"
    """Letters of transcripts, to train on and to score against."""
    max_seconds: float = Field(20.0, gt=0)
    """Longest recording; longer ones of the training split are dropped."""
    max_target_tokens: int = Field(400, ge=1)
    """Longest transcript, in characters or subwords; longer ones of the training split are dropped."""
    speeds: tuple[Annotated[float, Field(ge=0.5, le=2)], ...] = Field((1.0,), min_length=1)
    """Speeds at which the training split has each recording (Ko et al. 2015), in hundredths: [1, 0.9, 1.1] makes three
    of one."""

    @field_validator("speeds")
    @classmethod
    def _distinct(cls, speeds: tuple[float, ...]) -> tuple[float, ...]:
        fine = [f"{speed:g}" for speed in speeds if round(speed, 2) != speed]
        if fine:
            raise ValueError(f"speeds have at most two decimals, and {fine[0]} has more")
        if len(set(speeds)) < len(speeds):
            raise ValueError(f"speeds must differ, got {', '.join(f'{speed:g}' for speed in speeds)}")
        return speeds

    @model_validator(mode="after")
    def _consistent(self) -> SpeechOptions:
        if self.vocab_size is not None and self.units == "characters":
            raise ValueError(
                f"vocab_size {self.vocab_size} is for units: subwords; characters are as many as there are"
            )
        return self


@dataclass(frozen=True)
class Utterance:
    """A recording and what is said in it."""

    id: str
    """Unique in the task, over all splits."""
    text: str
    """The transcript, as it was found."""
    name: str
    """What people call the recording: a path, for instance."""
    load: Callable[[], npt.NDArray[np.float32]]
    """Returns the waveform, [samples] mono in [-1, 1] at `features.sample_rate`; may raise DataError, naming it."""
    tags: dict[str, str | float] = field(default_factory=dict)
    """What results can be broken down by, such as `speaker`; `seconds` is added."""
    place: str = ""
    """Where it is listed (`file:line`), if anywhere: what errors begin with."""

    def about_text(self, problem: str) -> str:
        """Return a line about the transcript."""
        return f"{self.place or self.name}: {problem}"

    def about_recording(self, problem: str) -> str:
        """Return a line about the recording, which `problem` names."""
        return f"{self.place}: {problem}" if self.place else problem


def at_speeds(utterances: Iterable[Utterance], speeds: Sequence[float]) -> Iterator[Utterance]:
    """Yield each utterance at each speed; at another than 1 its id and its name end in `@SPEED`."""
    for utterance in utterances:
        for speed in speeds:
            if speed == 1:
                yield utterance
            else:
                mark = f"@{speed:g}"
                load = partial(_load_at, utterance.load, speed)
                yield replace(utterance, id=utterance.id + mark, name=utterance.name + mark, load=load)


def _load_at(load: Callable[[], npt.NDArray[np.float32]], speed: float) -> npt.NDArray[np.float32]:
    return change_speed(load(), speed)


class _Unusable(Exception):
    """An utterance cannot be used: one of REASONS, and a line for people."""

    def __init__(self, reason: str, problem: str) -> None:
        super().__init__(problem)
        self.reason = reason


@dataclass
class Row:
    """An utterance that is kept."""

    utterance: Utterance
    text: str
    """The normalised transcript."""
    seconds: float
    samples: int
    start: int
    """Its first frame among those that were read, dropped ones included."""
    frames: int
    tokens: list[int] = field(default_factory=list)

    @property
    def is_tight(self) -> bool:
        """Whether CTC has too few positions: one a token, and a blank between two equal ones."""
        return self.frames < SUBSAMPLING * (len(self.tokens) + sum(a == b for a, b in pairwise(self.tokens)))


class UtteranceSplit:
    """The utterances of one split that are kept, and what became of the others."""

    def __init__(self, name: str, options: SpeechOptions, raw: Path) -> None:
        self.name = name
        self.options = options
        self.raw = raw
        """File for the features before normalisation."""
        self.read = 0
        self.rows: list[Row] = []
        self.dropped = dict.fromkeys(REASONS, 0)
        self.dropped_utterances: list[dict[str, str]] = []

    def read_from(self, utterances: Iterable[Utterance], folder: Path) -> None:
        """Take the usable ones of `utterances`: features into `raw`, audio of the dev and test splits into `folder`."""
        extract = FeatureExtractor(self.options.features)
        with ExitStack() as files:
            raw = files.enter_context(ArrayFile(self.raw, np.float32, self.options.features.num_mels))
            audio = None
            if self.name != "train":
                audio = files.enter_context(ArrayFile(folder / f"{self.name}.audio.npy", np.int16))
            for utterance in utterances:
                self.read += 1
                if self.options.normalisation == "speaker" and "speaker" not in utterance.tags:
                    raise DataError(utterance.about_text("no speaker is named, as normalisation: speaker needs"))
                try:
                    text = self._transcript(utterance)
                    samples = self._recording(utterance)
                    frames = extract(from_pcm(samples))
                    if not len(frames):
                        problem = f"{utterance.name}: {len(samples)} samples give no frame"
                        raise _Unusable("too_short", utterance.about_recording(problem))
                except _Unusable as unusable:
                    self._drop(utterance, unusable)
                    continue
                seconds = len(samples) / self.options.features.sample_rate
                self.rows.append(Row(utterance, text, seconds, len(samples), raw.rows, len(frames)))
                raw.append(frames)
                if audio is not None:
                    audio.append(samples)
        self._require_rows()

    def encode(self, tokenizer: Tokenizer) -> None:
        """Give every row its tokens; drop those that have too many."""
        kept = []
        for row in self.rows:
            row.tokens = tokenizer.encode(row.text)
            try:
                self._limit(len(row.tokens), row.utterance, self.options.units)
                kept.append(row)
            except _Unusable as unusable:
                self._drop(row.utterance, unusable)
        self.rows = kept
        self._require_rows()

    def features(self) -> Iterator[FloatArray]:
        """Yield the features of each row, before normalisation."""
        frames = np.load(self.raw, mmap_mode="r")
        for row in self.rows:
            yield frames[row.start : row.start + row.frames]

    def speaker_means(self) -> dict[str, FloatArray]:
        """Return the mean [num_mels] of each speaker's frames; every utterance must have one."""
        sums: dict[str, npt.NDArray[np.float64]] = {}
        counts: dict[str, int] = {}
        for row, features in zip(self.rows, self.features(), strict=True):
            speaker = str(row.utterance.tags["speaker"])
            sums[speaker] = sums.get(speaker, 0) + features.sum(axis=0, dtype=np.float64)
            counts[speaker] = counts.get(speaker, 0) + len(features)
        return {speaker: (sums[speaker] / counts[speaker]).astype(np.float32) for speaker in sums}

    def write_examples(self, folder: Path) -> None:
        """Write `<split>.jsonl` and the lengths."""
        with (folder / f"{self.name}.jsonl").open("w", encoding="utf-8") as file:
            for row in self.rows:
                tags = {**row.utterance.tags, "seconds": row.seconds}
                example = Example(row.utterance.id, row.utterance.name, row.text, (row.text,), tags)
                file.write(json.dumps(example.to_json(), ensure_ascii=False) + "\n")
        np.save(folder / f"{self.name}.frames.npy", np.array([row.frames for row in self.rows], dtype=np.int64))
        if self.name != "train":
            np.save(folder / f"{self.name}.samples.npy", np.array([row.samples for row in self.rows], dtype=np.int64))

    def description(self) -> dict[str, Any]:
        """Return the split's part of `data.json`."""
        return {
            "read": self.read,
            "kept": len(self.rows),
            "dropped": self.dropped,
            "dropped_utterances": self.dropped_utterances,
            "seconds": sum(row.seconds for row in self.rows),
            "target_tokens": sum(len(row.tokens) for row in self.rows),
            "unknown_characters": sum(row.tokens.count(UNK) for row in self.rows),
            "tight": sum(row.is_tight for row in self.rows),
        }

    def _transcript(self, utterance: Utterance) -> str:
        """Return the normalised transcript, if it can be used."""
        text = normalise_transcript(utterance.text, self.options.case)
        if not text:
            raise _Unusable("no_text", utterance.about_text("the transcript is empty"))
        if symbol := unusable_symbol(text):
            problem = f"the transcript has {symbol}, which cannot be encoded"
            raise _Unusable("symbols", utterance.about_text(problem))
        least = least_tokens(text, self.options.units)
        self._limit(least, utterance, "characters" if self.options.units == "characters" else "words")
        return text

    def _limit(self, tokens: int, utterance: Utterance, unit: str) -> None:
        limit = self.options.max_target_tokens
        if tokens > limit:
            problem = f"{tokens} {unit} are more than max_target_tokens={limit}"
            raise _Unusable("many_tokens", utterance.about_text(problem))

    def _recording(self, utterance: Utterance) -> npt.NDArray[np.int16]:
        """Return the samples, if they can be used."""
        try:
            samples = to_pcm(utterance.load())
        except DataError as error:
            raise _Unusable("unreadable", utterance.about_recording(str(error))) from error
        seconds, limit = len(samples) / self.options.features.sample_rate, self.options.max_seconds
        if seconds > limit:
            problem = f"{utterance.name}: {seconds:.2f} s are more than max_seconds={limit:g}"
            raise _Unusable("too_long", utterance.about_recording(problem))
        return samples

    def _drop(self, utterance: Utterance, unusable: _Unusable) -> None:
        """Count and list an utterance; raise DataError if the split is one whose utterances are never dropped."""
        if self.name != "train":
            raise DataError(f"{unusable} ({self.name} utterances are never dropped)") from unusable
        self.dropped[unusable.reason] += 1
        self.dropped_utterances.append({"id": utterance.id, "reason": unusable.reason, "problem": str(unusable)})

    def _require_rows(self) -> None:
        if not self.rows:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items() if count)
            first = f" ({reasons}; the first: {self.dropped_utterances[0]['problem']})" if reasons else ""
            raise DataError(f"no {self.name} utterance is left of {self.read}{first}")
