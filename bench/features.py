"""Log-mel filterbanks of speech and their normalisation: what a model of speech reads.

A frame is the log energy in `num_mels` triangular bands, equally wide on the mel scale, of a windowed piece of the
waveform (kaldi-native-fbank, Kaldi's recipe: DC offset removed, pre-emphasis 0.97, Povey window, power spectrum of the
next power of two, floor at float32's epsilon). No dither is added, so that the same audio gives the same features.
Frame i is centred on (i + 1/2) shifts and sees the audio mirrored at its ends, so that there are round(samples / shift)
frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import kaldi_native_fbank as knf  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from bench.errors import DataError
from models.interface import Options

FloatArray = npt.NDArray[np.float32]

MIN_STD = 0.01
"""A bin that varies less than this is as good as constant, and is not scaled up into noise."""


class FeatureOptions(Options):
    """How a waveform becomes frames."""

    sample_rate: int = Field(16_000, ge=4000, le=96_000)
    """Samples a second: audio of another rate is resampled to it."""
    num_mels: int = Field(40, ge=1, le=512)
    """Mel bands, and so numbers in a frame."""
    frame_length_ms: float = Field(25.0, ge=1, le=1000)
    """Milliseconds of audio that a frame looks at."""
    frame_shift_ms: float = Field(10.0, ge=1, le=1000)
    """Milliseconds from one frame to the next; at most frame_length_ms."""
    low_freq: float = Field(20.0, ge=0)
    """Lower edge of the lowest band, in Hz."""
    high_freq: float = Field(0.0, ge=0)
    """Upper edge of the highest band, in Hz; 0 is half the sample rate, which is also the most."""

    @model_validator(mode="after")
    def _consistent(self) -> FeatureOptions:
        nyquist = self.sample_rate / 2
        upper = self.high_freq or nyquist
        if self.frame_shift_ms > self.frame_length_ms:
            raise ValueError(
                f"frame_shift_ms {self.frame_shift_ms:g} is more than frame_length_ms {self.frame_length_ms:g}: "
                "audio between frames would be lost"
            )
        if upper > nyquist:
            raise ValueError(f"high_freq {upper:g} is more than {nyquist:g}, half of sample_rate {self.sample_rate}")
        if self.low_freq >= upper:
            raise ValueError(f"low_freq {self.low_freq:g} is not below the upper edge, {upper:g}")
        try:
            _filterbank(self)
        except ValueError:
            raise ValueError(
                f"num_mels {self.num_mels} is too many: with frames of {self.frame_length_ms:g} ms between "
                f"{self.low_freq:g} and {upper:g} Hz some band would hold no frequency"
            ) from None
        return self

    @property
    def shift(self) -> int:
        """Samples from one frame to the next."""
        return int(self.sample_rate * self.frame_shift_ms / 1000)


class FeatureExtractor:
    """Turns waveforms into log-mel features."""

    def __init__(self, options: FeatureOptions) -> None:
        self.options = options

    def __call__(self, waveform: FloatArray) -> FloatArray:
        """Return the features [frames, num_mels] of `waveform` [samples], mono and at the options' sample rate.

        There are round(samples / shift) frames: none if the waveform is shorter than half a shift.
        """
        bank = _filterbank(self.options)
        bank.accept_waveform(self.options.sample_rate, waveform)
        bank.input_finished()
        frames = np.empty((bank.num_frames_ready, self.options.num_mels), dtype=np.float32)
        for i in range(len(frames)):
            frames[i] = bank.get_frame(i)
        return frames


class Normaliser:
    """Shifts and scales every bin so that the data it was fitted to has mean 0 and standard deviation 1."""

    def __init__(self, mean: npt.ArrayLike, std: npt.ArrayLike, own_mean: bool = False) -> None:
        self.mean = np.asarray(mean, dtype=np.float32)
        """[num_mels]."""
        self.std = np.asarray(std, dtype=np.float32)
        """[num_mels], at least `MIN_STD`."""
        self.own_mean = own_mean
        """Whether the mean of a recording's own frames is taken off, in place of `mean`."""

    @classmethod
    def fit(cls, features: Iterable[FloatArray], own_mean: bool = False) -> Normaliser:
        """Return the normaliser of all frames of `features`, arrays [frames, num_mels] that are read once.

        own_mean: take its own mean off each of the arrays, before the standard deviation is taken too.

        Raises:
            DataError: there is no frame.
        """
        count = 0
        mean: npt.NDArray[np.float64] = np.zeros(1)
        squares: npt.NDArray[np.float64] = np.zeros(1)  # sum of squared distances from the mean
        for frames in features:
            if not len(frames):
                continue
            part = frames - frames.mean(axis=0) if own_mean else frames
            # Chan et al. 1983: sums of squares would lose digits where the mean is far from 0.
            part_mean = part.mean(axis=0, dtype=np.float64)
            distance = part_mean - mean
            total = count + len(part)
            squares = squares + ((part - part_mean) ** 2).sum(axis=0) + distance**2 * (count * len(part) / total)
            mean = mean + distance * (len(part) / total)
            count = total
        if not count:
            raise DataError("no frame of features to take means from")
        return cls(mean, np.maximum(np.sqrt(squares / count), MIN_STD), own_mean)

    def __call__(self, features: FloatArray, mean: npt.ArrayLike | None = None) -> FloatArray:
        """Return `features` [frames, num_mels] normalised; `mean` [num_mels] stands in for the fitted mean if given."""
        if mean is None:
            mean = features.mean(axis=0) if self.own_mean and len(features) else self.mean
        shift = np.asarray(mean, dtype=np.float32)
        return np.asarray((features - shift) / self.std, dtype=np.float32)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable form, exact."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist(), "own_mean": self.own_mean}

    @classmethod
    def from_json(cls, description: dict[str, Any]) -> Normaliser:
        """Return the normaliser that `to_json` described."""
        return cls(description["mean"], description["std"], description["own_mean"])


def _filterbank(options: FeatureOptions) -> Any:
    """Return an empty extractor of kaldi-native-fbank.

    Raises:
        ValueError: a band holds no frequency.
    """
    settings = knf.FbankOptions()
    frames, mels = settings.frame_opts, settings.mel_opts
    frames.samp_freq = options.sample_rate
    frames.frame_length_ms = options.frame_length_ms
    frames.frame_shift_ms = options.frame_shift_ms
    frames.dither = 0.0
    frames.snip_edges = False
    mels.num_bins = options.num_mels
    mels.low_freq = options.low_freq
    mels.high_freq = options.high_freq
    return knf.OnlineFbank(settings)
