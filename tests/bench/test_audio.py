import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.audio import change_speed, from_pcm, read_audio, read_audio_bytes, to_pcm
from bench.errors import DataError
from tests.bench.recordings import encode, noise, tone

RATE = 16_000
PCM = (np.random.default_rng(1).uniform(-0.9, 0.9, 3000) * 32_768).astype(np.int16)
"""16-bit samples; their exact values are k / 32768."""


def error_of(data: bytes) -> str:
    with pytest.raises(DataError) as caught:
        read_audio_bytes(data, "speech/x", RATE)
    message = str(caught.value)
    assert message.startswith("speech/x: ")
    assert "\n" not in message
    return message.removeprefix("speech/x: ")


def announce(wav: bytes, size: int) -> bytes:
    """Return a WAV file of `encode` whose header announces another number of bytes of samples."""
    assert wav[36:40] == b"data"
    return wav[:40] + struct.pack("<I", size) + wav[44:]


class TestFormats:
    @pytest.mark.parametrize(
        ("kind", "subtype", "step"),
        [
            ("WAV", "PCM_16", 0.0),
            ("WAV", "PCM_24", 0.0),
            ("WAV", "PCM_32", 0.0),
            ("WAV", "FLOAT", 0.0),
            ("WAV", "DOUBLE", 0.0),
            ("WAVEX", "PCM_24", 0.0),
            ("FLAC", "PCM_16", 0.0),
            ("FLAC", "PCM_24", 0.0),
            ("WAV", "PCM_U8", 1 / 128),  # 8 bits hold the value only to the nearest step
            ("FLAC", "PCM_S8", 1 / 128),
        ],
    )
    def test_samples_are_what_was_written(self, kind: str, subtype: str, step: float) -> None:
        waveform = read_audio_bytes(encode(PCM / 32_768, RATE, kind, subtype), "x", RATE)
        assert (waveform.dtype, waveform.shape) == (np.float32, PCM.shape)
        np.testing.assert_allclose(waveform, PCM / 32_768, rtol=0, atol=step)

    def test_channels_are_averaged(self) -> None:
        left, right = tone(300, 0.1), tone(700, 0.1)
        stereo = read_audio_bytes(encode(np.stack([left, right], axis=1), subtype="FLOAT"), "x", RATE)
        np.testing.assert_allclose(stereo, (left + right) / 2, atol=1e-7)
        opposite = read_audio_bytes(encode(np.stack([left, -left, left], axis=1), subtype="FLOAT"), "x", RATE)
        np.testing.assert_allclose(opposite, left / 3, atol=1e-7)

    @pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
    @pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
    def test_a_tone_stays_the_same_tone_at_another_rate(self, rate: int, subtype: str) -> None:
        waveform = read_audio_bytes(encode(tone(440, 0.5, rate), rate, subtype=subtype), "x", RATE)
        assert len(waveform) == -(-round(0.5 * rate) * RATE // rate)
        inside = slice(800, -800)  # the filter rings at the ends
        np.testing.assert_allclose(waveform[inside], tone(440, 0.5)[: len(waveform)][inside], atol=5e-3)

    def test_frequencies_that_the_new_rate_cannot_hold_are_removed(self) -> None:
        waveform = read_audio_bytes(encode(tone(10_000, 0.5, 44_100), 44_100), "x", RATE)
        assert np.abs(waveform[800:-800]).max() < 5e-3  # of an amplitude of 0.5; folded back, it would be 6 kHz

    def test_a_file_is_read_as_its_bytes(self, tmp_path: Path) -> None:
        path = tmp_path / "any name"
        path.write_bytes(encode(PCM))
        np.testing.assert_array_equal(read_audio(path, RATE), PCM / 32_768)

    def test_overshoot_is_clipped(self) -> None:
        samples = np.array([0.5, 1.25, -1.25, 1.0, -1.0, 0.0], dtype=np.float32)
        np.testing.assert_array_equal(
            read_audio_bytes(encode(samples, subtype="FLOAT"), "x", RATE), samples.clip(-1, 1)
        )


class TestBadFiles:
    @pytest.mark.parametrize("missing", [1, 2, 1001, 5999, 6000], ids=lambda missing: f"-{missing}")
    def test_wav_cut_short(self, missing: int) -> None:
        problem = f"cut short: the header announces 6000 bytes of samples, {6000 - missing} are there"
        assert error_of(encode(PCM)[:-missing]) == problem

    def test_wav_cut_short_behind_another_chunk(self) -> None:
        wav = encode(PCM)
        extended = wav[:36] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + wav[36:]  # 3 bytes, padded to an even number
        np.testing.assert_array_equal(read_audio_bytes(extended, "x", RATE), PCM / 32_768)
        assert error_of(extended[:-2]) == "cut short: the header announces 6000 bytes of samples, 5998 are there"

    @pytest.mark.parametrize("keep", [0.02, 0.1, 0.5, 0.9, 1.0], ids=lambda keep: f"{keep:.0%}")
    def test_flac_cut_short(self, keep: float) -> None:
        flac = encode(noise(40_000, seed=2), kind="FLAC")
        assert error_of(flac[: int(len(flac) * keep) - 1]).startswith("damaged, cut short or no audio (")

    def test_flac_cut_between_two_of_its_frames(self) -> None:
        flac = encode(noise(40_000, seed=2), kind="FLAC")
        frames = [at for at in range(len(flac)) if flac.startswith(b"\xff\xf8", at)]
        assert len(frames) > 3
        for at in frames[1:]:
            assert "cut short" in error_of(flac[:at])

    def test_flac_with_a_flipped_bit(self) -> None:
        flac = bytearray(encode(PCM, kind="FLAC"))
        flac[len(flac) // 2] ^= 1
        assert error_of(bytes(flac)).startswith("damaged, ")

    @pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000], ids=["ffmpeg", "sox"])
    def test_wav_from_a_pipe_is_read_to_its_end(self, size: int) -> None:
        np.testing.assert_array_equal(read_audio_bytes(announce(encode(PCM), size), "x", RATE), PCM / 32_768)

    def test_flac_from_a_pipe_is_refused_as_such(self) -> None:
        flac = bytearray(encode(PCM, kind="FLAC"))
        flac[21] &= 0xF0  # the 36 bits that count the samples; 0 is "unknown"
        flac[22:26] = bytes(4)
        assert "does not say how long it is" in error_of(bytes(flac))

    @pytest.mark.parametrize(
        ("data", "problem"),
        [
            (b"", "the file is empty"),
            (encode(PCM[:0]), "no sample in it"),
            (announce(encode(PCM), 0), "no sample in it"),
            (b"some text, no audio\n" * 9, "damaged, cut short or no audio (Format not recognised)"),
            (encode(PCM)[:30], "damaged, cut short or no audio ("),
            (encode(PCM, kind="OGG", subtype="VORBIS"), "the format is OGG; allowed are WAV and FLAC"),
            (encode(PCM, kind="AIFF"), "the format is AIFF; allowed are WAV and FLAC"),
            (encode(PCM, rate=1), "the sample rate is 1 Hz; allowed are 4000 to 384000"),
            (encode([0.0, np.nan, np.inf], subtype="FLOAT"), "2 samples are NaN or infinite"),
            (encode(PCM.astype(np.float32), subtype="FLOAT"), f"samples reach {np.abs(PCM).max()}; allowed is -1 to 1"),
        ],
        ids=["empty", "zero-length", "says-0", "text", "half-a-header", "ogg", "aiff", "rate", "nan", "integers"],
    )
    def test_problem_is_named(self, data: bytes, problem: str) -> None:
        assert error_of(data).startswith(problem)

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=f"^{tmp_path / 'x.wav'}: no such file$"):
            read_audio(tmp_path / "x.wav", RATE)
        with pytest.raises(DataError, match=f"^{tmp_path}: cannot be read"):
            read_audio(tmp_path, RATE)


class TestPcm:
    def test_16_bits_survive_exactly(self) -> None:
        every = np.arange(-32_768, 32_768).astype(np.int16)
        np.testing.assert_array_equal(to_pcm(from_pcm(every)), every)
        assert from_pcm(every).dtype == np.float32
        np.testing.assert_array_equal(read_audio_bytes(encode(every), "x", RATE), from_pcm(every))

    @pytest.mark.parametrize(
        ("value", "expected"),
        [(1.0, 32_767), (-1.0, -32_768), (0.4 / 32_768, 0), (-0.6 / 32_768, -1), (0.5, 16_384)],
        ids=["highest", "lowest", "down", "up", "half"],
    )
    def test_nearest_value_within_the_range(self, value: float, expected: int) -> None:
        samples: Any = to_pcm(np.array([value], dtype=np.float32))
        assert (samples.dtype, samples.tolist()) == (np.int16, [expected])


class TestSpeed:
    @pytest.mark.parametrize("speed", [0.9, 1.1, 2.0])
    def test_a_tone_is_shorter_and_higher_by_the_factor(self, speed: float) -> None:
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)
        changed = change_speed(tone, speed)
        assert changed.dtype == np.float32
        assert len(changed) == pytest.approx(RATE / speed, abs=1)
        spectrum = np.abs(np.fft.rfft(changed * np.hanning(len(changed))))
        assert np.argmax(spectrum) * RATE / len(changed) == pytest.approx(440 * speed, abs=2)
        assert np.abs(changed).max() == pytest.approx(0.5, abs=0.05)
