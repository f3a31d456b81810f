"""Tokenisers and the normalisation that goes before them.

One vocabulary serves source and target. Ids below `NUM_SPECIAL` are the specials of `models.interface`; the tokeniser's
own tokens follow. `encode` normalises its input, so `decode(encode(text)) == normalise(text)` unless a word is unknown.
"""

from __future__ import annotations

import io
import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Literal

import sentencepiece

from bench.errors import DataError
from models.interface import NUM_SPECIAL, UNK

SPACE_MARK = "▁"
"""First character of a token that follows a space or begins the text (U+2581, as in sentencepiece)."""

_SPACES = re.compile(r"\s+")
_JOINERS = "\u200c\u200d"  # zero-width (non-)joiners stand inside words of Persian and Indic scripts


def normalise(text: str) -> str:
    """Return `text` in NFKC, runs of any Unicode space as one plain space, none at the ends.

    A literal `SPACE_MARK`, which tokenisers could not tell from a space, becomes an underscore.
    """
    return _SPACES.sub(" ", unicodedata.normalize("NFKC", text).replace(SPACE_MARK, "_")).strip(" ")


def split_words(text: str) -> list[str]:
    """Split normalised `text` into words, numbers and single punctuation marks; `join_words` undoes it."""
    return [token for chunk in text.split(" ") if chunk for token in _split_chunk(chunk)]


def join_words(tokens: Iterable[str]) -> str:
    """Return the text that `tokens` spell."""
    return "".join(tokens).replace(SPACE_MARK, " ").removeprefix(" ")


@lru_cache(maxsize=1 << 16)
def _split_chunk(chunk: str) -> tuple[str, ...]:
    """Split text without spaces; cached, as texts repeat their words."""
    pieces: list[str] = []
    for kind, run in groupby(chunk, _character_kind):
        characters = list(run)
        pieces += ["".join(characters)] if kind else characters
    pieces[0] = SPACE_MARK + pieces[0]
    return tuple(pieces)


def _character_kind(character: str) -> str:
    """Return "word" or "number" for a character that joins its like, "" for one that stands alone."""
    category = unicodedata.category(character)[0]
    if category in "LM" or character in _JOINERS:
        return "word"
    return "number" if category == "N" else ""


class Tokenizer(ABC):
    """Turns text into ids and back."""

    kind: ClassVar[str]
    """Names the class in `tokenizer.json`."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of ids, special ids included."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without bos and eos."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; special ids, unknown words among them, are dropped."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, and what else `load_tokenizer` needs, into `folder`."""


class WordTokenizer(Tokenizer):
    """A closed vocabulary of the words, numbers and marks of `split_words`."""

    kind = "word"

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(words)
        self._ids = {word: NUM_SPECIAL + i for i, word in enumerate(self._words)}
        assert len(self._ids) == len(self._words), "a word stands twice in the vocabulary"

    @classmethod
    def train(cls, texts: Iterable[str]) -> WordTokenizer:
        """Return the tokeniser that knows every word of `texts`, in code point order."""
        return cls(sorted({word for text in texts for word in split_words(normalise(text))}))

    @property
    def size(self) -> int:
        """Number of ids, special ids included."""
        return NUM_SPECIAL + len(self._words)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; a word outside the vocabulary is UNK."""
        return [self._ids.get(word, UNK) for word in split_words(normalise(text))]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; special ids are dropped."""
        return join_words(self._words[i - NUM_SPECIAL] for i in ids if i >= NUM_SPECIAL)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`."""
        _write_description(folder, {"kind": self.kind, "words": self._words})

    @classmethod
    def load(cls, description: dict[str, Any], folder: Path) -> WordTokenizer:
        """Return the tokeniser that `save` wrote."""
        return cls(description["words"])


class CharTokenizer(Tokenizer):
    """A closed vocabulary of characters, the space among them: what speech is transcribed in."""

    kind = "character"

    def __init__(self, characters: Sequence[str]) -> None:
        self._characters = tuple(characters)
        self._ids = {character: NUM_SPECIAL + i for i, character in enumerate(self._characters)}
        assert len(self._ids) == len(self._characters), "a character stands twice in the vocabulary"

    @classmethod
    def train(cls, texts: Iterable[str]) -> CharTokenizer:
        """Return the tokeniser that knows every character of `texts`, in code point order."""
        return cls(sorted({character for text in texts for character in normalise(text)}))

    @property
    def size(self) -> int:
        """Number of ids, special ids included."""
        return NUM_SPECIAL + len(self._characters)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; characters that are not in the vocabulary become `UNK`."""
        return [self._ids.get(character, UNK) for character in normalise(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, without spaces at the ends and never two in a row; special ids are dropped."""
        return normalise("".join(self._characters[i - NUM_SPECIAL] for i in ids if i >= NUM_SPECIAL))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`."""
        _write_description(folder, {"kind": self.kind, "characters": list(self._characters)})

    @classmethod
    def load(cls, description: dict[str, Any], folder: Path) -> CharTokenizer:
        """Return the tokeniser that `save` wrote."""
        return cls(description["characters"])


class SubwordTokenizer(Tokenizer):
    """A sentencepiece model (Kudo & Richardson 2018) with byte fallback, so that no text is unknown."""

    kind = "subword"
    MODEL_FILE: ClassVar[str] = "tokenizer.model"

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._offset = NUM_SPECIAL - 1  # piece 0 is sentencepiece's own unknown

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        folder: Path,
        model_type: Literal["unigram", "bpe"] = "unigram",
    ) -> SubwordTokenizer:
        """Train on `texts` and save the tokeniser into `folder`; the same texts give the same model.

        Args:
            texts: training sentences; normalised here.
            vocab_size: pieces wanted, 256 bytes and the unknown among them; a small corpus gives fewer.
            folder: where the tokeniser is saved.
            model_type: how pieces are chosen.

        Raises:
            DataError: sentencepiece cannot train on `texts`; `vocab_size` is too small, for instance.
        """
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter([line for text in texts if (line := normalise(text))]),
                model_writer=model,
                model_type=model_type,
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                character_coverage=1.0,
                byte_fallback=True,
                normalization_rule_name="identity",  # `normalise` has done it
                max_sentence_length=1 << 20,  # bytes; longer lines would be skipped
                num_threads=1,
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            raise DataError(f"no subword vocabulary of {vocab_size} pieces can be trained: {error}") from error
        tokenizer = cls(model.getvalue())
        tokenizer.save(folder)
        return tokenizer

    @property
    def size(self) -> int:
        """Number of ids, special ids included."""
        return self._offset + int(self._processor.get_piece_size())

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""
        return [piece + self._offset if piece else UNK for piece in self._processor.encode(normalise(text))]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; special ids are dropped."""
        return str(self._processor.decode([int(i) - self._offset for i in ids if i >= NUM_SPECIAL]))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer.model`."""
        (folder / self.MODEL_FILE).write_bytes(self._model)
        _write_description(folder, {"kind": self.kind, "model": self.MODEL_FILE})

    @classmethod
    def load(cls, description: dict[str, Any], folder: Path) -> SubwordTokenizer:
        """Return the tokeniser that `save` wrote."""
        return cls((folder / description["model"]).read_bytes())


_KINDS: dict[str, type[WordTokenizer] | type[CharTokenizer] | type[SubwordTokenizer]] = {
    kind.kind: kind for kind in (WordTokenizer, CharTokenizer, SubwordTokenizer)
}


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokeniser saved in `folder`.

    Raises:
        DataError: `tokenizer.json` names no known kind.
    """
    path = folder / "tokenizer.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    kind = description.get("kind")
    if kind not in _KINDS:
        raise DataError(f"{path}: unknown kind of tokeniser {kind!r}; there are: {', '.join(_KINDS)}")
    return _KINDS[kind].load(description, folder)


def _write_description(folder: Path, description: dict[str, Any]) -> None:
    content = json.dumps(description, ensure_ascii=False, indent=1) + "\n"
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
