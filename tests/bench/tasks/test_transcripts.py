from pathlib import Path
from typing import Any

import pytest

from bench.tasks.transcripts import least_tokens, normalise_transcript, train_tokenizer, unusable_symbol
from bench.text import load_tokenizer


@pytest.mark.parametrize(
    ("text", "case", "expected"),
    [
        ("  Two\t\n words ", "keep", "Two words"),
        ("Cafe\u0301 CAF\u00c9", "lower", "caf\u00e9 caf\u00e9"),
        ("\u00df\u03c2", "upper", "SS\u03a3"),
        (
            "\u0390",
            "upper",
            "\u03aa\u0301",
        ),  # three characters, two of which have a joint form
        ("\u3000\u2028 ", "lower", ""),
    ],
    ids=["spaces", "composed", "sharp-s", "recomposed", "blank"],
)
def test_normal_form(text: str, case: Any, expected: str) -> None:
    assert normalise_transcript(text, case) == expected
    assert normalise_transcript(expected, case) == expected


@pytest.mark.parametrize(
    ("text", "symbol"),
    [("a\x00\x07", "U+0000"), ("\x7f", "U+007F"), ("x\udfff", "U+DFFF"), ("\U0001f600 \u200d \ufffd \ue000", None)],
    ids=["control", "delete", "surrogate", "odd-but-text"],
)
def test_symbols_that_are_no_text(text: str, symbol: str | None) -> None:
    assert unusable_symbol(text) == symbol


@pytest.mark.parametrize("units", ["characters", "subwords"])
def test_no_text_has_fewer_tokens_than_said(units: Any, tmp_path: Path) -> None:
    texts = ["one two three", "two one", "three"] * 20
    tokenizer = train_tokenizer(texts, units, 300, tmp_path)
    for text in texts:
        assert least_tokens(text, units) <= len(tokenizer.encode(text)) <= len(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert load_tokenizer(tmp_path).encode(text) == tokenizer.encode(text)
    assert {units: least_tokens("one two", units)} in ({"characters": 7}, {"subwords": 2})
