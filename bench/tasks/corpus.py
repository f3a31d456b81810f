"""Line-aligned parallel text: reading it with checks, and turning it into a prepared folder.

What happens to input that is not as it should be:

    missing, unreadable or empty file, damaged gzip, invalid UTF-8     DataError
    files of unequal length                                           DataError
    byte order mark, Windows line ends, no final newline              read as if they were not so
    other line separators (U+2028, U+0085, form feed, lone CR)        part of the line: only a newline ends one
    training pair with an empty side, or longer than `max_tokens`     dropped and counted
    development or test pair with an empty side, or longer            DataError: these are never dropped
    duplicates, training sources that are also test sources           kept and counted
"""

from __future__ import annotations

import codecs
import gzip
import json
import tempfile
import unicodedata
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from bench.errors import DataError
from bench.steps import write_json
from bench.store import write_atomically
from bench.tasks.base import SPLITS, Example
from bench.text import SubwordTokenizer, Tokenizer, normalise
from models.interface import Options


class CorpusOptions(Options):
    """What every task of parallel text can set."""

    vocab_size: int = Field(6000, gt=257)
    """Subword pieces shared by source and target, 256 bytes and the unknown among them; a small corpus gives fewer."""
    model_type: Literal["unigram", "bpe"] = "unigram"
    """How sentencepiece chooses the pieces."""
    max_tokens: int = Field(100, ge=1)
    """Longest source and target, in subword tokens; longer training pairs are dropped."""


@dataclass(frozen=True)
class ParallelText:
    """Two files of equally many lines, as read."""

    source_path: Path
    target_path: Path
    sources: list[str]
    targets: list[str]


@dataclass
class _Split:
    """The pairs of one split that are kept, by line number, and what became of the others."""

    name: str
    text: ParallelText
    limit: int
    """Most tokens of a side (and so most words: no token spans two)."""
    read: int = 0
    pairs: dict[int, tuple[str, str]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=lambda: {"empty": 0, "too_long": 0})

    def accepts(self, line: int, lengths: tuple[int, int], unit: str) -> bool:
        """Tell whether a pair whose sides have these `lengths` may stay; count it as dropped if not.

        Raises:
            DataError: it may not, and the split is one whose sentences are never dropped.
        """
        if 0 in lengths:
            reason, side, problem = "empty", lengths.index(0), "the line is empty"
        elif max(lengths) > self.limit:
            reason, side = "too_long", lengths.index(max(lengths))
            problem = f"{max(lengths)} {unit} are more than max_tokens={self.limit}"
        else:
            return True
        if self.name != "train":
            path = (self.text.source_path, self.text.target_path)[side]
            raise DataError(f"{path}:{line}: {problem} ({self.name} sentences are never dropped)")
        self.dropped[reason] += 1
        return False

    def require_pairs(self) -> None:
        """Raise DataError if no pair is left."""
        if not self.pairs:
            raise DataError(
                f"{self.text.source_path}, {self.text.target_path}: no {self.name} pair is left of {self.read} "
                f"({self.dropped['empty']} with an empty side, "
                f"{self.dropped['too_long']} longer than max_tokens={self.limit})"
            )


def read_lines(path: Path) -> list[str]:
    r"""Return the lines of a UTF-8 file, gzip-compressed if its name ends in `.gz`; only "\n" and "\r\n" end a line.

    Raises:
        DataError: the file is missing, unreadable, damaged, empty or not UTF-8 (naming the line).
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not an intact gzip file ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data:
        raise DataError(f"{path}: the file is empty")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: invalid UTF-8 (byte 0x{data[error.start]:02x}: {error.reason})") from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def read_parallel(source_path: Path, target_path: Path) -> ParallelText:
    """Return the lines of two line-aligned files.

    Raises:
        DataError: a file cannot be used (see `read_lines`), or they differ in their number of lines.
    """
    sources, targets = read_lines(source_path), read_lines(target_path)
    if len(sources) != len(targets):
        raise DataError(
            f"files of unequal length: {source_path} has {len(sources)} lines, {target_path} has {len(targets)}"
        )
    return ParallelText(source_path, target_path, sources, targets)


def prepare_parallel(
    folder: Path, texts: Mapping[str, ParallelText], options: CorpusOptions, train_sentences: int | None = None
) -> None:
    """Write the prepared data of a task (see `bench.tasks.base.Task`) into `folder`.

    The subword vocabulary is trained on both sides of the training split and on nothing else. `data.json` gets

        max_source_length, max_target_length    tokens, over all pairs kept
        splits.<split>                          read, kept, dropped.{empty,too_long}, source_tokens, target_tokens
        overlap                                 {dev,test}_sources_in_train, train_duplicates (normalised text)

    Args:
        folder: an empty folder; nothing is written into it unless all goes well.
        texts: the files of each of `SPLITS`.
        options: vocabulary and length limit.
        train_sentences: use only the first this many training pairs.

    Raises:
        DataError: the text is not usable, naming file and line.
    """
    assert set(texts) == set(SPLITS)
    splits = {name: _checked(name, texts[name], options.max_tokens, train_sentences) for name in SPLITS}
    training = [text for pair in splits["train"].pairs.values() for text in pair]
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = SubwordTokenizer.train(training, options.vocab_size, Path(scratch), options.model_type)
    tokens = {name: _limit_tokens(split, tokenizer) for name, split in splits.items()}
    tokenizer.save(folder)
    for name, split in splits.items():
        rows = (Example(f"{name}-{line}", source, target, (target,)) for line, (source, target) in split.pairs.items())
        content = "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows)
        write_atomically(folder / f"{name}.jsonl", content)
    write_json(folder / "data.json", _description(splits, tokens))


def library_versions() -> dict[str, str]:
    """Return the versions, beside the input, that the prepared data depends on: for a task's fingerprint."""
    return {"sentencepiece": version("sentencepiece"), "unicode": unicodedata.unidata_version}


def _checked(name: str, text: ParallelText, limit: int, train_sentences: int | None) -> _Split:
    """Return the pairs of a split that have two sides, neither with more than `limit` words.

    The words are counted first so that a line of thousands does not reach the training of the vocabulary.
    """
    first = train_sentences if name == "train" else None
    split = _Split(name, text, limit)
    for line, pair in enumerate(zip(text.sources[:first], text.targets[:first], strict=True), 1):
        split.read += 1
        words = (len(normalise(pair[0]).split()), len(normalise(pair[1]).split()))
        if split.accepts(line, words, "words"):
            split.pairs[line] = pair
    split.require_pairs()
    return split


def _limit_tokens(split: _Split, tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Drop the pairs of `split` with too many tokens; return the source and target lengths of the others."""
    lengths = []
    for line, (source, target) in list(split.pairs.items()):
        tokens = (len(tokenizer.encode(source)), len(tokenizer.encode(target)))
        if split.accepts(line, tokens, "tokens"):
            lengths.append(tokens)
        else:
            del split.pairs[line]
    split.require_pairs()
    return lengths


def _description(splits: Mapping[str, _Split], tokens: Mapping[str, list[tuple[int, int]]]) -> dict[str, Any]:
    """Return the content of `data.json`."""
    everything = [pair for lengths in tokens.values() for pair in lengths]
    sources = {name: [normalise(source) for source, _ in split.pairs.values()] for name, split in splits.items()}
    seen = set(sources["train"])
    distinct = {(normalise(source), normalise(target)) for source, target in splits["train"].pairs.values()}
    return {
        "max_source_length": max(source for source, _ in everything),
        "max_target_length": max(target for _, target in everything),
        "splits": {
            name: {
                "read": split.read,
                "kept": len(split.pairs),
                "dropped": split.dropped,
                "source_tokens": sum(source for source, _ in tokens[name]),
                "target_tokens": sum(target for _, target in tokens[name]),
            }
            for name, split in splits.items()
        },
        "overlap": {
            "dev_sources_in_train": sum(source in seen for source in sources["dev"]),
            "test_sources_in_train": sum(source in seen for source in sources["test"]),
            "train_duplicates": len(splits["train"].pairs) - len(distinct),
        },
    }
