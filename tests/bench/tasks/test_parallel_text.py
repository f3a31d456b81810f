import hashlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from bench.errors import DataError
from bench.preparation import PreparedData, build_task
from bench.tasks.parallel_text import ParallelTextConfig, ParallelTextTask
from bench.tasks.registry import load_task

FILES = [f"{split}_{side}" for split in ("train", "dev", "test") for side in ("source", "target")]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Six files in the current folder, as a suite names them."""
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        count = 9 if name.startswith("train") else 2
        lines = "".join(f"{name[-6:]} {'abcdefghi'[i]}\n" for i in range(count))
        (tmp_path / name).write_text(lines, encoding="utf-8")
    return {name: name for name in FILES}


def task(files: dict[str, str]) -> ParallelTextTask:
    return ParallelTextTask(ParallelTextConfig(vocab_size=300, **files))


def test_is_found_by_its_name() -> None:
    assert load_task("parallel_text") is ParallelTextTask


def test_prepares_the_six_files_from_a_suites_config(files: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    build_task("parallel_text", {**files, "vocab_size": 300}).prepare(folder)
    prepared = PreparedData(folder)
    assert [len(prepared.examples(split)) for split in ("train", "dev", "test")] == [9, 2, 2]
    last = prepared.examples("test")[-1]
    assert (last.source, last.target, last.references) == ("source b", "target b", ("target b",))


def test_home_folder_and_absolute_paths(files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = task(files).fingerprint()
    monkeypatch.setenv("HOME", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert task({name: f"~/{name}" for name in FILES}).fingerprint() == here
    assert task({name: str(tmp_path / name) for name in FILES}).fingerprint() == here
    with pytest.raises(DataError, match="train_source: no such file"):
        task(files).fingerprint()


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_required_and_counts(files: dict[str, str], tmp_path: Path, name: str) -> None:
    before = task(files).fingerprint()
    assert before["files"][name] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    with pytest.raises(ValidationError, match=name):
        task({other: path for other, path in files.items() if other != name})

    (tmp_path / name).write_text((tmp_path / name).read_text(encoding="utf-8").upper(), encoding="utf-8")
    assert task(files).fingerprint() != before

    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"^{name}: no such file$"):
        task(files).fingerprint()
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(DataError, match=f"^{name}: no such file$"):
        task(files).prepare(folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "^dev_target: the file is empty$"),
        (b"one\n", "^files of unequal length: dev_source has 2 lines, dev_target has 1$"),
        (b"one\n\n", "^dev_target:2: the line is empty"),
        (b"one\n\xff\n", "^dev_target:2: invalid UTF-8"),
        (b"one\n" + b"word " * 10_000, "^dev_target:2: 10000 words are more than max_tokens=100"),
    ],
    ids=["empty-file", "unequal", "empty-line", "utf-8", "long"],
)
def test_malformed_file_is_refused_and_nothing_written(
    files: dict[str, str], tmp_path: Path, content: bytes, problem: str
) -> None:
    (tmp_path / "dev_target").write_bytes(content)
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(DataError, match=problem) as caught:
        task(files).prepare(folder)
    assert "\n" not in str(caught.value)
    assert list(folder.iterdir()) == []
