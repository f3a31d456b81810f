"""Morse audio: a listener reads it, a ruler times it, a meter measures it."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import scipy.signal

from bench.morse_audio import (
    CODE,
    EDGE_SECONDS,
    LEVEL,
    Transmission,
    element_seconds,
    elements,
    message_seconds,
    render,
)
from tests.oracles import morse_decoder

RATE = 4000
CLEAN = Transmission("paris", wpm=20, tone_hz=700, snr_db=math.inf)


def hear(seed: int = 0, sample_rate: int = RATE, **changes: Any) -> np.ndarray:
    return render(dataclasses.replace(CLEAN, **changes), sample_rate, np.random.default_rng(seed))


def decibels(ratio: float) -> float:
    return 10 * math.log10(ratio)


class TestCode:
    def test_the_decoders_own_tree_has_the_same_code(self) -> None:
        assert {morse_decoder.character(signs): character for character, signs in CODE.items()} == {
            character: character for character in "abcdefghijklmnopqrstuvwxyz0123456789.,?/="
        }

    def test_elements_in_dots(self) -> None:
        # e is a dot, t a dash, a dot-dash: "e" 3 "t" 7 "a".
        assert elements("et a") == [1, 3, 3, 7, 1, 1, 3]
        assert elements("?") == [1, 1, 1, 1, 3, 1, 3, 1, 1, 1, 1]

    def test_a_word_of_paris_and_its_gap_take_fifty_dots(self) -> None:
        assert sum(elements("paris paris")) - sum(elements("paris")) == 50

    @pytest.mark.parametrize("wpm", [5, 20, 60])
    def test_speed_is_in_words_per_minute(self, wpm: int) -> None:
        minute = message_seconds(" ".join(["paris"] * wpm), wpm) + 7 * 1.2 / wpm  # the gap behind the last word
        assert minute == pytest.approx(60)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "single spaces"),
            ("a  b", "single spaces"),
            (" a", "single spaces"),
            ("a ", "single spaces"),
            ("añb", "'ñ' in 'añb' has no Morse code"),
            ("A", "'A' in 'A' has no Morse code; allowed: a b c"),
        ],
        ids=["nothing", "two spaces", "space before", "space behind", "foreign letter", "capital"],
    )
    def test_what_cannot_be_sent(self, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            elements(text)


class TestListening:
    @pytest.mark.parametrize("wpm", [8, 20, 35, 60])
    @pytest.mark.parametrize("tone_hz", [400, 612.3, 1000])
    def test_clean_audio_is_read_back(self, wpm: float, tone_hz: float) -> None:
        text = "the quick brown fox jumps over, lazy dogs = 12345 67890/p ok?."
        assert set(text) == {*CODE, " "}
        assert morse_decoder.decode(hear(text=text, wpm=wpm, tone_hz=tone_hz), RATE) == text


class TestTiming:
    def test_length_in_samples(self) -> None:
        # 43 dots of 60 ms between 0.5 s and 0.25 s.
        audio = hear(lead_seconds=0.5, tail_seconds=0.25)
        assert len(audio) == RATE * 0.5 + RATE * 43 * 0.06 + RATE * 0.25
        assert audio.dtype == np.float32

    def test_marks_stand_where_they_should(self) -> None:
        seconds = np.array(morse_decoder.runs(hear(text="et a"), RATE))
        np.testing.assert_allclose(seconds, np.array([1, 3, 3, 7, 1, 1, 3]) * 0.06, atol=0.002)
        strength = morse_decoder.envelope(hear(text="t", lead_seconds=0.3), RATE)
        start = np.flatnonzero(strength > 0.5 * strength.max())[0] / RATE
        assert start == pytest.approx(0.3, abs=0.002)

    @pytest.mark.parametrize("jitter", [0.05, 0.1, 0.3])
    def test_jitter_is_the_relative_standard_deviation(self, jitter: float) -> None:
        units = elements("paris " * 400 + "paris")
        seconds = element_seconds(units, 20, jitter, np.random.default_rng(1))
        relative = seconds / (np.array(units) * 0.06)
        # n = 401 * 28 - 1 elements; the standard error of a standard deviation is near 1 / sqrt(2n) = 0.7 %.
        assert len(units) == 401 * 28 - 1
        assert relative.std() == pytest.approx(jitter, rel=0.05)
        for marks in (relative[::2], relative[1::2]):  # key down, key up
            assert marks.std() == pytest.approx(jitter, rel=0.05)
            assert marks.mean() == pytest.approx(1, abs=0.01)
        assert seconds.min() > 0

    def test_jitter_leaves_the_speed_alone(self) -> None:
        units = elements("paris")
        for seed in range(5):
            seconds = element_seconds(units, 20, 0.3, np.random.default_rng(seed))
            assert seconds.sum() == pytest.approx(43 * 0.06)
            assert seconds.std() > 0
        assert len(hear(jitter=0.3)) == len(hear())

    def test_jitter_is_heard(self) -> None:
        steady = morse_decoder.runs(hear(), RATE)
        unsteady = np.array(morse_decoder.runs(hear(jitter=0.2), RATE)) / steady
        assert 0.1 < unsteady.std() < 0.3


class TestLevels:
    @pytest.mark.parametrize("sample_rate", [4000, 8000])
    @pytest.mark.parametrize("snr_db", [-5, 5, 20])
    def test_signal_to_noise_ratio_in_500_hz(self, snr_db: float, sample_rate: int) -> None:
        # "0" is five dashes; 100 of them give 60 s of key down, of which 20 ms at either end of a dash are left out.
        text = "0" * 100
        sent = {"text": text, "wpm": 30, "snr_db": snr_db, "tone_hz": 600}
        audio = hear(sample_rate=sample_rate, **sent).astype(np.float64)
        edges = 0.1 + np.concatenate([[0], np.cumsum(elements(text))]) * 0.04
        down = np.zeros(len(audio), dtype=bool)
        for start, end in edges.reshape(-1, 2):
            down[round((start + 0.02) * sample_rate) : round((end - 0.02) * sample_rate)] = True
        wave = np.exp(-2j * np.pi * 600 * np.arange(len(audio)) / sample_rate)
        amplitude = 2 * np.abs((audio * wave)[down].mean())
        frequencies, density = scipy.signal.welch(audio, sample_rate, nperseg=1024)
        noise = density[(frequencies > 1200) & (frequencies < 1900)].mean() * 500
        # Density from about 60 s x 700 Hz of independent values, amplitude from 60 s: each within a few hundredths of
        # a decibel, or a few tenths at -5 dB.
        assert decibels(amplitude**2 / 2 / noise) == pytest.approx(snr_db, abs=0.3)

    def test_noise_is_white_and_everywhere(self) -> None:
        audio = hear(text="e", snr_db=-20, lead_seconds=20)[: 19 * RATE]
        _, density = scipy.signal.welch(audio, RATE, nperseg=64, detrend=False)
        inner = density[1:-1]  # the ends of a spectrum count once, not twice
        assert decibels(inner.max() / inner.min()) < 1

    @pytest.mark.parametrize("snr_db", [-10, 0, 10, 40])
    def test_carrier_and_noise_have_a_set_level(self, snr_db: float) -> None:
        audio = hear(text="0" * 30, snr_db=snr_db, wpm=10)
        power = (audio.astype(np.float64) ** 2).mean()
        # Of 22 dots of a "0" and the gap behind it, 15 are key down; at 4 kHz there is four times the noise of 500 Hz.
        noise = 4 * 10 ** (-snr_db / 10)
        assert decibels(power / LEVEL**2) == pytest.approx(decibels((15 / 22 + noise) / (1 + noise)), abs=0.2)

    def test_the_deepest_fade_is_not_clipped(self) -> None:
        peaks = [
            np.abs(hear(seed, fading_db=20, fading_hz=5, snr_db=snr_db, text="tttee")).max()
            for seed in range(20)
            for snr_db in (-30, 0, 60)
        ]
        assert max(peaks) < 1

    def test_keying_does_not_click(self) -> None:
        audio = hear(text="paris " * 10 + "paris", wpm=40)
        frequencies, density = scipy.signal.welch(audio, RATE, nperseg=2048)
        far = np.abs(frequencies - 700) > 250
        # A tone that is switched at once has nearly 1 % of its power there (-21 dB).
        assert decibels(density[far].sum() / density.sum()) < -40

    def test_an_edge_is_a_raised_cosine_of_5_ms(self) -> None:
        # Many phases: the largest value that any of them takes at a sample is the envelope.
        heard = np.stack([hear(seed, text="t", wpm=10) for seed in range(400)])
        strength = np.abs(heard).max(axis=0) / np.abs(heard).max()
        middle, half = round(0.1 * RATE), round(EDGE_SECONDS / 2 * RATE)
        expected = (1 + np.sin(np.pi * (np.arange(-half, half) + 0.5) / (2 * half))) / 2
        np.testing.assert_allclose(strength[middle - half : middle + half], expected, atol=0.06)
        assert strength[: middle - half - 1].max() == 0
        assert strength[middle + half + 1 : middle + 10 * half].min() > 0.99


class TestFading:
    def test_depth_and_rate(self) -> None:
        # 40 s of dashes, faded at 0.25 Hz: ten periods of 4 s.
        audio = hear(text="0" * 45, wpm=30, fading_db=12, fading_hz=0.25)
        strength = morse_decoder.envelope(audio, RATE)
        peaks = np.array([part.max() for part in np.array_split(strength, len(strength) // (RATE // 4))])
        assert 20 * math.log10(peaks.max() / peaks.min()) == pytest.approx(12, abs=0.5)
        level = np.log(peaks) - np.log(peaks).mean()
        assert np.abs(np.fft.rfft(level)).argmax() == pytest.approx(len(audio) / RATE * 0.25, abs=0.6)

    def test_the_mean_power_of_the_tone_is_that_without_fading(self) -> None:
        for seed in range(5):
            faded = hear(seed, text="0" * 5, wpm=10, fading_db=20, fading_hz=0.15)
            steady = hear(seed, text="0" * 5, wpm=10)
            assert decibels((faded**2).mean() / (steady**2).mean()) == pytest.approx(0, abs=0.1)


def test_the_same_generator_gives_the_same_audio() -> None:
    noisy = {"snr_db": 3, "jitter": 0.1, "fading_db": 6}
    np.testing.assert_array_equal(hear(1, **noisy), hear(1, **noisy))
    assert not np.array_equal(hear(1, **noisy), hear(2, **noisy))
