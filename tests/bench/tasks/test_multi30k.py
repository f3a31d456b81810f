import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bench.errors import DataError
from bench.preparation import PreparedData
from bench.tasks import multi30k
from bench.tasks.multi30k import Multi30k, Multi30kConfig
from bench.tasks.registry import load_task

LINES = {"train": 12, "val": 3, "test_2016_flickr": 2, "test_2017_flickr": 4, "test_2017_mscoco": 1}


def text(stem: str, language: str, count: int) -> bytes:
    words = stem.split("_")
    return "".join(f"{language} {words[0]} {'abcdefghijkl'[i]} {words[-1]}\n" for i in range(count)).encode()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as `$NATBENCH_DATA` of small files, with the table of checksums to match; any download fails."""
    root = tmp_path / "data"
    folder = root / "multi30k"
    folder.mkdir(parents=True)
    checksums = {}
    for stem, count in LINES.items():
        for language in ("en", "de", "fr") if "2017" in stem else ("en", "de", "fr", "cs"):
            path = folder / f"{stem}.{language}.gz"
            path.write_bytes(gzip.compress(text(stem, language, count), mtime=0))
            if path.name in multi30k.SHA256:
                checksums[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setenv("NATBENCH_DATA", str(root))
    monkeypatch.setattr(multi30k, "URL", "file:///no/such/folder")
    monkeypatch.setattr(multi30k, "SHA256", checksums)
    monkeypatch.setattr(multi30k, "LINES", LINES)
    return folder


def task(**config: Any) -> Multi30k:
    return Multi30k(Multi30kConfig(vocab_size=300, **config))


def prepare(folder: Path, **config: Any) -> PreparedData:
    folder.mkdir()
    task(**config).prepare(folder)
    return PreparedData(folder)


def test_is_found_by_its_name() -> None:
    assert load_task("multi30k") is Multi30k


def test_defaults_are_english_german_2016(data: Path, tmp_path: Path) -> None:
    prepared = prepare(tmp_path / "out")
    assert [len(prepared.examples(split)) for split in ("train", "dev", "test")] == [12, 3, 2]
    first = prepared.examples("test")[0]
    assert (first.source, first.target) == ("en test a flickr", "de test a flickr")
    assert first.references == (first.target,)


@pytest.mark.parametrize(
    ("config", "source", "target", "count"),
    [
        ({"source_language": "de", "target_language": "en"}, "de test a flickr", "en test a flickr", 2),
        ({"source_language": "cs", "target_language": "fr"}, "cs test a flickr", "fr test a flickr", 2),
        ({"target_language": "fr", "test_set": "test_2017_flickr"}, "en test a flickr", "fr test a flickr", 4),
        ({"test_set": "test_2017_mscoco"}, "en test a mscoco", "de test a mscoco", 1),
    ],
)
def test_languages_and_test_sets(
    data: Path, tmp_path: Path, config: dict[str, str], source: str, target: str, count: int
) -> None:
    examples = prepare(tmp_path / "out", **config).examples("test")
    assert (examples[0].source, examples[0].target, len(examples)) == (source, target, count)


def test_first_training_sentences(data: Path, tmp_path: Path) -> None:
    prepared = prepare(tmp_path / "out", train_sentences=2)
    assert len(prepared.examples("train")) == 2
    assert len(prepared.examples("dev")) == 3


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"source_language": "de", "target_language": "de"}, "both 'de'"),
        ({"source_language": "cs", "test_set": "test_2017_flickr"}, "no Czech"),
        ({"target_language": "cs", "test_set": "test_2017_mscoco"}, "no Czech"),
        ({"source_language": "it"}, "source_language"),
        ({"test_set": "test_2018_flickr"}, "test_set"),
        ({"train_sentences": 0}, "train_sentences"),
        ({"model_type": "word"}, "model_type"),
    ],
)
def test_impossible_configs_are_refused(config: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Multi30kConfig(**config)


def test_missing_file_names_url_folder_and_variable(data: Path) -> None:
    (data / "val.de.gz").unlink()
    with pytest.raises(DataError) as caught:
        task().fingerprint()
    for part in ("file:///no/such/folder/val.de.gz", str(data), "NATBENCH_DATA"):
        assert part in str(caught.value)
    task(target_language="fr").fingerprint()  # needs no German file


@pytest.mark.parametrize("name", ["train.en.gz", "test_2016_flickr.de.gz"])
def test_file_of_other_content_is_refused(data: Path, tmp_path: Path, name: str) -> None:
    (data / name).write_bytes(gzip.compress(b"something else\n"))
    with pytest.raises(DataError, match="expected SHA-256"):
        task().fingerprint()
    with pytest.raises(DataError, match="expected SHA-256"):
        prepare(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_files_without_checksum_are_verified_by_gzip_and_lines(data: Path, tmp_path: Path) -> None:
    path = data / "train.fr.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(DataError, match="not an intact gzip file"):
        task(target_language="fr").fingerprint()
    for language in ("fr", "cs"):
        (data / f"train.{language}.gz").write_bytes(gzip.compress(text("train", language, 11)))
    with pytest.raises(DataError, match="11 lines each where 12 are expected"):
        prepare(tmp_path / "out", source_language="cs", target_language="fr")
    assert list((tmp_path / "out").iterdir()) == []


def test_fingerprint_is_of_the_files_used_and_the_libraries(data: Path) -> None:
    fingerprint = task(target_language="fr").fingerprint()
    names = {f"{stem}.{language}.gz" for stem in ("train", "val", "test_2016_flickr") for language in ("en", "fr")}
    assert fingerprint["files"] == {name: hashlib.sha256((data / name).read_bytes()).hexdigest() for name in names}
    assert set(fingerprint) == {"files", "sentencepiece", "unicode"}
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    (data / "train.fr.gz").write_bytes(gzip.compress(text("train", "xx", 12)))
    assert task(target_language="fr").fingerprint() != fingerprint


def test_files_come_from_the_pinned_commit() -> None:
    assert multi30k.URL == (
        "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw"
    )
    assert all(len(checksum) == 64 for checksum in multi30k.SHA256.values())
