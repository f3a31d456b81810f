"""Tokenisers lose nothing, know their specials, and are the same each time."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import DataError
from bench.text import SubwordTokenizer, WordTokenizer, join_words, load_tokenizer, normalise, split_words
from models.interface import NUM_SPECIAL, UNK

SENTENCES = [
    "Two young men are outside near many bushes.",
    "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.",
    "Several men in hard hats are operating a giant pulley system.",
    "Mehrere Männer mit Schutzhelmen bedienen ein Antriebsradsystem.",
] * 5


@pytest.fixture(scope="module")
def subword(tmp_path_factory: pytest.TempPathFactory) -> SubwordTokenizer:
    return SubwordTokenizer.train(SENTENCES, 330, tmp_path_factory.mktemp("subword"))


class TestNormalise:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("10:06\u202fPM", "10:06 PM"),  # narrow no-break space, which CLDR puts before PM
            ("  a\u00a0\u2009b\t\nc\u3000", "a b c"),
            ("ﬁn Ⅳ ｶ", "fin IV カ"),  # compatibility forms
            ("e\u0301", "é"),  # composed
            ("a▁b", "a_b"),  # the space mark itself
            ("", ""),
        ],
    )
    def test_examples(self, text: str, expected: str) -> None:
        assert normalise(text) == expected

    @given(st.text())
    def test_is_nfkc_single_spaced_and_settled(self, text: str) -> None:
        result = normalise(text)
        assert normalise(result) == result
        assert unicodedata.is_normalized("NFKC", result)
        assert not any(c.isspace() and c != " " for c in result)
        assert "  " not in result
        assert result == result.strip()


class TestSplitWords:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Am 13. Aug. 2023, 10:06 Uhr", "▁Am ▁13 . ▁Aug . ▁2023 , ▁10 : 06 ▁Uhr"),
            ("it's (a) test...", "▁it ' s ▁( a ) ▁test . . ."),
            ("2023年8月13日", "▁2023 年 8 月 13 日"),
            ("हिन्दी में", "▁हिन्दी ▁में"),  # vowel signs and virama are marks, not letters, yet part of the word
            ("می‌روم", "▁می‌روم"),  # zero-width non-joiner inside a word
            ("", ""),
        ],
    )
    def test_examples(self, text: str, expected: str) -> None:
        assert split_words(text) == expected.split()

    @given(st.text())
    def test_is_lossless(self, text: str) -> None:
        assert join_words(split_words(normalise(text))) == normalise(text)


class TestWordTokenizer:
    def test_ids_follow_the_specials_in_sorted_order(self) -> None:
        tokenizer = WordTokenizer.train(["b a", "a, b"])
        # The tokens are ",", "▁a" and "▁b", in code point order.
        assert tokenizer.size == NUM_SPECIAL + 3
        assert tokenizer.encode("a, b") == [NUM_SPECIAL + 1, NUM_SPECIAL, NUM_SPECIAL + 2]

    def test_unknown_words_become_unk_and_are_dropped(self) -> None:
        tokenizer = WordTokenizer.train(["a b"])
        ids = tokenizer.encode("a xyz b")
        assert ids == [NUM_SPECIAL, UNK, NUM_SPECIAL + 1]
        assert tokenizer.decode(ids) == "a b"

    def test_specials_are_dropped(self) -> None:
        tokenizer = WordTokenizer.train(["a b"])
        assert tokenizer.decode([*range(NUM_SPECIAL), *tokenizer.encode("a b"), *range(NUM_SPECIAL)]) == "a b"

    def test_text_that_begins_inside_a_word(self) -> None:
        tokenizer = WordTokenizer.train(["a, b"])
        assert tokenizer.decode([NUM_SPECIAL, NUM_SPECIAL + 2]) == ", b"

    @given(st.lists(st.text()))
    def test_round_trip_of_what_it_was_trained_on(self, texts: list[str]) -> None:
        tokenizer = WordTokenizer.train(texts)
        assert WordTokenizer.train(reversed(texts)).encode("".join(texts)) == tokenizer.encode("".join(texts))
        for text in texts:
            assert tokenizer.decode(tokenizer.encode(text)) == normalise(text)

    def test_save_and_load(self, tmp_path: Path) -> None:
        tokenizer = WordTokenizer.train(SENTENCES)
        tokenizer.save(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert isinstance(loaded, WordTokenizer)
        assert loaded.size == tokenizer.size
        assert loaded.encode(SENTENCES[1]) == tokenizer.encode(SENTENCES[1])


class TestSubwordTokenizer:
    @given(text=st.text())
    def test_round_trip_of_any_text(self, subword: SubwordTokenizer, text: str) -> None:
        ids = subword.encode(text)
        assert all(NUM_SPECIAL <= i < subword.size for i in ids)  # byte fallback: nothing is unknown
        assert subword.decode(ids) == normalise(text)

    def test_every_id_above_the_specials_is_a_piece(self, subword: SubwordTokenizer) -> None:
        assert subword.decode(range(NUM_SPECIAL)) == ""
        used = {i for sentence in SENTENCES for i in subword.encode(sentence)}
        bytes_256 = range(NUM_SPECIAL, NUM_SPECIAL + 256)  # sentencepiece puts the byte pieces first
        assert used.isdisjoint(bytes_256)
        assert "".join(subword.decode([i]) for i in subword.encode("many bushes")) == "manybushes"

    @pytest.mark.parametrize("model_type", ["unigram", "bpe"])
    def test_training_is_deterministic(self, model_type: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
        folders = [tmp_path / "first", tmp_path / "second"]
        for folder in folders:
            folder.mkdir()
            SubwordTokenizer.train(iter(SENTENCES), 330, folder, model_type)
        first, second = ((folder / "tokenizer.model").read_bytes() for folder in folders)
        assert first == second
        assert capfd.readouterr() == ("", "")  # sentencepiece's log is silent

    def test_kinds_of_model_differ(self, subword: SubwordTokenizer, tmp_path: Path) -> None:
        bpe = SubwordTokenizer.train(SENTENCES, 330, tmp_path, "bpe")
        assert [bpe.encode(s) for s in SENTENCES] != [subword.encode(s) for s in SENTENCES]

    def test_save_and_load(self, subword: SubwordTokenizer, tmp_path: Path) -> None:
        subword.save(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert isinstance(loaded, SubwordTokenizer)
        assert loaded.size == subword.size
        assert loaded.encode(SENTENCES[1]) == subword.encode(SENTENCES[1])

    def test_training_saves(self, tmp_path: Path) -> None:
        tokenizer = SubwordTokenizer.train(SENTENCES, 330, tmp_path)
        assert load_tokenizer(tmp_path).encode(SENTENCES[0]) == tokenizer.encode(SENTENCES[0])

    def test_a_small_corpus_gives_a_small_vocabulary(self, tmp_path: Path) -> None:
        assert SubwordTokenizer.train(SENTENCES, 8000, tmp_path).size < 1000

    @pytest.mark.parametrize(("texts", "size"), [([], 300), (SENTENCES, 100)])
    def test_untrainable_is_a_data_error(self, texts: list[str], size: int, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=f"vocabulary of {size} pieces"):
            SubwordTokenizer.train(texts, size, tmp_path)


def test_unknown_kind_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"kind": "syllable"}')
    with pytest.raises(DataError, match=r"'syllable'; there are: word, character, subword"):
        load_tokenizer(tmp_path)
