"""What becomes of bad utterances, and of transcripts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.tasks.base import SPLITS
from bench.tasks.speech import Utterance
from models.interface import UNK
from tests.bench.utterances import SHIFT, SpeechCorpus, arrays, unreadable, utterance

REASONS = {"unreadable", "too_short", "too_long", "no_text", "symbols", "many_tokens"}


@pytest.fixture
def corpus(tmp_path: Path) -> SpeechCorpus:
    return SpeechCorpus(tmp_path)


BAD: dict[str, tuple[Utterance, str, str]] = {
    "unreadable": (unreadable("bad"), "unreadable", "no such file"),
    "no-sample": (utterance("bad", "abc", samples=0), "too_short", "0 samples give no frame"),
    "no-frame": (utterance("bad", "abc", samples=79), "too_short", "79 samples give no frame"),
    "too-long": (utterance("bad", "abc", samples=32_160), "too_long", "2.01 s are more than max_seconds=2"),
    "no-text": (utterance("bad", ""), "no_text", "the transcript is empty"),
    "blank-text": (utterance("bad", " \t\u3000"), "no_text", "the transcript is empty"),
    "control": (utterance("bad", "a\x1bb"), "symbols", "the transcript has U+001B, which cannot be encoded"),
    "surrogate": (
        utterance("bad", "a\ud83d"),
        "symbols",
        "the transcript has U+D83D, which cannot be encoded",
    ),
    "many": (
        utterance("bad", "abc" * 5, 800),
        "many_tokens",
        "15 characters are more than max_target_tokens=14",
    ),
}
LIMITS: dict[str, Any] = {"max_seconds": 2, "max_target_tokens": 14}


class TestBadUtterances:
    @pytest.mark.parametrize(("bad", "reason", "problem"), BAD.values(), ids=BAD)
    def test_in_training_is_dropped_counted_and_listed(
        self, corpus: SpeechCorpus, bad: Utterance, reason: str, problem: str
    ) -> None:
        good = corpus.prepare("good", **LIMITS)
        corpus.splits["train"].insert(2, bad)
        data = corpus.prepare(**LIMITS)
        train = data.counts["splits"]["train"]
        assert (train["read"], train["kept"]) == (5, 4)
        assert train["dropped"] == {**dict.fromkeys(REASONS, 0), reason: 1}
        assert train["dropped_utterances"] == [{"id": "bad", "reason": reason, "problem": f"bad.wav: {problem}"}]
        for path in good.folder.iterdir():  # nothing else has changed
            assert path.name == "data.json" or path.read_bytes() == (data.folder / path.name).read_bytes()

    @pytest.mark.parametrize(("bad", "reason", "problem"), BAD.values(), ids=BAD)
    @pytest.mark.parametrize("split", ["dev", "test"])
    def test_in_development_or_test_is_refused(
        self, corpus: SpeechCorpus, bad: Utterance, reason: str, problem: str, split: str
    ) -> None:
        corpus.splits[split].append(bad)
        assert corpus.error(**LIMITS) == f"bad.wav: {problem} ({split} utterances are never dropped)"

    def test_the_place_where_it_is_listed_is_named(self, corpus: SpeechCorpus) -> None:
        corpus.splits["train"] += [
            Utterance("u", "abc", "u.wav", unreadable("u").load, place="list.jsonl:7"),
            Utterance("v", "", "v.wav", unreadable("v").load, place="list.jsonl:8"),
        ]
        listed = corpus.prepare().counts["splits"]["train"]["dropped_utterances"]
        assert [row["problem"] for row in listed] == [
            "list.jsonl:7: u.wav: no such file",
            "list.jsonl:8: the transcript is empty",
        ]

    def test_exactly_the_limits_are_kept(self, corpus: SpeechCorpus) -> None:
        corpus.splits["train"].append(utterance("limit", "abc" * 5, samples=32_000))
        train = corpus.prepare(max_seconds=2, max_target_tokens=15).counts["splits"]["train"]
        assert train["kept"] == 5

    def test_a_split_of_which_nothing_is_left_is_refused(self, corpus: SpeechCorpus) -> None:
        corpus.splits["train"] = [unreadable("x"), utterance("y", ""), unreadable("z")]
        problem = "no train utterance is left of 3 (2 unreadable, 1 no_text; the first: x.wav: no such file)"
        assert corpus.error() == problem

    @pytest.mark.parametrize("split", SPLITS)
    def test_an_empty_split_is_refused(self, corpus: SpeechCorpus, split: str) -> None:
        corpus.splits[split] = []
        assert corpus.error() == f"no {split} utterance is left of 0"


class TestTranscripts:
    def test_characters_of_training_and_unknown_ones_elsewhere(self, corpus: SpeechCorpus) -> None:
        corpus.splits["test"][1] = utterance("e1", "a?b!c?", seed=1)
        data = corpus.prepare()
        assert data.tokenizer.size == data.tokenizer.encode("c")[0] + 1  # specials, then the space, a, b and c
        assert {split: data.counts["splits"][split]["unknown_characters"] for split in SPLITS} == {
            "train": 0,
            "dev": 0,
            "test": 3,
        }
        example = data.examples("test")[1]
        assert example.references == ("a?b!c?",)
        ids = data.encode([example])[0].target
        assert [i == UNK for i in ids] == [False, True, False, True, False, True]

    @pytest.mark.parametrize(
        ("case", "expected"),
        [("lower", "straße ½cba"), ("upper", "STRASSE ½CBA"), ("keep", "Straße ½Cba")],
        ids=["lower", "upper", "keep"],
    )
    def test_case_and_form(self, corpus: SpeechCorpus, case: str, expected: str) -> None:
        # What tokenisers give back is in NFKC, in which the half is three characters.
        corpus.splits["train"].append(utterance("u", "Straße \u2003\n ½Cba ", 8000))
        data = corpus.prepare(case=case)
        example = data.examples("train")[-1]
        assert example.target == expected.replace("½", "1\u20442")
        assert data.tokenizer.decode(data.tokenizer.encode(example.target)) == example.target

    @pytest.mark.parametrize(
        ("text", "frames", "tight"),
        [
            ("abc", 12, 0),  # 3 positions for 3 symbols
            ("abc", 11, 1),
            ("abb", 16, 0),  # a blank stands between the two
            ("abb", 15, 1),
            ("bbb", 20, 0),
            ("bbb", 19, 1),
        ],
    )
    def test_text_that_its_frames_cannot_hold_is_counted_and_kept(
        self, corpus: SpeechCorpus, text: str, frames: int, tight: int
    ) -> None:
        for split in ("train", "test"):
            corpus.splits[split].append(utterance(f"{split}-u", text, samples=frames * SHIFT))
        data = corpus.prepare()
        for split in ("train", "test"):
            assert data.counts["splits"][split]["tight"] == tight
            assert data.examples(split)[-1].target == text

    def test_subwords(self, corpus: SpeechCorpus) -> None:
        corpus.splits["train"] = [utterance(f"t{i}", "one two three four", 3200, seed=i) for i in range(20)]
        corpus.splits["test"][0] = utterance("e0", "zebra", 3200)
        data = corpus.prepare(units="subwords", vocab_size=300)
        assert len(data.tokenizer.encode("one two three four")) < len("one two three four")
        assert data.counts["splits"]["test"]["unknown_characters"] == 0  # bytes spell what is not a piece
        assert data.tokenizer.decode(data.tokenizer.encode("zebra")) == "zebra"

    @pytest.mark.parametrize("split", ["dev", "test"])
    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("a " * 9, "9 words are more than max_target_tokens=8"),
            # No q is in training, so each costs a byte's token, and the mark of the word's beginning one more.
            ("q" * 8, "9 subwords are more than max_target_tokens=8"),
        ],
        ids=["words", "subwords"],
    )
    def test_too_many_subwords_in_development_or_test(
        self, corpus: SpeechCorpus, split: str, text: str, problem: str
    ) -> None:
        corpus.splits[split].insert(1, utterance("u", text, 3200))
        message = corpus.error(units="subwords", vocab_size=300, max_target_tokens=8)
        assert message == f"u.wav: {problem} ({split} utterances are never dropped)"

    def test_too_many_subwords_in_training(self, corpus: SpeechCorpus) -> None:
        for given in corpus.splits.values():
            given[:] = [Utterance(u.id, "one two", u.name, u.load) for u in given]
        raw = corpus.raw("train")
        corpus.splits["train"].insert(1, utterance("words", "one " * 7, 3200))
        corpus.splits["train"].insert(1, utterance("pieces", "qxzjkvwh", 3200, seed=5))  # one word, once
        data = corpus.prepare(units="subwords", vocab_size=300, max_target_tokens=6)
        train = data.counts["splits"]["train"]
        assert (train["read"], train["kept"], train["dropped"]["many_tokens"]) == (6, 4, 2)
        assert [row["id"] for row in train["dropped_utterances"]] == ["words", "pieces"]
        assert data.counts["max_target_length"] <= 6
        frames = np.concatenate(raw).astype(np.float64)
        for features, own in zip(arrays(data, "train", "features", "frames"), raw, strict=True):
            np.testing.assert_allclose(features, (own - frames.mean(axis=0)) / frames.std(axis=0), atol=2e-3)
