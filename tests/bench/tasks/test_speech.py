"""Preparation of speech: the folder that it leaves, and normalisation."""

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from bench.audio import from_pcm
from bench.features import FeatureExtractor, Normaliser
from bench.tasks.base import SPLITS
from bench.tasks.speech import SpeechOptions, Utterance, library_versions
from bench.tasks.utterances import REASONS
from tests.bench.recordings import noise, read_json
from tests.bench.utterances import SpeechCorpus, arrays, utterance


@pytest.fixture
def corpus(tmp_path: Path) -> SpeechCorpus:
    return SpeechCorpus(tmp_path)


class TestPreparedFolder:
    def test_files(self, corpus: SpeechCorpus) -> None:
        folder = corpus.prepare().folder
        both = {f"{split}.{end}" for split in SPLITS for end in ("jsonl", "features.npy", "frames.npy")}
        audio = {f"{split}.{end}" for split in ("dev", "test") for end in ("audio.npy", "samples.npy")}
        assert {p.name for p in folder.iterdir()} == both | audio | {"features.json", "data.json", "tokenizer.json"}

    def test_examples_are_the_utterances_in_order(self, corpus: SpeechCorpus) -> None:
        corpus.splits["test"][1] = utterance("e1", " CBA\u00a0 cba ", 1600, path="a/b.flac", tags={"speaker": "x"})
        first, second, _ = corpus.prepare().examples("test")
        assert (first.id, first.source, first.target, first.references) == ("e0", "e0.wav", "abc", ("abc",))
        assert (second.id, second.source, second.target) == ("e1", "a/b.flac", "cba cba")
        assert second.tags == {"speaker": "x", "seconds": 0.1}

    @pytest.mark.parametrize("split", SPLITS)
    def test_features_are_those_of_the_audio_normalised_as_in_training(self, corpus: SpeechCorpus, split: str) -> None:
        data = corpus.prepare(features={"num_mels": 20})
        frames = np.concatenate(corpus.raw("train", num_mels=20)).astype(np.float64)
        found = arrays(data, split, "features", "frames")
        for features, raw in zip(found, corpus.raw(split, num_mels=20), strict=True):
            assert features.dtype == np.float16
            np.testing.assert_allclose(features, (raw - frames.mean(axis=0)) / frames.std(axis=0), atol=2e-3)
        pairs = data.encode(data.examples(split))
        for pair, features in zip(pairs, found, strict=True):
            np.testing.assert_array_equal(pair.source, features)

    @pytest.mark.parametrize("split", ["dev", "test"])
    def test_stored_audio_gives_the_stored_features_bit_by_bit(self, corpus: SpeechCorpus, split: str) -> None:
        data = corpus.prepare()
        made_with = read_json(data.folder / "features.json")
        normalise = Normaliser.from_json(made_with["normaliser"])
        extract = FeatureExtractor(SpeechOptions(features=made_with["options"]).features)
        audio = arrays(data, split, "audio", "samples")
        for samples, features, given in zip(
            audio, arrays(data, split, "features", "frames"), corpus.splits[split], strict=True
        ):
            assert samples.dtype == np.int16
            np.testing.assert_allclose(from_pcm(samples), given.load(), atol=0.5 / 32_768)
            np.testing.assert_array_equal(normalise(extract(from_pcm(samples))).astype(np.float16), features)

    def test_description(self, corpus: SpeechCorpus) -> None:
        data = corpus.prepare(features={"sample_rate": 8000, "num_mels": 20, "frame_shift_ms": 12.5})
        counts = data.counts
        samples = {split: [len(u.load()) for u in corpus.splits[split]] for split in SPLITS}
        assert {key: counts[key] for key in ("modality", "num_features", "frame_shift_ms", "sample_rate")} == {
            "modality": "speech",
            "num_features": 20,
            "frame_shift_ms": 12.5,
            "sample_rate": 8000,
        }
        assert counts["max_source_length"] == round(max(max(samples.values())) / 100)  # 12.5 ms are 100 samples
        assert counts["max_target_length"] == len("abc cab")
        assert counts["vocabulary_size"] == data.tokenizer.size
        assert counts["splits"]["train"] == {
            "read": 4,
            "kept": 4,
            "dropped": dict.fromkeys(REASONS, 0),
            "dropped_utterances": [],
            "seconds": pytest.approx(sum(samples["train"]) / 8000),
            "target_tokens": len("abc cab" + "bca" + "a b c" + "ccb a"),
            "unknown_characters": 0,
            "tight": 0,
        }
        assert data.data_spec.num_features == 20

    def test_no_two_recordings_are_in_memory(self, corpus: SpeechCorpus) -> None:
        loaded: list[Any] = []

        def load(number: int) -> Any:
            assert all(reference() is None for reference in loaded)
            waveform = noise(4000, number)
            loaded.append(weakref.ref(waveform))
            return waveform

        def stream() -> Iterator[Utterance]:
            for number in range(5):
                yield Utterance(f"s{number}", "abc", f"s{number}.wav", lambda number=number: load(number))

        corpus.splits["train"] = stream()  # type: ignore[assignment]
        corpus.prepare()
        assert len(loaded) == 5

    def test_is_reproducible_and_heeds_nothing_that_a_killed_run_left(self, corpus: SpeechCorpus) -> None:
        (corpus.folder / "second" / "scratch" / "ready").mkdir(parents=True)
        (corpus.folder / "second" / "scratch" / "ready" / "stale.npy").write_bytes(b"stale")
        contents = [
            {path.name: path.read_bytes() for path in corpus.prepare(name).folder.iterdir()}
            for name in ("first", "second")
        ]
        assert contents[0] == contents[1]

    @pytest.mark.parametrize("split", SPLITS)
    def test_only_the_training_split_is_learned_from(self, corpus: SpeechCorpus, split: str) -> None:
        before = corpus.prepare("before").folder
        corpus.splits[split][0] = utterance("new", "xyz", seed=99)
        after = corpus.prepare("after").folder
        for name in ("tokenizer.json", "features.json"):
            assert ((before / name).read_bytes() != (after / name).read_bytes()) == (split == "train")


class TestNormalisation:
    @pytest.fixture
    def speakers(self, corpus: SpeechCorpus) -> SpeechCorpus:
        """Speakers of their own loudness; anna is in two splits."""
        for split, names in {"train": "anna bert anna bert", "dev": "carl anna", "test": "dora emil dora"}.items():
            corpus.splits[split] = [
                utterance(f"{split}{i}", "abc", 3200 + 160 * i, seed=i, tags={"speaker": name})
                for i, name in enumerate(names.split())
            ]
        return corpus

    def test_none(self, speakers: SpeechCorpus) -> None:
        data = speakers.prepare(normalisation="none")
        for split in SPLITS:
            for features, raw in zip(arrays(data, split, "features", "frames"), speakers.raw(split), strict=True):
                np.testing.assert_array_equal(features, raw.astype(np.float16))
        assert read_json(data.folder / "features.json")["normaliser"] is None

    def test_speakers_mean_of_the_split_and_scale_of_the_training_split(self, speakers: SpeechCorpus) -> None:
        data = speakers.prepare(normalisation="speaker")
        scale = np.concatenate(speakers.raw("train")).std(axis=0)
        for split in SPLITS:
            names = [u.tags["speaker"] for u in speakers.splits[split]]
            raw = speakers.raw(split)
            for name, features, own in zip(names, arrays(data, split, "features", "frames"), raw, strict=True):
                mean = np.concatenate([r for r, other in zip(raw, names, strict=True) if other == name]).mean(axis=0)
                np.testing.assert_allclose(features, (own - mean) / scale, atol=3e-3)
                stored = read_json(data.folder / "features.json")["speakers"][split][name]
                np.testing.assert_allclose(stored, mean, rtol=1e-5)

    def test_each_recordings_own_mean_and_the_scale_around_it(self, corpus: SpeechCorpus) -> None:
        data = corpus.prepare(normalisation="utterance")
        scale = np.concatenate([raw - raw.mean(axis=0) for raw in corpus.raw("train")]).std(axis=0)
        for split in SPLITS:
            for features, raw in zip(arrays(data, split, "features", "frames"), corpus.raw(split), strict=True):
                np.testing.assert_allclose(features, (raw - raw.mean(axis=0)) / scale, atol=3e-3)
        example = data.examples("test")[0]  # as it is done again while it is timed
        expected = next(iter(arrays(data, "test", "features", "frames")))
        np.testing.assert_allclose(data.extractor(data.waveform(example)), expected, atol=3e-3)

    @pytest.mark.parametrize("split", SPLITS)
    def test_an_utterance_without_speaker_is_refused(self, speakers: SpeechCorpus, split: str) -> None:
        speakers.splits[split][1] = utterance("nobody", "abc", place="list.jsonl:2")
        problem = "list.jsonl:2: no speaker is named, as normalisation: speaker needs"
        assert speakers.error(normalisation="speaker") == problem


class TestSpeeds:
    def test_training_has_each_recording_at_each_speed_and_the_other_splits_once(self, corpus: SpeechCorpus) -> None:
        data = corpus.prepare(speeds=[1, 0.9, 1.1])
        examples = data.examples("train")
        assert [e.id for e in examples][:4] == ["t0", "t0@0.9", "t0@1.1", "t1"]
        assert [e.source for e in examples][:3] == ["t0.wav", "t0.wav@0.9", "t0.wav@1.1"]
        assert [e.target for e in examples] == [t for t in ("abc cab", "bca", "a b c", "ccb a") for _ in range(3)]
        frames = np.load(data.folder / "train.frames.npy").reshape(4, 3)
        np.testing.assert_allclose(frames[:, 1] / frames[:, 0], 1 / 0.9, rtol=0.03)
        np.testing.assert_allclose(frames[:, 2] / frames[:, 0], 1 / 1.1, rtol=0.03)
        assert {split: data.counts["splits"][split]["kept"] for split in SPLITS} == {"train": 12, "dev": 2, "test": 3}

    def test_a_recording_that_gets_too_long_is_dropped_at_that_speed_alone(self, corpus: SpeechCorpus) -> None:
        seconds = [len(u.load()) / 16_000 for u in corpus.splits["train"]]
        data = corpus.prepare(speeds=[1, 0.8], max_seconds=max(seconds) + 0.01)
        train = data.counts["splits"]["train"]
        longer = [f"t{i}@0.8" for i, s in enumerate(seconds) if s / 0.8 > max(seconds) + 0.01]
        assert [d["id"] for d in train["dropped_utterances"]] == longer
        assert 0 < train["dropped"]["too_long"] == len(longer) < 4

    def test_an_id_that_a_speed_gives_to_another_recording_is_refused(self, corpus: SpeechCorpus) -> None:
        corpus.splits["train"][1] = utterance("t0@0.9", "bca", seed=1)
        assert "the id 't0@0.9' comes twice" in corpus.error(speeds=[1, 0.9])

    @pytest.mark.parametrize(
        ("speeds", "problem"),
        [
            ([], "at least 1 item"),
            ([1, 1.004], "at most two decimals, and 1.004 has more"),
            ([1, 0.3], "greater than or equal to 0.5"),
            ([1, 1.0], "speeds must differ, got 1, 1"),
        ],
        ids=["none", "too-fine", "too-slow", "twice"],
    )
    def test_bad_speeds(self, speeds: list[float], problem: str) -> None:
        with pytest.raises(ValidationError, match=problem):
            SpeechOptions(speeds=tuple(speeds))


def test_vocab_size_is_of_subwords() -> None:
    with pytest.raises(ValidationError, match="vocab_size 300 is for units: subwords"):
        SpeechOptions(vocab_size=300)
    assert SpeechOptions(**SpeechOptions(units="subwords", vocab_size=300).model_dump()).vocab_size == 300
    SpeechOptions(**SpeechOptions().model_dump())


def test_versions_of_all_that_makes_features_and_text() -> None:
    versions = library_versions()
    assert set(versions) == {"kaldi-native-fbank", "libsndfile", "scipy", "sentencepiece", "unicode"}
    assert json.loads(json.dumps(versions)) == versions
