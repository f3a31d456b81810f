"""Morse code as sound: the code of ITU-R M.1677-1 in PARIS timing, keyed without clicks, faded, in white noise.

A dot lasts 1.2 / wpm seconds, so that the word PARIS and the gap behind it (50 dots) are sent `wpm` times a minute. A
dash lasts 3 dots; gaps last 1 within a character, 3 between characters and 7 between words.

`snr_db` is what radio people quote for telegraphy: the power of the steady carrier (key down, edges apart, averaged
over the fading) against that of the noise in 500 Hz, the usual width of a receiver's filter for Morse. The noise is
white up to half the sampling rate, so at 4 kHz there is 6 dB more of it than in 500 Hz; in the 2500 Hz that weak-signal
software refers to, the same signal has 7 dB less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NOISE_BANDWIDTH_HZ = 500.0
"""The band in which the noise of `snr_db` is counted."""
EDGE_SECONDS = 0.005
"""Rise and fall of a keyed tone from 0 to its full amplitude: raised cosines, which do not click."""
LEVEL = 0.05
"""Root mean square of carrier and noise together (full scale is 1): no gain control, and room for every fade."""

CODE = {
    "a": ".-", "b": "-...", "c": "-.-.", "d": "-..", "e": ".", "f": "..-.", "g": "--.", "h": "....", "i": "..",
    "j": ".---", "k": "-.-", "l": ".-..", "m": "--", "n": "-.", "o": "---", "p": ".--.", "q": "--.-", "r": ".-.",
    "s": "...", "t": "-", "u": "..-", "v": "...-", "w": ".--", "x": "-..-", "y": "-.--", "z": "--..",
    "1": ".----", "2": "..---", "3": "...--", "4": "....-", "5": ".....",
    "6": "-....", "7": "--...", "8": "---..", "9": "----.", "0": "-----",
    ".": ".-.-.-", ",": "--..--", "?": "..--..", "/": "-..-.", "=": "-...-",
}  # fmt: skip
"""International Morse code: letters, digits and the marks that amateurs use most."""

FloatArray = npt.NDArray[np.float64]

_DOT, _DASH, _CHARACTER_GAP, _WORD_GAP = 1, 3, 3, 7
_UNITS = {
    character: [unit for sign in code for unit in (1, _DASH if sign == "-" else _DOT)][1:]
    for character, code in CODE.items()
}
"""For each character, its elements in dots: key down and key up in turns, down first and last."""


@dataclass(frozen=True)
class Transmission:
    """A message and how it arrives."""

    text: str
    """Characters of `CODE`, and single spaces between words."""
    wpm: float
    """Words per minute of the message as a whole, whatever its jitter."""
    tone_hz: float
    """Pitch of the tone."""
    snr_db: float
    """Signal-to-noise ratio in 500 Hz; see the module."""
    jitter: float = 0.0
    """Relative standard deviation of the duration of marks and gaps."""
    fading_db: float = 0.0
    """Level of the tone at its strongest over that at its weakest."""
    fading_hz: float = 0.1
    """How often it is strongest."""
    lead_seconds: float = 0.1
    """Noise before the first mark."""
    tail_seconds: float = 0.1
    """Noise after the last mark."""

    @property
    def seconds(self) -> float:
        """Duration with lead and tail; the audio has the whole samples of it."""
        return self.lead_seconds + message_seconds(self.text, self.wpm) + self.tail_seconds


def elements(text: str) -> list[int]:
    """Return the durations of `text` in dots: key down and key up in turns, down first and last.

    Raises:
        ValueError: `text` has a character without a code, or a space that is not between two words.
    """
    units: list[int] = []
    for word in text.split(" "):
        if not word:
            raise ValueError(f"words of {text!r} must be separated by single spaces, and there must be a word")
        units.append(_WORD_GAP)
        for character in word:
            if character not in _UNITS:
                raise ValueError(f"{character!r} in {text!r} has no Morse code; allowed: {' '.join(CODE)}")
            units += [*_UNITS[character], _CHARACTER_GAP]
        units.pop()
    return units[1:]


def message_seconds(text: str, wpm: float) -> float:
    """Return how long `text` takes at `wpm` words per minute, from its first mark to the end of its last."""
    return sum(elements(text)) * 1.2 / wpm


def element_seconds(units: Sequence[int], wpm: float, jitter: float, rng: np.random.Generator) -> FloatArray:
    """Return durations in seconds that scatter about `units` dots as an unsteady hand's do, and sum up as they should.

    Each is multiplied with a log-normal factor whose standard deviation is `jitter` of its mean; then all are scaled
    so that the message takes the time that its speed says.
    """
    nominal = np.asarray(units) * (1.2 / wpm)
    factors = np.exp(np.sqrt(np.log1p(jitter**2)) * rng.standard_normal(len(nominal)))
    seconds = nominal * factors
    return np.asarray(seconds * (nominal.sum() / seconds.sum()))


def render(transmission: Transmission, sample_rate: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return what a receiver hears: mono, well within -1 and 1, the same for the same state of `rng`.

    Raises:
        ValueError: the text cannot be sent (see `elements`).
    """
    seconds = element_seconds(elements(transmission.text), transmission.wpm, transmission.jitter, rng)
    edges = transmission.lead_seconds + np.concatenate([[0.0], np.cumsum(seconds)])
    key = _key(np.rint(edges * sample_rate).astype(np.int64), int(transmission.seconds * sample_rate))
    time = np.arange(len(key)) / sample_rate
    fading_phase, tone_phase = rng.uniform(0, 2 * np.pi, size=2)
    level_db = transmission.fading_db / 2 * np.sin(2 * np.pi * transmission.fading_hz * time + fading_phase)
    fade = 10 ** (level_db / 20)
    fade /= np.sqrt((key * fade**2).sum() / key.sum())
    tone = _shaped(key, sample_rate) * fade * np.sin(2 * np.pi * transmission.tone_hz * time + tone_phase)
    carrier_power = 0.5
    noise_power = carrier_power * 10 ** (-transmission.snr_db / 10) * (sample_rate / 2 / NOISE_BANDWIDTH_HZ)
    received = tone + np.sqrt(noise_power) * rng.standard_normal(len(key))
    return np.asarray(received * (LEVEL / np.sqrt(carrier_power + noise_power)), dtype=np.float32)


def _key(edges: npt.NDArray[np.int64], samples: int) -> FloatArray:
    """Return 1 where the key is down, else 0; it goes down and up in turns at the sample numbers `edges`."""
    changes = np.zeros(samples + 1)
    np.add.at(changes, edges[0::2], 1)
    np.add.at(changes, edges[1::2], -1)
    return np.cumsum(changes[:-1])


def _shaped(key: FloatArray, sample_rate: int) -> FloatArray:
    """Return `key` with raised-cosine edges, half-way up where it changes: a step smoothed by half a sine."""
    length = max(1, round(EDGE_SECONDS * sample_rate))
    window = np.sin(np.pi * (np.arange(length) + 0.5) / length)
    return np.convolve(key, window / window.sum(), mode="same")
