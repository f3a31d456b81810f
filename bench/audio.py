"""Reads recordings: WAV and FLAC of any rate, width and number of channels, as one channel at the rate that is wanted.

What happens to audio that is not as it should be:

    missing, unreadable, undecodable file, or another format          DataError
    cut short: fewer samples than the header announces                DataError, for WAV too, where libsndfile is silent
    no sample, NaN or infinity, float samples far beyond [-1, 1]      DataError
    float samples a little beyond [-1, 1], overshoot of resampling    clipped
    WAV whose header does not know the length, as it was streamed     read to its end
    FLAC of that kind                                                 DataError: libsndfile takes its end for damage
"""

from __future__ import annotations

import io
import math
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile  # type: ignore[import-untyped]

from bench.errors import DataError

FORMATS = {"WAV": "WAV", "WAVEX": "WAV", "FLAC": "FLAC"}
"""Formats that are read, by libsndfile's names."""
SAMPLE_RATES = (4000, 384_000)
"""Lowest and highest rate of a recording; what a header says beyond them is damage."""
MAX_PEAK = 2.0
"""Float samples up to here are taken for overshoot, beyond for another scale (that of integers, for instance)."""

_BLOCK = 1 << 16
_UNKNOWN_BYTES = 0x7FFFF000
"""From here on, the number of bytes in a WAV header stands for "until the end": what writers to a pipe put there."""
_UNKNOWN_FRAMES = 1 << 36
"""FLAC's header has 36 bits for the number of samples; libsndfile reports an unknown one as more than that."""
_PCM_SCALE = 32_768


def read_audio(path: Path, sample_rate: int) -> npt.NDArray[np.float32]:
    """Return the waveform [samples] of a file: mono, at `sample_rate`, in [-1, 1].

    Raises:
        DataError: the file cannot be used (see above), naming it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return read_audio_bytes(data, str(path), sample_rate)


def read_audio_bytes(data: bytes, name: str, sample_rate: int) -> npt.NDArray[np.float32]:
    """Return the waveform of `data`, the bytes of a WAV or FLAC file that errors call `name`; see `read_audio`."""
    if not data:
        raise DataError(f"{name}: the file is empty")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            samples, rate = _samples(file, data, name), int(file.samplerate)
    except soundfile.LibsndfileError as error:
        reason = " ".join(error.error_string.split()).removeprefix("Error : ").rstrip(".")
        raise DataError(f"{name}: damaged, cut short or no audio ({reason})") from error
    waveform: npt.NDArray[np.float32] = _checked(samples, name).mean(axis=1)
    if rate != sample_rate:
        from scipy.signal import resample_poly  # type: ignore[import-untyped]

        common = math.gcd(rate, sample_rate)
        waveform = resample_poly(waveform, sample_rate // common, rate // common)
    return np.clip(waveform, -1, 1).astype(np.float32, copy=False)


def change_speed(waveform: npt.NDArray[np.float32], speed: float) -> npt.NDArray[np.float32]:
    """Return `waveform` played `speed` times as fast, at the same sample rate: tempo and pitch change alike."""
    from scipy.signal import resample_poly

    ratio = Fraction(speed).limit_denominator(100)
    changed: npt.NDArray[np.float32] = resample_poly(waveform, ratio.denominator, ratio.numerator)
    return np.clip(changed, -1, 1).astype(np.float32, copy=False)


def to_pcm(waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    """Return `waveform` as 16-bit samples, the nearest ones."""
    return np.clip(np.rint(waveform * _PCM_SCALE), -_PCM_SCALE, _PCM_SCALE - 1).astype(np.int16)


def from_pcm(samples: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """Return the waveform in [-1, 1) of 16-bit samples, exactly."""
    return samples.astype(np.float32) / np.float32(_PCM_SCALE)


def _samples(file: soundfile.SoundFile, data: bytes, name: str) -> npt.NDArray[np.float32]:
    """Return all samples [samples, channels] of an open file.

    Raises:
        DataError: it is of another format, its rate is absurd, or it has fewer samples than its header says.
    """
    kind = FORMATS.get(file.format)
    if kind is None:
        raise DataError(f"{name}: the format is {file.format}; allowed are WAV and FLAC")
    lowest, highest = SAMPLE_RATES
    if not lowest <= file.samplerate <= highest:
        raise DataError(f"{name}: the sample rate is {file.samplerate} Hz; allowed are {lowest} to {highest}")
    if kind == "WAV":
        announced, found = _wav_bytes(data)
        if found < announced < _UNKNOWN_BYTES:
            raise DataError(f"{name}: cut short: the header announces {announced} bytes of samples, {found} are there")
    if kind == "FLAC" and file.frames >= _UNKNOWN_FRAMES:
        raise DataError(f"{name}: a streamed FLAC file, whose header does not say how long it is; encode it again")
    blocks = []  # not at once: a damaged header can announce any number
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block)
    if not blocks:
        raise DataError(f"{name}: no sample in it")
    return np.concatenate(blocks)


def _checked(samples: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
    """Return `samples`; raise DataError if they are no numbers, or on another scale than [-1, 1]."""
    peak = float(np.abs(samples).max())
    if not math.isfinite(peak):
        raise DataError(f"{name}: {np.count_nonzero(~np.isfinite(samples))} samples are NaN or infinite")
    if peak > MAX_PEAK:
        raise DataError(f"{name}: samples reach {peak:g}; allowed is -1 to 1 (up to {MAX_PEAK:g} is clipped)")
    return samples


def _wav_bytes(data: bytes) -> tuple[int, int]:
    """Return how many bytes of samples the header of a WAV file announces, and how many there are.

    libsndfile corrects the header of a file that is too short, so that nothing of it shows.
    """
    number = struct.Struct(">I" if data.startswith(b"RIFX") else "<I")
    position = 12
    while position + 8 <= len(data):
        (size,) = number.unpack_from(data, position + 4)
        if data[position : position + 4] == b"data":
            return size, len(data) - position - 8
        position += 8 + size + size % 2
    return 0, 0
