import json
import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from bench.errors import DataError
from bench.features import MIN_STD, FeatureExtractor, FeatureOptions, Normaliser
from tests.bench.recordings import noise, tone
from tests.oracles import filterbank

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "80-mels": {"num_mels": 80},
    "8-khz": {"sample_rate": 8000, "num_mels": 23, "low_freq": 100, "high_freq": 3800},
    "4-khz-narrow": {"sample_rate": 4000, "num_mels": 24, "frame_length_ms": 32, "low_freq": 300, "high_freq": 1100},
    "odd-sizes": {"sample_rate": 11_025, "frame_length_ms": 20, "frame_shift_ms": 7},
}


def extract(waveform: Any, **options: Any) -> Any:
    return FeatureExtractor(FeatureOptions(**options))(waveform)


class TestExtractor:
    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    @pytest.mark.parametrize("samples", [60, 399, 2500])
    def test_equals_kaldis_definition(self, options: dict[str, Any], samples: int) -> None:
        chosen = FeatureOptions(**options)
        waveform = noise(samples, seed=samples)
        features = FeatureExtractor(chosen)(waveform)
        expected = filterbank.log_mel(
            waveform,
            chosen.sample_rate,
            chosen.num_mels,
            chosen.frame_length_ms,
            chosen.frame_shift_ms,
            chosen.low_freq,
            chosen.high_freq or chosen.sample_rate / 2,
        )
        assert features.dtype == np.float32
        assert features.shape == expected.shape
        np.testing.assert_allclose(features, expected, atol=1e-3)

    @pytest.mark.parametrize(
        ("samples", "frames"), [(0, 0), (1, 0), (79, 0), (80, 1), (160, 1), (239, 1), (240, 2), (16_000, 100)]
    )
    def test_frames_are_samples_over_shift_rounded(self, samples: int, frames: int) -> None:
        assert extract(noise(samples, seed=1)).shape == (frames, 40)

    def test_a_tone_is_loudest_in_its_band(self) -> None:
        # 40 bands between 20 and 8000 Hz: corner i is at mel(20) + i * (mel(8000) - mel(20)) / 41, centre i at i + 1.
        step = (filterbank.mel(8000) - filterbank.mel(20)) / 41
        for hz in (300, 1000, 3000):
            nearest = round((filterbank.mel(hz) - filterbank.mel(20)) / step) - 1
            assert set(extract(tone(hz, 0.2))[5:-5].argmax(axis=1)) == {nearest}

    def test_twice_as_loud_is_log_4_more(self) -> None:
        waveform = noise(4000, seed=3)
        np.testing.assert_allclose(extract(2 * waveform) - extract(waveform), math.log(4), atol=1e-3)

    def test_silence_and_any_constant_is_the_floor(self) -> None:
        for level in (0.0, 0.3):
            silence = extract(np.full(1600, level, dtype=np.float32))
            np.testing.assert_allclose(silence, math.log(2**-23), rtol=1e-6)

    def test_same_audio_gives_same_features_and_is_left_alone(self) -> None:
        waveform = noise(4000, seed=4)
        before = waveform.copy()
        extractor = FeatureExtractor(FeatureOptions())
        np.testing.assert_array_equal(extractor(waveform), extractor(waveform))
        np.testing.assert_array_equal(waveform, before)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"high_freq": 8001}, "high_freq 8001 is more than 8000, half of sample_rate 16000"),
            ({"sample_rate": 8000, "high_freq": 5000}, "high_freq 5000 is more than 4000, half of sample_rate 8000"),
            ({"low_freq": 8000}, "low_freq 8000 is not below the upper edge, 8000"),
            ({"low_freq": 500, "high_freq": 400}, "low_freq 500 is not below the upper edge, 400"),
            ({"frame_shift_ms": 26}, "frame_shift_ms 26 is more than frame_length_ms 25"),
            ({"num_mels": 200}, "num_mels 200 is too many: with frames of 25 ms between 20 and 8000 Hz"),
            ({"num_mels": 0}, "num_mels"),
            ({"frame_shift_ms": 0}, "frame_shift_ms"),
            ({"sample_rate": 100}, "sample_rate"),
            ({"low_freq": -1}, "low_freq"),
            ({"window": "povey"}, "window"),
        ],
        ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
    )
    def test_impossible_ones_are_refused(self, options: dict[str, Any], problem: str) -> None:
        with pytest.raises(ValidationError, match=problem):
            FeatureOptions(**options)

    def test_limits_are_allowed(self) -> None:
        FeatureOptions(high_freq=8000, frame_shift_ms=25, low_freq=0)
        assert FeatureOptions(sample_rate=8000, frame_shift_ms=12.5).shift == 100


class TestNormaliser:
    def test_mean_and_deviation_are_those_of_all_frames(self) -> None:
        rng = np.random.default_rng(0)
        frames = rng.normal([-8, 0, 5000], [1, 3, 0.5], size=(1000, 3)).astype(np.float32)
        parts = [frames[:1], frames[1:1], frames[1:400], frames[400:]]
        normaliser = Normaliser.fit(iter(parts))
        np.testing.assert_allclose(normaliser.mean, frames.mean(axis=0, dtype=np.float64), rtol=1e-6)
        np.testing.assert_allclose(normaliser.std, frames.std(axis=0, dtype=np.float64), rtol=1e-5)
        result = normaliser(frames)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result.mean(axis=0), 0, atol=1e-3)
        np.testing.assert_allclose(result.std(axis=0), 1, atol=1e-3)

    def test_another_mean_takes_the_place_of_the_fitted_one(self) -> None:
        normaliser = Normaliser(mean=[1, 2], std=[2, 4])
        frames = np.array([[3, 10]], dtype=np.float32)
        np.testing.assert_array_equal(normaliser(frames), [[1, 2]])
        np.testing.assert_array_equal(normaliser(frames, [5, 2]), [[-1, 2]])

    def test_a_recordings_own_mean_hides_how_loud_it_is(self) -> None:
        shape = np.random.default_rng(1).normal(0, [1, 3], size=(500, 2)).astype(np.float32)
        loud, quiet = shape + 20, shape - 5
        normaliser = Normaliser.fit([loud, quiet], own_mean=True)
        np.testing.assert_allclose(normaliser.std, shape.std(axis=0), rtol=1e-4)
        np.testing.assert_allclose(normaliser(loud), normaliser(quiet), atol=1e-4)
        again = Normaliser.from_json(json.loads(json.dumps(normaliser.to_json())))
        np.testing.assert_array_equal(again(loud), normaliser(loud))
        assert normaliser(loud[:0]).shape == (0, 2)

    def test_a_constant_bin_is_not_blown_up(self) -> None:
        normaliser = Normaliser.fit([np.array([[7, 1], [7, 2]], dtype=np.float32)])
        assert normaliser.std[0] == np.float32(MIN_STD)
        np.testing.assert_array_equal(normaliser(np.array([[7, 1]], dtype=np.float32)), [[0, -1]])

    def test_survives_json_bit_by_bit(self) -> None:
        normaliser = Normaliser.fit([noise(300, seed=5).reshape(-1, 3)])
        again = Normaliser.from_json(json.loads(json.dumps(normaliser.to_json())))
        np.testing.assert_array_equal(again.mean, normaliser.mean)
        np.testing.assert_array_equal(again.std, normaliser.std)

    @pytest.mark.parametrize("parts", [[], [np.zeros((0, 3), dtype=np.float32)]], ids=["nothing", "no-frame"])
    def test_nothing_has_no_mean(self, parts: list[Any]) -> None:
        with pytest.raises(DataError, match="no frame"):
            Normaliser.fit(parts)
