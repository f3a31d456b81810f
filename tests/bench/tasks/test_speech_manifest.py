import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bench.errors import DataError
from bench.preparation import PreparedData, build_task
from bench.tasks.base import SPLITS
from bench.tasks.registry import load_task
from bench.tasks.speech_manifest import SpeechManifest, SpeechManifestConfig
from tests.bench.recordings import encode, noise, tone

COUNTS = {"train": 5, "dev": 2, "test": 3}
CONFIG = {f"{split}_manifest": f"data/{split}.jsonl" for split in SPLITS}
"""The manifests, as a suite names them."""


class Corpus:
    """Manifests with their recordings in `data/` of the current folder; tests alter the lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "wav").mkdir(parents=True)
        self.lines: dict[str, list[Any]] = {}
        for split, count in COUNTS.items():
            names = [f"wav/{split}{i}.wav" for i in range(count)]
            for seed, name in enumerate(names):
                (folder / name).write_bytes(encode(noise(3200 + 160 * seed, seed)))
            self.lines[split] = [{"audio": name, "text": f"Text {'abcde'[i]}"} for i, name in enumerate(names)]

    def write(self) -> None:
        for split, lines in self.lines.items():
            rows = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
            content = "".join(f"{row}\n" for row in rows)
            (self.folder / f"{split}.jsonl").write_text(content, encoding="utf-8", errors="surrogatepass")

    def task(self, **config: Any) -> SpeechManifest:
        self.write()
        return SpeechManifest(SpeechManifestConfig(**{**CONFIG, **config}))

    def prepare(self, **config: Any) -> PreparedData:
        folder = self.folder.parent / "out"
        folder.mkdir()
        self.task(**config).prepare(folder)
        return PreparedData(folder)

    def error(self, **config: Any) -> str:
        """Return the message with which preparation refuses, having left nothing behind."""
        with pytest.raises(DataError) as caught:
            self.prepare(**config)
        assert list((self.folder.parent / "out").iterdir()) == []
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.chdir(tmp_path)
    return Corpus(tmp_path / "data")


def test_is_found_by_its_name() -> None:
    assert load_task("speech_manifest") is SpeechManifest


def test_prepares_manifests_from_a_suites_config(corpus: Corpus, tmp_path: Path) -> None:
    corpus.lines["test"][1] |= {"speaker": "anna", "id": "anna-1"}
    corpus.write()
    folder = tmp_path / "out"
    folder.mkdir()
    build_task("speech_manifest", {**CONFIG, "features": {"num_mels": 20}}).prepare(folder)
    data = PreparedData(folder)
    assert [len(data.examples(split)) for split in SPLITS] == [5, 2, 3]
    first, second, _ = data.examples("test")
    assert (first.id, first.source, first.references) == ("test-1", "data/wav/test0.wav", ("text a",))
    assert (second.id, second.target, second.tags) == ("anna-1", "text b", {"seconds": 0.21, "speaker": "anna"})
    assert data.encode([first])[0].source.shape == (20, 20)  # type: ignore[union-attr]


def test_recordings_of_every_kind(corpus: Corpus) -> None:
    """8 kHz, 44.1 kHz, stereo, 24 bits, FLAC: all become one channel at the rate of the features."""
    kinds = {
        "wav/8000.wav": encode(tone(440, 0.3, 8000), 8000),
        "wav/44100.wav": encode(tone(440, 0.3, 44_100), 44_100),
        "wav/stereo.wav": encode([[x, x] for x in tone(440, 0.3)]),
        "wav/24.wav": encode(tone(440, 0.3), subtype="PCM_24"),
        "wav/x.flac": encode(tone(440, 0.3), kind="FLAC"),
    }
    for name, content in kinds.items():
        (corpus.folder / name).write_bytes(content)
    corpus.lines["test"] = [{"audio": name, "text": "text"} for name in kinds]
    data = corpus.prepare()
    examples = data.examples("test")
    assert [example.tags["seconds"] for example in examples] == [0.3] * 5
    for example in examples:
        waveform = data.waveform(example)
        assert abs(waveform[800:-800] - tone(440, 0.3)[800:-800]).max() < 5e-3


def test_relative_home_and_absolute_paths(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = corpus.task().fingerprint()
    monkeypatch.setenv("HOME", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for prefix in ("~", str(tmp_path)):
        assert corpus.task(**{split: f"{prefix}/{path}" for split, path in CONFIG.items()}).fingerprint() == here
    with pytest.raises(DataError, match=r"^data/train\.jsonl: no such file$"):
        corpus.task().fingerprint()


def test_recordings_by_absolute_path_and_from_home(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    corpus.lines["dev"][0]["audio"] = str(corpus.folder / "wav/dev0.wav")
    corpus.lines["dev"][1]["audio"] = "~/data/wav/dev1.wav"
    sources = [example.source for example in corpus.prepare().examples("dev")]
    assert sources == [str(corpus.folder / f"wav/dev{i}.wav") for i in range(2)]


def test_compressed_manifest_with_windows_line_ends(corpus: Corpus) -> None:
    corpus.write()
    content = (corpus.folder / "dev.jsonl").read_bytes().replace(b"\n", b"\r\n")
    (corpus.folder / "dev.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + content))
    assert len(corpus.prepare(dev_manifest="data/dev.jsonl.gz").examples("dev")) == 2


@pytest.mark.parametrize("split", SPLITS)
def test_fingerprint_is_of_manifests_and_recordings(corpus: Corpus, split: str) -> None:
    before = corpus.task().fingerprint()
    manifest = corpus.folder / f"{split}.jsonl"
    assert before["manifests"][split] == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert json.loads(json.dumps(before)) == before
    assert set(before) > {"manifests", "recordings", "libsndfile", "kaldi-native-fbank"}

    recording = corpus.folder / f"wav/{split}0.wav"
    recording.write_bytes(encode(noise(3200, seed=99)))
    other = corpus.task().fingerprint()
    assert other["recordings"][split] != before["recordings"][split]
    assert other["manifests"] == before["manifests"]

    corpus.lines[split][0]["text"] = "other"
    assert corpus.task().fingerprint()["manifests"][split] != before["manifests"][split]


@pytest.mark.parametrize("split", SPLITS)
def test_every_manifest_is_required(corpus: Corpus, split: str) -> None:
    with pytest.raises(ValidationError, match=split):
        SpeechManifestConfig(**{other: path for other, path in CONFIG.items() if other != f"{split}_manifest"})  # type: ignore[arg-type]
    corpus.write()
    (corpus.folder / f"{split}.jsonl").unlink()
    with pytest.raises(DataError, match=f"^data/{split}.jsonl: no such file$"):
        SpeechManifest(SpeechManifestConfig(**CONFIG)).prepare(corpus.folder)  # type: ignore[arg-type]


GOOD = {"audio": "wav/dev1.wav", "text": "good"}
BAD_LINES: dict[str, tuple[Any, str]] = {
    "no-json": ('{"audio": "x.wav"', "not JSON (Expecting ',' delimiter: line 1 column 18 (char 17))"),
    "empty": ("", "not JSON (Expecting value: line 1 column 1 (char 0))"),
    "list": ('["x.wav", "text"]', '\'["x.wav", "text"]\' is not a JSON object, such as {"audio": '),
    "no-audio": ({"text": "a"}, "the key 'audio' is missing"),
    "no-text": ({"audio": "wav/dev1.wav"}, "the key 'text' is missing"),
    "unknown": (
        {**GOOD, "speeker": "x"},
        "unknown key 'speeker'; did you mean 'speaker'? (allowed: audio, text, speaker, id)",
    ),
    "number": ({**GOOD, "text": 7}, "text must be text, not 7"),
    "null": ({**GOOD, "speaker": None}, "speaker must be text, not null"),
    "object": ({**GOOD, "audio": {"path": "x"}}, 'audio must be text, not {"path": "x"}'),
    "no-name": ({**GOOD, "id": " "}, "id is ' ', which names nothing"),
    "no-path": ({**GOOD, "audio": ""}, "audio is '', which names nothing"),
    "control": ({**GOOD, "audio": "wav/\0.wav"}, "audio is 'wav/\\x00.wav', which names nothing"),
    "surrogate": ('{"audio": "wav/dev1.wav", "text": "a", "id": "\\ud800"}', "id is '\\ud800', which names nothing"),
    "missing-file": ({**GOOD, "audio": "wav/nowhere.wav"}, "data/wav/nowhere.wav: no such file"),
    "folder": ({**GOOD, "audio": "wav"}, "data/wav: not a file"),
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("line", "problem"), BAD_LINES.values(), ids=BAD_LINES)
def test_bad_line_is_named_in_every_split(corpus: Corpus, line: Any, problem: str, split: str) -> None:
    corpus.lines[split][1] = line
    assert corpus.error().startswith(f"data/{split}.jsonl:2: {problem}")
    with pytest.raises(DataError) as caught:
        corpus.task().fingerprint()
    assert str(caught.value).startswith(f"data/{split}.jsonl:2: {problem}")


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "the file is empty"), (b"{}\n\xff", "invalid UTF-8 (byte 0xff")],
    ids=["empty", "latin-1"],
)
def test_bad_manifest(corpus: Corpus, content: bytes, problem: str) -> None:
    corpus.write()
    (corpus.folder / "broken.jsonl").write_bytes(content)
    message = corpus.error(dev_manifest="data/broken.jsonl")
    assert message.startswith("data/broken.jsonl")
    assert problem in message


def test_an_id_names_one_utterance(corpus: Corpus) -> None:
    corpus.lines["train"][0]["id"] = "same"
    corpus.lines["train"][3]["id"] = "same"
    with pytest.raises(DataError, match=r"^data/train.jsonl:4: the id 'same' is that of data/train.jsonl:1$"):
        corpus.task().fingerprint()
    del corpus.lines["train"][3]["id"]
    corpus.lines["test"][1]["id"] = "same"
    with pytest.raises(DataError, match=r"^data/test.jsonl:2: the id 'same' is that of data/train.jsonl:1$"):
        corpus.task().fingerprint()
    corpus.lines["test"][1]["id"] = "train-2"  # what the second line is called by default
    assert corpus.error() == "data/test.jsonl:2: the id 'train-2' is that of data/train.jsonl:2"


RECORDINGS = {
    "cut-wav": encode(noise(3200, 1))[:-100],
    "cut-flac": encode(noise(3200, 1), kind="FLAC")[:-100],
    "empty-file": b"",
    "no-sample": encode(noise(0, 1)),
    "text": b"not audio",
}


@pytest.mark.parametrize("content", RECORDINGS.values(), ids=RECORDINGS)
def test_bad_recording_is_listed_in_training_and_refused_elsewhere(corpus: Corpus, content: bytes) -> None:
    (corpus.folder / "wav/bad").write_bytes(content)
    corpus.lines["train"][1]["audio"] = "wav/bad"
    folder = corpus.folder.parent / "first"
    folder.mkdir()
    corpus.task().prepare(folder)
    train = PreparedData(folder).counts["splits"]["train"]
    assert (train["read"], train["kept"]) == (5, 4)
    (listed,) = train["dropped_utterances"]
    assert (listed["id"], listed["reason"]) == ("train-2", "unreadable")
    assert listed["problem"].startswith("data/train.jsonl:2: data/wav/bad: ")

    corpus.lines["dev"][1]["audio"] = "wav/bad"
    message = corpus.error()
    assert message.startswith("data/dev.jsonl:2: data/wav/bad: ")
    assert message.endswith(" (dev utterances are never dropped)")


def test_bad_transcript_names_its_line(corpus: Corpus) -> None:
    corpus.lines["test"][2]["text"] = " "
    assert corpus.error() == "data/test.jsonl:3: the transcript is empty (test utterances are never dropped)"
