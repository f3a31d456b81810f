"""Morse: noisy audio of Morse code to text, generated here, so that nothing is downloaded.

Messages of amateur radio (see `bench.morse_text`) are keyed by an unsteady hand at varying speed and pitch, and arrive
with fading in noise (see `bench.morse_audio`). Characters come in order, unsegmented, with gaps that only their length
tells apart. Everything about a message follows from the seed, its split and its number, with two exceptions: a text
that an earlier message of the split has is drawn again, and signal-to-noise ratios are stratified. A split of n
messages has one in each n-th of the range, so that equal parts of the range hold equally many, and so nearly do the
first messages alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from bench.errors import DataError
from bench.features import FeatureOptions
from bench.morse_audio import Transmission, message_seconds, render
from bench.morse_text import draw_message, split_of
from bench.tasks.base import SPLITS, Example, Task
from bench.tasks.speech import ERROR_KINDS, SpeechOptions, Utterance, library_versions, prepare_speech

SNR_STEP = 5
"""Decibels over which results are put together."""
_ATTEMPTS = 1000
"""Draws of a message before its kind is taken to be exhausted."""
_GOLDEN = (5**0.5 - 1) / 2
_PARAMETERS, _AUDIO = 1, 2
"""Streams of random numbers that each message has."""


class MorseFeatures(FeatureOptions):
    """Filterbank for Morse code.

    A dot at 35 words per minute lasts 34 ms. A window of 32 ms still lies within one dot or one gap, and is as narrow
    in frequency as that allows: it is 128 samples, a power of two, and its spectrum has a line every 31 Hz. Frames
    every 10 ms see each dot three times. 24 bands are 48 to 83 Hz wide at their feet, so that none is without a line.
    """

    sample_rate: int = Field(4000, ge=4000, le=96_000)
    """Samples a second, of which the audio is made."""
    num_mels: int = Field(24, ge=1, le=512)
    """Mel bands, and so numbers in a frame."""
    frame_length_ms: float = Field(32.0, ge=1, le=1000)
    """Milliseconds of audio that a frame looks at."""
    low_freq: float = Field(300.0, ge=0)
    """Lower edge of the lowest band, in Hz."""
    high_freq: float = Field(1100.0, ge=0)
    """Upper edge of the highest band, in Hz; 0 is half the sample rate, which is also the most."""


class MorseConfig(SpeechOptions):
    """What to generate. Pairs are the least and the most; a message's value is drawn evenly between them."""

    features: MorseFeatures = MorseFeatures()
    """How audio becomes frames."""
    normalisation: Literal["global", "speaker", "utterance", "none"] = "utterance"
    """What is taken off each mel band, as in other tasks of speech, of which `speaker` alone has no meaning here. By
    default the recording's own mean: the noise differs by 25 dB between messages, and the tone may lie in any band."""
    wpm: tuple[Annotated[float, Field(ge=5, le=60)], ...] = Field((12, 35), min_length=2, max_length=2)
    """Speed in words per minute (PARIS)."""
    tone_hz: tuple[Annotated[float, Field(ge=50)], ...] = Field((400, 1000), min_length=2, max_length=2)
    """Pitch, within the band of the features."""
    snr_db: tuple[Annotated[float, Field(ge=-30, le=60)], ...] = Field((-5, 20), min_length=2, max_length=2)
    """Signal-to-noise ratio: power of the carrier against that of the noise in 500 Hz."""
    jitter: float = Field(0.1, ge=0, le=0.5)
    """Relative standard deviation of the duration of marks and gaps."""
    fading_db: tuple[Annotated[float, Field(ge=0, le=20)], ...] = Field((0, 6), min_length=2, max_length=2)
    """Slow fading (QSB): level of the tone at its strongest over that at its weakest."""
    fading_hz: tuple[Annotated[float, Field(gt=0, le=5)], ...] = Field((0.1, 0.5), min_length=2, max_length=2)
    """How often a second the tone is strongest."""
    silence: tuple[Annotated[float, Field(ge=0.02, le=5)], ...] = Field((0.1, 0.4), min_length=2, max_length=2)
    """Seconds of noise before the message, and as well after it."""
    words: tuple[Annotated[int, Field(ge=1, le=50)], ...] = Field((1, 4), min_length=2, max_length=2)
    """Words in a message; fewer where `max_seconds` leaves no room for the next one."""
    random_words: float = Field(0.5, ge=0, le=1)
    """Share of words that are made up: syllables, code groups, call signs, numbers."""
    punctuation: float = Field(0.1, ge=0, le=1)
    """Share of words that a mark follows."""
    train_utterances: int = Field(3000, ge=1)
    """Training messages."""
    dev_utterances: int = Field(200, ge=1)
    """Development messages."""
    test_utterances: int = Field(500, ge=1)
    """Test messages."""
    seed: int = Field(1, ge=0, lt=2**32)
    """Chooses the messages and all that happens to them on the way."""

    @model_validator(mode="after")
    def _possible(self) -> MorseConfig:
        for name in ("wpm", "tone_hz", "snr_db", "fading_db", "fading_hz", "silence", "words"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must rise, got {low:g}, {high:g}")
        band = (self.features.low_freq, self.features.high_freq or self.features.sample_rate / 2)
        if self.tone_hz[0] < band[0] or self.tone_hz[1] > band[1]:
            raise ValueError(
                f"tone_hz from {self.tone_hz[0]:g} to {self.tone_hz[1]:g} leaves the band of the features, "
                f"which is from {band[0]:g} to {band[1]:g} Hz"
            )
        shortest = message_seconds("paris", self.wpm[0]) + 2 * self.silence[1]
        if shortest > self.max_seconds:
            raise ValueError(
                f"max_seconds {self.max_seconds:g} leaves no room for a usual word, which takes {shortest:.1f} seconds "
                f"at {self.wpm[0]:g} words per minute, silence included"
            )
        if self.max_target_tokens < 10:
            raise ValueError(f"max_target_tokens {self.max_target_tokens} leaves no room for a word; allowed: >= 10")
        if self.normalisation == "speaker":
            raise ValueError(
                "normalisation 'speaker': messages in Morse code have none; allowed: 'global', 'utterance', 'none'"
            )
        return self

    @property
    def utterances(self) -> dict[str, int]:
        """Number of messages in each split."""
        return dict(zip(SPLITS, (self.train_utterances, self.dev_utterances, self.test_utterances), strict=True))


class Morse(Task):
    """Messages in Morse code, heard on the radio."""

    name = "morse"
    title = "Morse code"
    Config = MorseConfig
    metrics: ClassVar = ("cer", "wer", "ser", *ERROR_KINDS, "repetition_rate", "length_ratio", "empty_rate")
    selection_metric = "cer"
    subset_metrics: ClassVar = ("cer", "wer")
    modality = "speech"

    config: MorseConfig

    def subset(self, example: Example) -> str:
        """Return which 5 dB of the signal-to-noise ratio the message is in, `snr_db=0..5`."""
        low = SNR_STEP * int(float(example.tags["snr_db"]) // SNR_STEP)
        return f"snr_db={low}..{low + SNR_STEP}"

    def fingerprint(self) -> dict[str, Any]:
        """Return the versions of the libraries that draw the messages and prepare them."""
        return {"numpy": version("numpy"), **library_versions()}

    def prepare(self, folder: Path) -> None:
        """Write the prepared data into `folder`."""
        prepare_speech(folder, {split: self.utterances(split) for split in SPLITS}, self.config)

    def utterances(self, split: str) -> Iterator[Utterance]:
        """Yield the messages of `split` in order; no text comes twice, nor in another split.

        Raises:
            DataError: there are not enough different messages of the kind that is wanted.
        """
        seed = (self.config.seed, SPLITS.index(split))
        for index, transmission in enumerate(self.transmissions(split)):
            # Rounded up, the highest ratio would be in a subset of its own.
            wpm, snr_db = round(transmission.wpm, 2), math.floor(100 * transmission.snr_db) / 100
            name = f"{split}-{index} ({wpm:.0f} wpm at {transmission.tone_hz:.0f} Hz, {snr_db:.0f} dB)"
            load = partial(_hear, transmission, self.config.features.sample_rate, (*seed, index, _AUDIO))
            yield Utterance(f"{split}-{index}", transmission.text, name, load, {"snr_db": snr_db, "wpm": wpm})

    def transmissions(self, split: str) -> Iterator[Transmission]:
        """Yield what is sent, and how, in order; see `utterances`."""
        config = self.config
        levels = stratified(config.snr_db[0], config.snr_db[1], config.utterances[split])
        seen: set[str] = set()
        for index, level in enumerate(levels):
            rng = np.random.default_rng((config.seed, SPLITS.index(split), index, _PARAMETERS))
            drawn = (config.wpm, config.tone_hz, config.fading_db, config.fading_hz, config.silence, config.silence)
            wpm, tone_hz, fading_db, fading_hz, lead, tail = (float(rng.uniform(low, high)) for low, high in drawn)
            text = self._new_text(split, rng, wpm, config.max_seconds - lead - tail, seen)
            seen.add(text)
            yield Transmission(
                text=text,
                wpm=wpm,
                tone_hz=tone_hz,
                snr_db=float(level),
                jitter=config.jitter,
                fading_db=fading_db,
                fading_hz=fading_hz,
                lead_seconds=lead,
                tail_seconds=tail,
            )

    def _new_text(self, split: str, rng: np.random.Generator, wpm: float, seconds: float, seen: set[str]) -> str:
        """Return a message of `split` that is none of `seen`, and not longer than `seconds`."""
        config = self.config

        def fits(text: str) -> bool:
            return len(text) < config.max_target_tokens and message_seconds(text, wpm) <= seconds

        words = int(rng.integers(config.words[0], config.words[1], endpoint=True))
        for _ in range(_ATTEMPTS):
            text = draw_message(rng, words, config.random_words, config.punctuation, fits)
            if split_of(text) == split and text not in seen and fits(text):
                return text
        raise DataError(
            f"morse: only {len(seen)} of {config.utterances[split]} different {split} messages were found: there are "
            f"too few with random_words {config.random_words:g} and words from {config.words[0]} to {config.words[1]}"
        )


def stratified(low: float, high: float, count: int) -> npt.NDArray[np.float64]:
    """Return the middles of `count` equal parts of the range, in an order whose beginning is spread evenly, too."""
    order = np.argsort(np.argsort(np.arange(count) * _GOLDEN % 1))
    return np.asarray(low + (high - low) * (order + 0.5) / count)


def _hear(transmission: Transmission, sample_rate: int, seed: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return the audio of a message, the same each time."""
    return render(transmission, sample_rate, np.random.default_rng(seed))


TASK = Morse
