"""What is sent in Morse code: everything can be sent, the made-up words are what they claim, and splits are apart."""

import re
from collections import Counter

import numpy as np
import pytest

from bench.morse_audio import CODE, elements
from bench.morse_text import PREFIXES, WORDS, draw_message, draw_word, split_of

PRONOUNCEABLE = r"([bcdfghjklmnprstvwxz][aeiouy]){2,3}[bcdfghjklmnprstvwxz]?"
GROUP = r"[a-z]{3,5}"
CALL_SIGN = rf"({'|'.join(PREFIXES)})[0-9][a-z]{{1,3}}(/[pm])?"
NUMBER = r"[0-9]{3,4}|[0-9]{1,2}\.[0-9]{2}"


def drawn(count: int, words: int = 1, random_words: float = 1.0, punctuation: float = 0.0) -> list[str]:
    rng = np.random.default_rng(5)
    return [draw_message(rng, words, random_words, punctuation, lambda text: True) for _ in range(count)]


def test_every_word_is_there_once_and_can_be_sent() -> None:
    assert len(set(WORDS)) == len(WORDS) > 400
    assert len(set(PREFIXES)) == len(PREFIXES)
    for word in (*WORDS, *PREFIXES):
        elements(word)


def test_made_up_words_are_of_four_kinds() -> None:
    rng = np.random.default_rng(1)
    words = [draw_word(rng, 1.0) for _ in range(4000)]
    assert all(re.fullmatch(f"{PRONOUNCEABLE}|{GROUP}|{CALL_SIGN}|{NUMBER}", word) for word in words)
    for kind in (CALL_SIGN, NUMBER, f"{PRONOUNCEABLE}|{GROUP}"):
        share = sum(bool(re.fullmatch(kind, word)) for word in words) / len(words)
        # One kind, one kind, two kinds of four; the standard error is below 0.8 %.
        assert share == pytest.approx(0.5 if kind.startswith(PRONOUNCEABLE) else 0.25, abs=0.03)
    assert len(set(words)) > 3500
    # 1000 code groups of four letters on average hold each letter 1000 * 4 / 26 = 154 times.
    letters = Counter("".join(word for word in words if re.fullmatch(GROUP, word)))
    assert min(letters[letter] for letter in "abcdefghijklmnopqrstuvwxyz") > 100


def test_the_share_of_made_up_words() -> None:
    assert set(drawn(300, random_words=0)) <= set(WORDS)
    known = sum(text in WORDS for text in drawn(2000, random_words=0.3))
    assert known / 2000 == pytest.approx(0.7, abs=0.04)  # the standard error is 1 %


def test_marks_follow_their_share_of_words() -> None:
    plain, marked = drawn(500, words=4), drawn(500, words=4, punctuation=0.25)
    assert all(len(text.split(" ")) == 4 and not set(text) & set(",?=") for text in plain)
    between = sum(len(re.findall(r", | = ", text)) for text in marked)
    behind = sum(text[-1] in ".?" for text in marked)
    assert between / 1500 == pytest.approx(0.25, abs=0.04)
    assert behind / 500 == pytest.approx(0.25, abs=0.06)
    for text in drawn(50, words=4, punctuation=1):
        assert len(re.findall(r", | = ", text)) == 3
        assert text[-1] in ".?"
        elements(text)


def test_every_character_comes_up() -> None:
    assert set("".join(drawn(1000, words=3, random_words=0.5, punctuation=0.1))) == {*CODE, " "}


def test_a_message_ends_before_the_word_that_does_not_fit() -> None:
    rng = np.random.default_rng(3)
    limit = 12
    texts = [draw_message(rng, 6, 0.0, 0.5, lambda text: len(text) <= limit) for _ in range(300)]
    assert max(map(len, texts)) == limit
    assert len({len(text.split()) for text in texts}) > 1
    assert all(draw_message(rng, 3, 0.0, 1.0, lambda text: False) in WORDS for _ in range(20))


def test_splits_are_apart_and_known_for_good() -> None:
    texts = drawn(4000)
    shares = Counter(split_of(text) for text in texts)
    # The standard error of a half is 0.8 %.
    assert shares["train"] / 4000 == pytest.approx(0.5, abs=0.03)
    assert shares["dev"] / 4000 == pytest.approx(0.25, abs=0.03)
    assert shares["test"] / 4000 == pytest.approx(0.25, abs=0.03)
    # Depends on the text alone: not on the process, whose hash() is salted. As `b2sum -l 64` has it, the first bytes
    # are 40, b9, 5e and 47, which modulo 4 are 0, 1, 2 and 3.
    assert [split_of(text) for text in ("a", "cq", "the", "all")] == ["train", "train", "dev", "test"]
