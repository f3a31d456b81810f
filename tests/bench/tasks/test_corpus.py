import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from bench.errors import DataError
from bench.preparation import PreparedData
from bench.tasks.base import SPLITS
from bench.tasks.corpus import CorpusOptions, ParallelText, prepare_parallel, read_lines, read_parallel

OPTIONS = CorpusOptions(vocab_size=300, max_tokens=40)


def sentences(count: int, seed: int, letters: str = "abcde") -> list[str]:
    """Return sentences of four words of three letters, at most 16 tokens each."""
    rng = random.Random(seed)
    return [" ".join("".join(rng.choices(letters, k=3)) for _ in range(4)) for _ in range(count)]


class Corpus:
    """Three splits of generated text that tests alter before they prepare it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines = {
            f"{split}.{side}": sentences(size, seed, letters)
            for seed, (split, size) in enumerate(zip(SPLITS, (30, 5, 5), strict=True))
            for side, letters in (("src", "abcde"), ("tgt", "vwxyz"))
        }

    def path(self, name: str) -> Path:
        return self.folder / name

    def texts(self) -> dict[str, ParallelText]:
        for name, lines in self.lines.items():
            self.path(name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return {split: read_parallel(self.path(f"{split}.src"), self.path(f"{split}.tgt")) for split in SPLITS}

    def prepare(self, **options: Any) -> dict[str, Any]:
        """Return `data.json`."""
        folder = self.folder / "prepared"
        folder.mkdir()
        prepare_parallel(folder, self.texts(), OPTIONS, **options)
        return json.loads((folder / "data.json").read_text(encoding="utf-8"))

    def error(self) -> str:
        """Return the message with which preparation refuses, having written nothing."""
        with pytest.raises(DataError) as caught:
            self.prepare()
        assert list((self.folder / "prepared").iterdir()) == []
        message = str(caught.value)
        assert "\n" not in message
        return message


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(tmp_path)


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"\xef\xbb\xbfa\nb\n", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\n\nb\n\n", ["a", "", "b", ""]),
        (b" a \n", [" a "]),
        ("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh\n".encode(), ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"]),
    ],
    ids=["plain", "no-final-newline", "bom", "crlf", "empty-lines", "spaces", "only-newline-splits"],
)
def test_lines_of_a_file(tmp_path: Path, content: bytes, lines: list[str]) -> None:
    assert read_lines(put(tmp_path / "plain.txt", content)) == lines
    assert read_lines(put(tmp_path / "packed.txt.gz", gzip.compress(content))) == lines


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.txt", None, ": no such file"),
        ("x.txt", b"", ": the file is empty"),
        ("x.txt", b"\xef\xbb\xbf", ": the file is empty"),
        ("x.gz", b"", ": the file is empty"),
        ("x.gz", gzip.compress(b""), ": the file is empty"),
        ("x.gz", b"plain text", ": not an intact gzip file"),
        ("x.gz", gzip.compress(b"text")[:-1], ": not an intact gzip file"),
        ("x.txt", b"good\nbad \xff\n", ":2: invalid UTF-8 (byte 0xff"),
        ("x.txt", "gr\u00fc\u00df\n".encode("latin-1"), ":1: invalid UTF-8 (byte 0xfc"),
        ("x.txt", b"cut \xe2\x82", ":1: invalid UTF-8 (byte 0xe2"),
        ("x.txt", "text\n".encode("utf-16"), ":1: invalid UTF-8 (byte 0xff"),
    ],
    ids=[
        "missing",
        "empty",
        "only-a-bom",
        "empty-file-named-gz",
        "gzip-of-nothing",
        "plain-text-named-gz",
        "gzip-cut-short",
        "bad-byte-on-line-2",
        "latin-1",
        "cut-character",
        "utf-16",
    ],
)
def test_file_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, problem: str) -> None:
    path = tmp_path / name
    if content is not None:
        put(path, content)
    with pytest.raises(DataError) as caught:
        read_lines(path)
    assert str(caught.value).startswith(f"{path}{problem}")
    assert "\n" not in str(caught.value)


def test_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_lines(tmp_path)


def test_files_of_unequal_length_are_named_with_their_counts(tmp_path: Path) -> None:
    source, target = put(tmp_path / "s", b"a\nb\nc\n"), put(tmp_path / "t", b"a\nb\n")
    with pytest.raises(DataError) as caught:
        read_parallel(source, target)
    assert str(caught.value) == f"files of unequal length: {source} has 3 lines, {target} has 2"


def test_prepared_folder_holds_every_pair_unchanged(corpus: Corpus) -> None:
    corpus.lines["test.tgt"][2] = " Stra\u00dfe\u2028\u00bd \u201evw\u201c "
    description = corpus.prepare()
    data = PreparedData(corpus.folder / "prepared")
    for split in SPLITS:
        examples = data.examples(split)
        assert [example.source for example in examples] == corpus.lines[f"{split}.src"]
        assert [example.target for example in examples] == corpus.lines[f"{split}.tgt"]
        assert [example.references for example in examples] == [(t,) for t in corpus.lines[f"{split}.tgt"]]
        assert [example.id for example in examples] == [f"{split}-{i + 1}" for i in range(len(examples))]
        encoded = data.encode(examples)
        assert description["splits"][split] == {
            "read": len(examples),
            "kept": len(examples),
            "dropped": {"empty": 0, "too_long": 0},
            "source_tokens": sum(len(pair.source) for pair in encoded),
            "target_tokens": sum(len(pair.target) for pair in encoded),
        }
    pairs = [pair for split in SPLITS for pair in data.encode(data.examples(split))]
    assert data.data_spec.max_source_length == max(len(pair.source) for pair in pairs)
    assert data.data_spec.max_target_length == max(len(pair.target) for pair in pairs)
    assert data.data_spec.vocab_size == data.tokenizer.size


def test_longest_target_counts_in_every_split(corpus: Corpus) -> None:
    longest = " ".join("vwxyz")
    corpus.lines["test.tgt"][0] = f"{longest} {longest} {longest}"
    description = corpus.prepare()
    data = PreparedData(corpus.folder / "prepared")
    assert description["max_target_length"] == len(data.tokenizer.encode(corpus.lines["test.tgt"][0])) >= 15


@pytest.mark.parametrize(("split", "matters"), [("train", True), ("dev", False), ("test", False)])
@pytest.mark.parametrize("side", ["src", "tgt"])
def test_vocabulary_is_of_both_sides_of_the_training_split_only(
    tmp_path: Path, split: str, matters: bool, side: str
) -> None:
    models = []
    for name in ("plain", "altered"):
        (tmp_path / name).mkdir()
        corpus = Corpus(tmp_path / name)
        if name == "altered":
            corpus.lines[f"{split}.{side}"][0] = "kqkq qkqk"  # letters that stand nowhere else
        corpus.prepare()
        models.append((tmp_path / name / "prepared" / "tokenizer.model").read_bytes())
    assert (models[0] != models[1]) == matters


def test_training_pairs_with_an_empty_side_are_dropped_and_counted(corpus: Corpus) -> None:
    corpus.lines["train.src"][3] = ""
    corpus.lines["train.tgt"][7] = " \u00a0\t\u2028 "
    corpus.lines["train.src"][9] = corpus.lines["train.tgt"][9] = ""
    train = corpus.prepare()["splits"]["train"]
    assert (train["read"], train["kept"], train["dropped"]) == (30, 27, {"empty": 3, "too_long": 0})
    ids = [example.id for example in PreparedData(corpus.folder / "prepared").examples("train")]
    assert ids == [f"train-{line}" for line in range(1, 31) if line not in (4, 8, 10)]


@pytest.mark.parametrize("name", ["train.src", "train.tgt"])
@pytest.mark.parametrize("line", ["abc " * 10_000, "q" * 10_000], ids=["words", "tokens"])
def test_training_pairs_too_long_are_dropped_and_counted(corpus: Corpus, name: str, line: str) -> None:
    # The line without spaces is one word; as no piece has more than 16 characters, it is at least 625 tokens.
    corpus.lines[name][3] = line
    description = corpus.prepare()
    train = description["splits"]["train"]
    assert (train["read"], train["kept"], train["dropped"]) == (30, 29, {"empty": 0, "too_long": 1})
    assert max(description["max_source_length"], description["max_target_length"]) <= OPTIONS.max_tokens


def test_pair_of_exactly_the_limit_is_kept(corpus: Corpus) -> None:
    corpus.lines["train.src"][0] = corpus.lines["test.src"][0] = " ".join("abcde" * 8)
    description = corpus.prepare()
    assert description["max_source_length"] == OPTIONS.max_tokens
    assert description["splits"]["train"]["kept"] == 30


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("side", ["src", "tgt"])
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("", "the line is empty"),
        (" \u3000", "the line is empty"),
        ("abc " * 10_000, "10000 words are more than max_tokens=40"),
        # No q is in training, so each costs a byte's token, and the mark of the word's beginning one more.
        ("q" * 40, "41 tokens are more than max_tokens=40"),
    ],
    ids=["empty", "blank", "words", "tokens"],
)
def test_unusable_development_or_test_line_is_refused(
    corpus: Corpus, split: str, side: str, line: str, problem: str
) -> None:
    name = f"{split}.{side}"
    corpus.lines[name][2] = line
    assert corpus.error() == f"{corpus.path(name)}:3: {problem} ({split} sentences are never dropped)"


@pytest.mark.parametrize("line", ["", "abc " * 10_000])
def test_training_text_of_which_nothing_is_left_is_refused(corpus: Corpus, line: str) -> None:
    corpus.lines["train.src"] = [line] * 30
    empty = 30 if line == "" else 0
    assert corpus.error() == (
        f"{corpus.path('train.src')}, {corpus.path('train.tgt')}: no train pair is left of 30 "
        f"({empty} with an empty side, {30 - empty} longer than max_tokens=40)"
    )


def test_vocabulary_too_small_is_refused(corpus: Corpus) -> None:
    corpus.lines["train.src"][0] = "".join(map(chr, range(0x4E00, 0x4E27)))
    corpus.lines["train.src"][1] = "".join(map(chr, range(0x4E27, 0x4E4E)))
    assert "300" in corpus.error()


def test_duplicates_and_overlaps_are_kept_and_counted(corpus: Corpus) -> None:
    for name in ("train.src", "train.tgt"):
        corpus.lines[name][1] = corpus.lines[name][0]
    corpus.lines["train.src"][5] = corpus.lines["train.src"][4]  # another target: no duplicate
    corpus.lines["test.src"][0] = corpus.lines["train.src"][10]
    corpus.lines["test.src"][1] = corpus.lines["train.src"][10].replace(" ", "  ")
    corpus.lines["dev.src"][0] = corpus.lines["train.src"][11]
    description = corpus.prepare()
    assert description["overlap"] == {"dev_sources_in_train": 1, "test_sources_in_train": 2, "train_duplicates": 1}
    assert [description["splits"][split]["kept"] for split in SPLITS] == [30, 5, 5]


def test_first_training_sentences(corpus: Corpus) -> None:
    corpus.lines["train.src"][0] = ""
    splits = corpus.prepare(train_sentences=4)["splits"]
    assert (splits["train"]["read"], splits["train"]["kept"]) == (4, 3)
    assert [splits[split]["kept"] for split in ("dev", "test")] == [5, 5]


def test_preparation_is_reproducible(tmp_path: Path) -> None:
    contents = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        corpus = Corpus(tmp_path / name)
        corpus.prepare()
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name / "prepared").iterdir()})
    assert contents[0] == contents[1]
    assert set(contents[0]) >= {"train.jsonl", "dev.jsonl", "test.jsonl", "data.json", "tokenizer.json"}
