"""Dates: every reference names the source's moment, and the same seed gives the same bytes."""

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bench.preparation import PreparedData
from bench.tasks.base import SPLITS, Example
from bench.tasks.dates import Dates, DatesConfig, Renderer, find_locale, source_styles, target_styles
from bench.tasks.registry import load_task
from bench.text import normalise
from models.interface import UNK

SMALL: dict[str, Any] = {"train_sentences": 300, "dev_sentences": 40, "test_sentences": 40}

WEEKDAYS = {
    "de": "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag",
    "en": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "fr": "lundi mardi mercredi jeudi vendredi samedi dimanche",
}
MONTHS = {
    "de": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
    "en": "January February March April May June July August September October November December",
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
}
NUMERIC = {"de": r"(?P<d>\d+)\.(?P<m>\d+)\.", "en": r"(?P<m>\d+)/(?P<d>\d+)/", "fr": r"(?P<d>\d+)/(?P<m>\d+)/"}
NAMED = {"de": r"(?P<d>\d+)\. (?P<m>\w+)\.? ", "en": r"(?P<m>\w+) (?P<d>\d+), ", "fr": r"(?P<d>\d+) (?P<m>\w+)\.? "}
CLOCK = r"(\d+)(?:[:.]| h )(\d\d)(?: (AM|PM|noon|midnight|at night|in the (?:morning|afternoon|evening))| Uhr|,|$)"


def read(text: str, language: str) -> datetime.datetime:
    """Parse a phrase of three languages, apart from how Babel writes it, and check the weekday if it names one."""
    clock = re.search(CLOCK, text)
    assert clock, text
    hour, minute, half = int(clock[1]), int(clock[2]), clock[3]
    if half:
        hour = hour % 12 + 12 * (half in ("PM", "noon", "at night", "in the afternoon", "in the evening"))
    rest = text.replace(clock[0], " ")
    date = re.search(NUMERIC[language] + r"(?P<y>\d{4})", rest) or re.search(NAMED[language] + r"(?P<y>\d{4})", rest)
    assert date, text
    month = int(date["m"]) if date["m"].isdigit() else one_of(MONTHS[language].split(), date["m"]) + 1
    moment = datetime.datetime(int(date["y"]), month, int(date["d"]), hour, minute)
    for weekday in set(re.findall(r"[^\W\d]+", rest.replace(date[0], ""))) - {"um", "at", "on", "à"}:
        assert one_of(WEEKDAYS[language].split(), weekday) == moment.weekday(), text
    return moment


def one_of(names: list[str], word: str) -> int:
    """Return the position of the only name that begins with `word`."""
    found = [i for i, name in enumerate(names) if name.startswith(word)]
    assert len(found) == 1, word
    return found[0]


def examples(**config: Any) -> dict[str, list[Example]]:
    result: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for split, example in Dates(DatesConfig(**{**SMALL, **config})).examples():
        result[split].append(example)
    return result


def prepare(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    Dates(DatesConfig(**{**SMALL, **config})).prepare(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestStyles:
    MOMENT = datetime.datetime(2023, 8, 13, 10, 6)  # a Sunday

    def test_twelve_german_styles(self) -> None:
        locale = find_locale("de")
        dates = ["Sonntag, 13. August 2023", "13.8.2023", "So., 13. Aug. 2023", "13. August 2023"]
        expected = {f"{date}, 10:06" for date in dates}
        expected |= {f"{date} um 10:06 Uhr" for date in dates}
        expected |= {f"10:06 Uhr, {date}" for date in dates}
        assert {Renderer(locale)(style, self.MOMENT) for style in target_styles(locale, 12)} == expected

    def test_english_sources(self) -> None:
        locale = find_locale("en")
        evening = self.MOMENT.replace(hour=22)
        dates = ["Sunday, August 13, 2023", "Sun, Aug 13, 2023", "Sun, 8/13/2023"]
        expected = {f"{date}, 10:06 PM" for date in dates} | {f"{date} at 10:06 PM" for date in dates}
        expected |= {f"10:06 PM on {date}" for date in dates} | {f"{date}, 22:06" for date in dates}
        expected |= {f"{date}, 10:06 at night" for date in dates}
        assert {Renderer(locale)(style, evening) for style in source_styles(locale)} == expected

    def test_fewer_styles_are_the_first_of_more(self) -> None:
        locale = find_locale("de")
        all_styles = target_styles(locale, 10_000)
        assert len(set(all_styles)) == len(all_styles) > 12
        for count in (1, 2, 5, 12, 20):
            assert target_styles(locale, count) == all_styles[:count]

    def test_a_locale_with_fewer_styles_gives_all_of_them(self, tmp_path: Path) -> None:
        count = len(target_styles(find_locale("ja"), 12))
        assert 1 < count < 12
        folder = prepare(tmp_path / "ja", target_language="ja")
        assert json.loads((folder / "data.json").read_text())["styles"] == count

    @pytest.mark.parametrize("language", ["en", "de", "fr", "ja", "ar", "hi", "zh_Hant", "en_Shaw"])
    def test_sources_tell_minutes_and_centuries_apart(self, language: str) -> None:
        locale = find_locale(language)
        write = Renderer(locale)
        moments = [self.MOMENT + datetime.timedelta(minutes=7 * i) for i in range(24 * 60 // 7)]
        moments.append(self.MOMENT.replace(year=1623))  # 400 years have a whole number of weeks: a Sunday, too
        for style in source_styles(locale):
            assert len({write(style, moment) for moment in moments}) == len(moments), style


class TestExamples:
    @pytest.mark.parametrize(("source", "target"), [("en", "de"), ("de", "en"), ("en", "fr"), ("fr", "de")])
    def test_every_reference_names_the_moment_of_the_source(self, source: str, target: str) -> None:
        for split in examples(source_language=source, target_language=target).values():
            for example in split:
                moment = read(example.source, source)
                assert [read(text, target) for text in example.references] == [moment] * len(example.references)

    def test_references_are_distinct_and_hold_the_target(self) -> None:
        sizes = set()
        for split in examples().values():
            for example in split:
                assert len(set(example.references)) == len(example.references) <= 12
                assert example.target in example.references
                assert all(normalise(text) == text for text in (example.source, *example.references))
                sizes.add(len(example.references))
        assert max(sizes) == 12

    def test_styles_that_coincide_are_one_answer(self) -> None:
        # German has 8 dates x 4 phrasings. "Mai" is its own abbreviation, so in May "d. MMMM y" and "d. MMM y" give the
        # same phrase, and 7 x 4 are left; in February all differ.
        wide = examples(styles=1000)["train"]
        assert {len(e.references) for e in wide if "Mai " in e.target} == {28}
        assert {len(e.references) for e in wide if "Februar " in e.target} == {32}
        assert all(len(set(e.references)) == len(e.references) for e in wide)

    def test_targets_take_every_style(self) -> None:
        chosen = {e.references.index(e.target) for e in examples()["train"] if len(e.references) == 12}
        assert chosen == set(range(12))

    def test_no_moment_comes_twice(self) -> None:
        # Of 2,080 free draws from the 527,040 minutes of 2024, 2080^2 / (2 * 527040) = 4 pairs would coincide.
        splits = examples(first_year=2024, last_year=2024, train_sentences=2000)
        moments = [read(e.source, "en") for split in splits.values() for e in split]
        assert len(set(moments)) == len(moments) == 2080
        assert {moment.year for moment in moments} == {2024}
        ids = [e.id for split in splits.values() for e in split]
        assert len(set(ids)) == len(ids)

    def test_one_style_has_one_right_answer(self) -> None:
        assert {len(e.references) for e in examples(styles=1)["test"]} == {1}


class TestPrepare:
    def test_same_seed_same_bytes(self, tmp_path: Path) -> None:
        first, again = contents(prepare(tmp_path / "a", seed=3)), contents(prepare(tmp_path / "b", seed=3))
        other = contents(prepare(tmp_path / "c", seed=4))
        assert first == again
        assert sorted(first) == ["data.json", "dev.jsonl", "test.jsonl", "tokenizer.json", "train.jsonl"]
        assert all(first[f"{split}.jsonl"] != other[f"{split}.jsonl"] for split in SPLITS)

    def test_prepared_data_reads_back(self, tmp_path: Path) -> None:
        data = PreparedData(prepare(tmp_path / "data"))
        expected = examples()
        assert data.examples("dev") == expected["dev"]
        assert data.examples("test") == expected["test"]
        assert data.examples("train") == [Example(e.id, e.source, e.target, (e.target,)) for e in expected["train"]]
        assert data.counts["sentences"] == {"train": 300, "dev": 40, "test": 40}

    def test_lengths_hold_for_sources_and_all_references(self, tmp_path: Path) -> None:
        data = PreparedData(prepare(tmp_path / "data"))
        all_examples = [e for split in examples().values() for e in split]
        encode = data.tokenizer.encode
        assert data.data_spec.max_source_length == max(len(encode(e.source)) for e in all_examples)
        assert data.data_spec.max_target_length == max(len(encode(r)) for e in all_examples for r in e.references)
        assert data.data_spec.vocab_size == data.counts["vocabulary_size"]

    def test_the_training_split_is_fully_known(self, tmp_path: Path) -> None:
        data = PreparedData(prepare(tmp_path / "data"))
        for example in examples()["train"]:
            for text in (example.source, *example.references):
                ids = data.tokenizer.encode(text)
                assert UNK not in ids
                assert data.tokenizer.decode(ids) == text

    def test_unknown_tokens_of_a_tiny_config_are_counted(self, tmp_path: Path) -> None:
        data = PreparedData(prepare(tmp_path / "data", train_sentences=3))
        for split in ("dev", "test"):
            texts = [text for e in data.examples(split) for text in (e.source, *e.references)]
            unknown = sum(data.tokenizer.encode(text).count(UNK) for text in texts)
            assert data.counts["unknown_tokens"][split] == unknown > 0
        assert data.counts["unknown_tokens"]["train"] == 0

    def test_three_thousand_sentences_know_every_token(self, tmp_path: Path) -> None:
        folder = prepare(tmp_path / "data", train_sentences=3000)
        assert json.loads((folder / "data.json").read_text())["unknown_tokens"] == {"train": 0, "dev": 0, "test": 0}


class TestConfig:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"target_language": "de_DEE"}, r"unknown locale 'de_DEE'; did you mean 'de_DE'\?"),
            ({"source_language": "german!"}, "unknown locale 'german!'"),
            ({"source_language": ""}, "unknown locale ''"),
            ({"target_language": "en"}, "both 'en'; they must differ"),
            ({"first_year": 2020, "last_year": 2019}, "first_year 2020 is after last_year 2019"),
            # 2023 has 365 * 24 * 60 = 525,600 minutes.
            (
                {"first_year": 2023, "last_year": 2023, "train_sentences": 525_600},
                "526,600 sentences are wanted, but 2023 to 2023 has only 525,600 minutes",
            ),
        ],
    )
    def test_errors_say_what_is_wrong(self, config: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            DatesConfig(**config)

    def test_regions_and_hyphens_are_understood(self) -> None:
        assert str(find_locale("de-AT")) == "de_AT"
        DatesConfig(source_language="en_GB", target_language="en_US")

    def test_the_registry_finds_the_task(self) -> None:
        assert load_task("dates") is Dates
        assert set(Dates(DatesConfig()).fingerprint()) == {"babel"}
