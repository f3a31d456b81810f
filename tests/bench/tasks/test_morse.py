"""Morse: the same messages for the same seed, no message in two splits, and audio that says what the examples say."""

import itertools
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.signal
from pydantic import ValidationError

from bench.errors import DataError
from bench.features import FeatureExtractor
from bench.morse_audio import Transmission, render
from bench.preparation import PreparedData, build_task
from bench.subsets import Subset
from bench.tasks.base import SPLITS, Example
from bench.tasks.morse import Morse, MorseConfig, MorseFeatures, stratified
from bench.tasks.registry import load_task
from models.interface import UNK
from tests.oracles import morse_decoder

SMALL: dict[str, Any] = {"train_utterances": 60, "dev_utterances": 10, "test_utterances": 20, "words": (1, 2)}
STEADY: dict[str, Any] = {"snr_db": (60, 60), "jitter": 0, "fading_db": (0, 0)}


def task(**config: Any) -> Morse:
    return Morse(MorseConfig(**{**SMALL, **config}))


def texts(split: str, **config: Any) -> list[str]:
    return [transmission.text for transmission in task(**config).transmissions(split)]


def prepare(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    task(**config).prepare(folder)
    return folder


class TestMessages:
    def test_no_text_comes_twice_or_in_two_splits(self) -> None:
        # One-word messages of which half are common words: 3000 free draws would repeat nearly all of the 506.
        config = {"words": (1, 1), "train_utterances": 3000, "dev_utterances": 200, "test_utterances": 500}
        found = {split: texts(split, **config) for split in SPLITS}
        assert [len(found[split]) for split in SPLITS] == [3000, 200, 500]
        everything = [text for split in SPLITS for text in found[split]]
        assert len(set(everything)) == len(everything)

    def test_no_message_of_one_seed_is_trained_on_with_another(self) -> None:
        tested = {text for seed in range(5) for text in texts("test", seed=seed, words=(1, 1))}
        trained = {text for seed in range(5) for text in texts("train", seed=seed, words=(1, 1))}
        assert not tested & trained

    @pytest.mark.parametrize("split", SPLITS)
    def test_the_seed_decides_and_nothing_else(self, split: str) -> None:
        def message(number: int, **config: Any) -> tuple[Any, np.ndarray]:
            utterance = list(task(**config).utterances(split))[number]
            return (utterance.id, utterance.text, utterance.tags), utterance.load()

        first, audio = message(7)
        again, audio_again = message(7)
        assert first == again
        np.testing.assert_array_equal(audio, audio_again)
        other, other_audio = message(7, seed=2)
        assert other[1:] != first[1:]
        assert len(other_audio) != len(audio) or not np.array_equal(other_audio, audio)

    def test_loading_in_any_order_gives_the_same_audio(self) -> None:
        utterances = list(task().utterances("dev"))
        backwards = [utterance.load() for utterance in reversed(utterances)]
        for utterance, audio in zip(utterances, reversed(backwards), strict=True):
            np.testing.assert_array_equal(utterance.load(), audio)

    def test_no_two_messages_have_the_same_noise(self) -> None:
        noise = {"silence": (2, 2), "snr_db": (-30, -30)}
        recordings = [utterance.load() for utterance in list(task(**noise).utterances("dev"))[:2]]
        recordings.append(next(task(**noise).utterances("test")).load())
        recordings.append(next(task(seed=2, **noise).utterances("dev")).load())
        for one, other in itertools.combinations([recording[:8000] for recording in recordings], 2):
            # Wherever one is laid against the other: independent noise gives about 4 / sqrt(8000) = 0.04 at most.
            alike = scipy.signal.correlate(one, other) / np.sqrt((one**2).sum() * (other**2).sum())
            assert np.abs(alike).max() < 0.1

    def test_a_larger_split_begins_with_the_smaller_ones_texts(self) -> None:
        assert texts("train", train_utterances=90)[:60] == texts("train")
        assert texts("test", train_utterances=90) == texts("test")

    def test_every_value_is_drawn_from_its_range(self) -> None:
        config = task(train_utterances=400, words=(1, 3)).config
        sent = list(Morse(config).transmissions("train"))
        for name in ("wpm", "tone_hz", "fading_db", "fading_hz"):
            low, high = getattr(config, name)
            values = np.array([getattr(transmission, name) for transmission in sent])
            assert low <= values.min() < values.max() <= high
            # The mean of 400 even draws is off by 1 / sqrt(12 * 400) = 1.4 % of the range; so are those of silences.
            assert values.mean() == pytest.approx((low + high) / 2, abs=0.06 * (high - low))
        silences = np.array([(transmission.lead_seconds, transmission.tail_seconds) for transmission in sent])
        assert 0.1 <= silences.min() < silences.max() <= 0.4
        assert abs(np.corrcoef(silences.T)[0, 1]) < 0.2
        words = [len(transmission.text.replace(" =", "").split()) for transmission in sent]
        assert {count: words.count(count) > 100 for count in (1, 2, 3)} == {1: True, 2: True, 3: True}
        assert {transmission.jitter for transmission in sent} == {0.1}

    def test_fixed_values(self) -> None:
        sent = list(task(wpm=(20, 20), tone_hz=(600, 600), words=(2, 2), punctuation=0, **STEADY).transmissions("dev"))
        assert {(t.wpm, t.tone_hz, t.snr_db, t.fading_db, t.text.count(" ")) for t in sent} == {(20, 600, 60, 0, 1)}

    def test_nothing_is_longer_than_max_seconds(self) -> None:
        # 8 words of 50 dots at 5 wpm would take 96 s.
        slow = task(wpm=(5, 10), words=(1, 8), max_seconds=15, random_words=1)
        lengths = [len(utterance.load()) / 4000 for utterance in slow.utterances("train")]
        assert 10 < max(lengths) <= 15

    def test_no_text_is_longer_than_max_target_tokens(self) -> None:
        assert 8 < max(map(len, texts("train", max_target_tokens=12, words=(3, 6)))) < 12

    def test_too_few_different_messages(self) -> None:
        with pytest.raises(
            DataError, match=r"morse: only \d+ of 400 different test messages were found: .*from 1 to 1"
        ):
            texts("test", test_utterances=400, words=(1, 1), random_words=0)


class TestStrata:
    @pytest.mark.parametrize("count", [1, 20, 500])
    def test_equal_parts_hold_equally_many(self, count: int) -> None:
        levels = stratified(-5, 20, count)
        np.testing.assert_allclose(np.sort(levels), -5 + 25 * (np.arange(count) + 0.5) / count)

    def test_beginnings_are_spread_evenly(self) -> None:
        for first in (25, 50, 100, 200):
            counts, _ = np.histogram(stratified(0, 1, 500)[:first], bins=5, range=(0, 1))
            assert counts.max() - counts.min() <= 2

    def test_the_splits_have_them(self) -> None:
        levels = [utterance.tags["snr_db"] for utterance in task().utterances("test")]
        counts, _ = np.histogram(levels, bins=5, range=(-5, 20))
        assert counts.tolist() == [4, 4, 4, 4, 4]


class TestPrepare:
    def test_prepared_audio_says_what_the_examples_say(self, tmp_path: Path) -> None:
        # Below 35 wpm a dot outlasts the decoder's filter four times; a text of dashes alone, it could not read.
        folder = prepare(tmp_path / "data", **STEADY)
        for split in ("dev", "test"):
            samples = np.load(folder / f"{split}.samples.npy")
            audio = np.split(np.load(folder / f"{split}.audio.npy"), np.cumsum(samples)[:-1])
            examples = PreparedData(folder).examples(split)
            assert len(examples) == len(audio) == task().config.utterances[split]
            for example, recording in zip(examples, audio, strict=True):
                assert morse_decoder.decode(recording.astype(np.float64), 4000) == example.target
                assert example.references == (example.target,)
                assert example.tags["seconds"] == len(recording) / 4000

    def test_examples_and_counts(self, tmp_path: Path) -> None:
        data = PreparedData(prepare(tmp_path / "data"))
        for split in SPLITS:
            expected = list(task().utterances(split))
            examples = data.examples(split)
            assert [(e.id, e.source, e.target) for e in examples] == [(u.id, u.name, u.text) for u in expected]
            for example, utterance in zip(examples, expected, strict=True):
                assert set(example.tags) == {"snr_db", "wpm", "seconds"}
                assert utterance.tags.items() <= example.tags.items()
            counts = data.counts["splits"][split]
            assert (counts["read"], counts["kept"]) == (len(expected), len(expected))
            assert sum(counts["dropped"].values()) == counts["tight"] == 0
        assert data.counts["num_features"] == 24
        assert data.counts["max_target_length"] == max(len(e.target) for split in SPLITS for e in data.examples(split))

    def test_same_seed_same_bytes(self, tmp_path: Path) -> None:
        small = {"train_utterances": 10, "dev_utterances": 3, "test_utterances": 3}
        folders = [prepare(tmp_path / name, seed=seed, **small) for name, seed in (("a", 3), ("b", 3), ("c", 4))]
        first, again, other = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
        assert first == again
        assert all(first[f"{split}.features.npy"] != other[f"{split}.features.npy"] for split in SPLITS)

    def test_a_usual_training_split_knows_every_character(self) -> None:
        known = set("".join(texts("train", train_utterances=3000)))
        assert len(known) == 26 + 10 + 5 + 1  # letters, digits, marks, the space

    def test_capital_letters(self, tmp_path: Path) -> None:
        data = PreparedData(prepare(tmp_path / "data", case="upper"))
        assert [e.target for e in data.examples("dev")] == [text.upper() for text in texts("dev")]
        assert all(UNK not in data.tokenizer.encode(e.target) for e in data.examples("train"))


class TestFeatures:
    @pytest.mark.parametrize("tone_hz", [400, 700, 1000])
    def test_a_window_fits_into_a_fast_gap(self, tone_hz: float) -> None:
        # Five dots at 35 wpm, 60 dB above the noise. A window that lies in a gap hears no more of the tone than its
        # edges; one that is a quarter longer would hear it 26 dB weaker at best.
        audio = render(Transmission("5", 35, tone_hz, 60), 4000, np.random.default_rng(0))
        level_db = 10 * np.log10(np.exp(FeatureExtractor(MorseFeatures())(audio).max(axis=1)))
        centres = 0.1 + (np.arange(9) + 0.5) * 1.2 / 35
        frame_at = np.rint(centres / 0.01 - 0.5).astype(int)  # frame i is centred on the middle of its shift
        dots, gaps = level_db[frame_at[::2]], level_db[frame_at[1::2]]
        assert dots.max() - dots.min() < 6
        assert dots.mean() - gaps.mean() > 30
        loud = level_db > dots.mean() - 20
        assert (loud[1:] & ~loud[:-1]).sum() == 5
        assert 3 * 5 <= loud.sum() <= 5 * 5  # each dot is in at least three frames of 10 ms

    @pytest.mark.parametrize("tone_hz", [400, 555, 812, 1000])
    def test_the_pitch_is_seen_in_its_bands(self, tone_hz: float) -> None:
        tone = 0.05 * np.sin(2 * np.pi * tone_hz * np.arange(4000) / 4000)
        bands = FeatureExtractor(MorseFeatures())(tone.astype(np.float32))[20:80].mean(axis=0)
        mel = 1127 * np.log1p(np.array([300, 1100, tone_hz]) / 700)
        position = (mel[2] - mel[0]) / (mel[1] - mel[0]) * 25 - 1
        assert bands.argmax() == pytest.approx(position, abs=1)

    def test_one_changed_option_leaves_the_others(self) -> None:
        features = MorseConfig(features={"num_mels": 16}).features
        assert (features.sample_rate, features.num_mels, features.low_freq, features.high_freq) == (4000, 16, 300, 1100)
        assert len(next(task(features={"sample_rate": 8000}, **STEADY).utterances("dev")).load()) == pytest.approx(
            2 * len(next(task(**STEADY).utterances("dev")).load()), abs=1
        )


class TestConfig:
    REFUSED: ClassVar[dict[str, tuple[dict[str, Any], str]]] = {
        "wpm falls": ({"wpm": (30, 20)}, "wpm must rise, got 30, 20"),
        "words fall": ({"words": (3, 2)}, "words must rise, got 3, 2"),
        "snr falls": ({"snr_db": (5, -5)}, "snr_db must rise, got 5, -5"),
        "silence falls": ({"silence": (0.4, 0.1)}, "silence must rise, got 0.4, 0.1"),
        "fading_db falls": ({"fading_db": (3, 1)}, "fading_db must rise, got 3, 1"),
        "fading_hz falls": ({"fading_hz": (3, 1)}, "fading_hz must rise, got 3, 1"),
        "tone falls": ({"tone_hz": (700, 600)}, "tone_hz must rise, got 700, 600"),
        "tone too low": ({"tone_hz": (200, 600)}, "tone_hz from 200 to 600 leaves the band .* from 300 to 1100 Hz"),
        "tone too high": ({"tone_hz": (400, 1200)}, "tone_hz from 400 to 1200 leaves"),
        "tone over nyquist": ({"tone_hz": (400, 2100), "features": {"high_freq": 0}}, "from 300 to 2000 Hz"),
        # 43 dots of 0.24 s, and twice 0.4 s of silence.
        "no room": ({"wpm": (5, 20), "max_seconds": 11}, "max_seconds 11 .* takes 11.1 seconds at 5 words per minute"),
        "few tokens": ({"max_target_tokens": 9}, "max_target_tokens 9 leaves no room"),
        "no speakers": ({"normalisation": "speaker"}, "normalisation 'speaker'"),
        "one end": ({"wpm": (20,)}, "at least 2 items"),
        "three ends": ({"wpm": (20, 25, 30)}, "at most 2 items"),
        "too slow": ({"wpm": (4, 20)}, "greater than or equal to 5"),
        "no word": ({"words": (0, 2)}, "greater than or equal to 1"),
        "much jitter": ({"jitter": 0.6}, "less than or equal to 0.5"),
        "share above one": ({"random_words": 1.5}, "less than or equal to 1"),
        "empty split": ({"train_utterances": 0}, "greater than or equal to 1"),
        "negative seed": ({"seed": -1}, "greater than or equal to 0"),
        "unknown option": ({"noise": 1}, "Extra inputs"),
    }

    @pytest.mark.parametrize(("config", "message"), REFUSED.values(), ids=REFUSED)
    def test_impossible_options_are_refused(self, config: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            MorseConfig(**config)

    def test_a_suite_may_write_lists(self) -> None:
        # As `bench.suite_problems` checks what stands in a suite: by JSON, strictly.
        written = {"snr_db": [0, 20], "words": [1, 2], "features": {"num_mels": 20}}
        config = MorseConfig.model_validate_json(json.dumps(written), strict=True)
        assert config == MorseConfig(snr_db=(0, 20), words=(1, 2), features=MorseFeatures(num_mels=20))
        assert MorseConfig(**json.loads(json.dumps(config.model_dump(mode="json")))) == config

    def test_the_registry_finds_the_task(self) -> None:
        assert load_task("morse") is Morse
        assert (Morse.modality, Morse.selection_metric, Morse.metrics[0]) == ("speech", "cer", "cer")
        assert {"numpy", "kaldi-native-fbank"} <= set(task().fingerprint())


def test_results_are_broken_down_by_five_decibels() -> None:
    def of(snr: float) -> str:
        return build_task("morse", {}).subset(Example("1", "", "", ("",), {"snr_db": snr}))

    assert [of(snr) for snr in (-5.0, -0.1, 0.0, 4.99, 5.0, 19.9)] == [
        "snr_db=-5..0", "snr_db=-5..0", "snr_db=0..5", "snr_db=0..5", "snr_db=5..10", "snr_db=15..20",
    ]  # fmt: skip
    assert {str(Subset.parse(of(snr))) for snr in (-12.3, 40.0)} == {"snr_db=-15..-10", "snr_db=40..45"}
