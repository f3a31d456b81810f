import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.errors import DataError
from bench.preparation import PreparedData, build_task
from bench.tasks import an4
from bench.tasks.an4 import An4, An4Config
from bench.tasks.base import SPLITS
from bench.tasks.registry import load_task
from tests.bench.recordings import encode, noise

WOMEN, MEN = [f"f{i:02}" for i in range(6)], [f"m{i:02}" for i in range(9)]
"""Training speakers: in alphabetical order the fifth and the fifteenth are f04 and m08."""
TEXTS = ["YES", "A B C", "ENTER SIX"]


class Corpus:
    """The files of a small AN4, which tests alter before they pack them."""

    def __init__(self, kind: str) -> None:
        stems = {
            "train": [f"an4_clstk/{speaker}/an{i}-{speaker}-b" for speaker in [*MEN, *WOMEN] for i in range(3)],
            "test": [f"an4test_clstk/mzzz/cen{i}-mzzz-b" for i in range(3)],
        }
        self.files: dict[str, bytes] = {"README.md": b"Census", "etc/an4.dic": b"A  AH\n"}
        for split, opening, closing in (("train", "<s> ", " </s>"), ("test", "", "")):
            lines = [f"{opening}{TEXTS[i % 3]}{closing} ({stem.split('/')[-1]})" for i, stem in enumerate(stems[split])]
            self.files[f"etc/an4_{split}.fileids"] = "".join(f"{stem}\n" for stem in stems[split]).encode()
            self.files[f"etc/an4_{split}.transcription"] = "".join(f"{line}\n" for line in lines).encode()
        for number, stem in enumerate([*stems["train"], *stems["test"]]):
            samples = (noise(1600 + 160 * number, number) * 32_768).astype(np.int16)
            self.files[f"wav/{stem}.{kind.lower()}"] = encode(samples, kind=kind)

    def edit(self, name: str, old: str, new: str) -> None:
        content = self.files[name].decode()
        assert old in content
        self.files[name] = content.replace(old, new, 1).encode()

    def pack(self, compression: str) -> bytes:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode=f"w:{compression}") as archive:  # type: ignore[call-overload]
            for name, content in self.files.items():
                member = tarfile.TarInfo(f"an4-commit/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return packed.getvalue()


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Corpus], Path]:
    """Return what packs a corpus of WAV as upstream does, one of FLAC as the local copy is; any download fails."""
    folder = tmp_path / "data" / "an4"
    folder.mkdir(parents=True)
    monkeypatch.setenv("NATBENCH_DATA", str(folder.parent))
    monkeypatch.setattr(an4, "URL", "file:///no/such/folder/archive")
    monkeypatch.setattr(an4, "UTTERANCES", {"train": 45, "test": 3})

    def write(corpus: Corpus) -> Path:
        is_flac = any(name.endswith(".flac") for name in corpus.files)
        path = folder / (an4.FLAC if is_flac else an4.UPSTREAM)
        path.write_bytes(corpus.pack("" if is_flac else "gz"))
        if is_flac:
            monkeypatch.setattr(an4, "SHA256", {an4.FLAC: hashlib.sha256(path.read_bytes()).hexdigest()})
        return path

    return write


def prepare(folder: Path, **config: Any) -> PreparedData:
    folder.mkdir()
    build_task("an4", config).prepare(folder)
    return PreparedData(folder)


def error(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        prepare(folder)
    assert list(folder.iterdir()) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_is_found_by_its_name_and_reads_80_bands() -> None:
    assert load_task("an4") is An4
    assert An4Config().features.num_mels == 80
    assert build_task("an4", {"features": {"frame_shift_ms": 12}}).config.features.num_mels == 80
    assert (An4.metrics[:3], An4.selection_metric, An4.modality) == (("wer", "cer", "ser"), "cer", "speech")


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_splits(put: Callable[[Corpus], Path], tmp_path: Path, kind: str) -> None:
    put(Corpus(kind))
    data = prepare(tmp_path / "out")
    speakers = {split: {str(e.tags["speaker"]) for e in data.examples(split)} for split in SPLITS}
    assert speakers["dev"] == {"f04", "m08"}
    assert speakers["train"] == {*WOMEN, *MEN} - speakers["dev"]
    assert speakers["test"] == {"mzzz"}
    assert [len(data.examples(split)) for split in SPLITS] == [39, 6, 3]
    assert [e.references for e in data.examples("test")] == [("yes",), ("a b c",), ("enter six",)]
    first = data.examples("train")[0]
    assert (first.id, first.source, first.target) == ("an0-m00-b", "an4_clstk/m00/an0-m00-b", "yes")
    assert first.tags == {"speaker": "m00", "seconds": 0.1}
    assert data.tokenizer.decode(data.encode([first])[0].target) == "yes"
    assert data.counts["num_features"] == 80
    assert len(data.encode([first])[0].source) == 10  # 0.1 s of frames every 10 ms


def test_wav_and_flac_give_the_same(put: Callable[[Corpus], Path], tmp_path: Path) -> None:
    contents = []
    for kind in ("WAV", "FLAC"):
        put(Corpus(kind))
        folder = prepare(tmp_path / kind).folder
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]


def test_options_of_speech(put: Callable[[Corpus], Path], tmp_path: Path) -> None:
    put(Corpus("FLAC"))
    data = prepare(tmp_path / "out", units="subwords", vocab_size=280, case="upper", normalisation="speaker")
    assert data.examples("test")[2].target == "ENTER SIX"
    assert len(data.tokenizer.encode("ENTER SIX")) < len("ENTER SIX")


def test_flac_is_taken_if_both_are_there(put: Callable[[Corpus], Path]) -> None:
    upstream, flac = put(Corpus("WAV")), put(Corpus("FLAC"))
    assert An4(An4Config()).fingerprint()["archive"] == hashlib.sha256(flac.read_bytes()).hexdigest()
    flac.unlink()
    assert An4(An4Config()).fingerprint()["archive"] == hashlib.sha256(upstream.read_bytes()).hexdigest()
    assert set(An4(An4Config()).fingerprint()) > {"archive", "libsndfile", "kaldi-native-fbank"}


def test_missing_archive_names_url_folder_and_variable(put: Callable[[Corpus], Path], tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        An4(An4Config()).fingerprint()
    for part in ("file:///no/such/folder/archive", str(tmp_path / "data" / "an4"), "NATBENCH_DATA", an4.UPSTREAM):
        assert part in str(caught.value)


def test_damaged_archives_are_refused(put: Callable[[Corpus], Path], tmp_path: Path) -> None:
    upstream, whole = put(Corpus("WAV")), Corpus("WAV").pack("gz")
    upstream.write_bytes(whole[: len(whole) // 2])
    assert "not an intact gzip file" in error(tmp_path / "cut")
    with_half = Corpus("WAV").pack("")
    upstream.write_bytes(with_half[: len(with_half) // 2])
    assert "not an intact gzip file" in error(tmp_path / "not gzip")
    flac = put(Corpus("FLAC"))
    flac.write_bytes(flac.read_bytes() + b"x")
    assert f"{flac} is damaged or another version: expected SHA-256" in error(tmp_path / "other")


def test_a_gzip_file_that_is_no_archive_is_refused(put: Callable[[Corpus], Path], tmp_path: Path) -> None:
    path = put(Corpus("WAV"))
    for name, content in {"text": b"no archive", "cut": Corpus("WAV").pack("")[:9000]}.items():
        path.write_bytes(gzip.compress(content))
        assert error(tmp_path / name).startswith(f"{path}: not an intact archive (")


STEM = "an4_clstk/m00/an0-m00-b"
CHANGES: dict[str, tuple[Callable[[Corpus], Any], str]] = {
    "no-list": (lambda c: c.files.pop("etc/an4_test.fileids"), "etc/an4_test.fileids is missing"),
    "no-transcripts": (lambda c: c.files.pop("etc/an4_train.transcription"), "etc/an4_train.transcription is missing"),
    "no-recording": (
        lambda c: c.files.pop(f"wav/{STEM}.wav"),
        f"there is neither wav/{STEM}.wav nor wav/{STEM}.flac",
    ),
    "short-list": (
        lambda c: c.edit("etc/an4_train.fileids", f"{STEM}\n", ""),
        "44 train recordings and 45 transcripts where 45 are expected",
    ),
    "short-both": (
        lambda c: (c.edit("etc/an4_test.fileids", "an4test_clstk/mzzz/cen0-mzzz-b\n", ""),
                   c.edit("etc/an4_test.transcription", "YES (cen0-mzzz-b)\n", "")),
        "2 test recordings and 2 transcripts where 3 are expected",
    ),
    "swapped": (
        lambda c: c.edit("etc/an4_train.transcription", "(an1-m00-b)", "(an2-m00-b)"),
        "etc/an4_train.transcription:2: '<s> A B C </s> (an2-m00-b)' is not a transcript of 'an1-m00-b'",
    ),
    "noise-mark": (
        lambda c: c.edit("etc/an4_test.transcription", "A B C", "A ++COUGH++ C"),
        "etc/an4_test.transcription:2: 'A ++COUGH++ C (cen1-mzzz-b)' is not a transcript of 'cen1-mzzz-b'",
    ),
    "no-text": (
        lambda c: c.edit("etc/an4_train.transcription", "<s> YES </s> (an0-m00-b)", "(an0-m00-b)"),
        "etc/an4_train.transcription:1: '(an0-m00-b)' is not a transcript of 'an0-m00-b'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "problem"), CHANGES.values(), ids=CHANGES)
def test_archive_of_other_content_is_refused(
    put: Callable[[Corpus], Path], tmp_path: Path, change: Callable[[Corpus], Any], problem: str
) -> None:
    corpus = Corpus("WAV")
    change(corpus)
    path = put(corpus)
    assert error(tmp_path / "out") == f"{path}: {problem}"


def test_bad_recordings(put: Callable[[Corpus], Path], tmp_path: Path) -> None:
    corpus = Corpus("WAV")
    corpus.files[f"wav/{STEM}.wav"] = corpus.files[f"wav/{STEM}.wav"][:-10]
    path = put(corpus)
    train = prepare(tmp_path / "train").counts["splits"]["train"]
    assert (train["read"], train["kept"]) == (39, 38)
    problem = f"{path}: wav/{STEM}.wav: cut short: the header announces 3200 bytes of samples, 3190 are there"
    assert train["dropped_utterances"] == [{"id": "an0-m00-b", "reason": "unreadable", "problem": problem}]
    name = "wav/an4test_clstk/mzzz/cen1-mzzz-b.wav"
    corpus.files[name] = b""
    put(corpus)
    assert error(tmp_path / "test") == f"{path}: {name}: the file is empty (test utterances are never dropped)"


def test_what_is_pinned() -> None:
    assert an4.URL == "https://codeload.github.com/cmusphinx/an4/tar.gz/b567d132f43304e70a2b2eca6077f22255311812"
    assert an4.UPSTREAM == "an4-b567d132f43304e70a2b2eca6077f22255311812.tar.gz"
    assert an4.FLAC == "an4-b567d132f43304e70a2b2eca6077f22255311812.flac.tar"
    assert len(an4.SHA256[an4.FLAC]) == 64
    assert an4.UTTERANCES == {"train": 948, "test": 130}
