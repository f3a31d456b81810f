"""Dates: translate a phrase that names a moment, where several translations are right and all of them are known.

Phrases are written by Babel from the Unicode CLDR, so nothing is downloaded. A source names weekday, day, month, year,
hour and minute, but not how the target is to be put: the training target is one of the target language's styles at
random (some are more popular than others, as in real text), and every style is a right answer. This is the
multimodality problem of non-autoregressive decoding (Gu et al. 2018) in its purest form: a decoder that picks its
tokens independently splices styles.
"""

from __future__ import annotations

import datetime
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import babel
from babel import Locale, UnknownLocaleError
from babel.dates import parse_pattern
from babel.localedata import locale_identifiers
from pydantic import Field, field_validator, model_validator

from bench.errors import nearest
from bench.steps import write_json
from bench.tasks.base import SPLITS, Example, Task
from bench.text import WordTokenizer, normalise, split_words
from models.interface import Options

_MINUTE = datetime.timedelta(minutes=1)
_SHAPE = (4, 3)
"""Date patterns by phrasings of the first 12 styles; see `target_styles`."""

_IDIOMS = {
    "de": (("{1} um {0}", "HH:mm 'Uhr'"), ("{0}, {1}", "HH:mm 'Uhr'"), ("{1}, {0}", "H.mm 'Uhr'")),
    "en": (("{1} at {0}", "h:mm a"), ("{0} on {1}", "h:mm a"), ("{1}, {0}", "h:mm B")),
    "fr": (("{1} à {0}", "HH 'h' mm"), ("{0}, {1}", "HH 'h' mm"), ("{1}, {0}", "HH 'h' mm")),
}
"""Usual phrasings that Babel's data lacks, by language: how clock {0} and date {1} are joined, and the clock's pattern.

They put words between the parts and change their order. Languages that are not here have CLDR's phrasings only.
"""


@dataclass(frozen=True)
class Style:
    """One way to put a moment into words."""

    date: str
    """CLDR pattern of the date."""
    clock: str
    """CLDR pattern of hour and minute."""
    glue: str
    """How clock {0} and date {1} are joined."""

    @property
    def description(self) -> str:
        """The patterns, joined."""
        return self.glue.format(self.clock, self.date)


class Renderer:
    """Writes moments in the styles of one locale. Babel's formatting is slow, so every part is kept."""

    def __init__(self, locale: Locale) -> None:
        self._locale = locale
        self._parts: dict[tuple[str, datetime.date | datetime.time], str] = {}

    def __call__(self, style: Style, moment: datetime.datetime) -> str:
        """Return the normalised phrase for `moment`."""
        return style.glue.format(self.part(style.clock, moment.time()), self.part(style.date, moment.date()))

    def part(self, pattern: str, value: datetime.date | datetime.time) -> str:
        """Return `value` formatted by a CLDR pattern."""
        key = (pattern, value)
        if key not in self._parts:
            self._parts[key] = normalise(parse_pattern(pattern).apply(value, self._locale))
        return self._parts[key]


def find_locale(language: str) -> Locale:
    """Return Babel's locale called `language`, such as en, de_AT or zh-Hant.

    Raises:
        ValueError: there is none, with the nearest name.
    """
    try:
        return Locale.parse(language, sep="-" if "-" in language else "_")
    except (UnknownLocaleError, ValueError):
        hint = nearest(language, locale_identifiers())
        raise ValueError(f"unknown locale {language!r}{hint} (any CLDR locale is allowed)") from None


def source_styles(locale: Locale) -> list[Style]:
    """Return the styles that determine every other: those with a weekday (CLDR gives them all digits of the year)."""
    dates = [date for date in _dates(locale) if _fields(date) & set("Ec")]
    return [Style(date, clock, glue) for date in dates for glue, clock in _phrasings(locale)]


def target_styles(locale: Locale, count: int) -> list[Style]:
    """Return the first `count` styles of `locale`, or all if there are fewer.

    The first n are nearly all combinations of n_1 dates and n_2 phrasings (4 x 3 for n = 12), so that a right date in
    a right phrasing is a right answer, and what counts as spliced is spliced within a part.
    """
    dates, phrasings = _dates(locale), _phrasings(locale)
    grid = [(i, j) for i in range(len(dates)) for j in range(len(phrasings))]
    grid.sort(key=lambda at: (max((at[0] + 1) / _SHAPE[0], (at[1] + 1) / _SHAPE[1]), at))
    return [Style(dates[i], phrasings[j][1], phrasings[j][0]) for i, j in grid[:count]]


def _dates(locale: Locale) -> list[str]:
    """Return the locale's patterns of day, month and year (and perhaps weekday): unlike ones first, then the others."""
    formats = {name: pattern.pattern for name, pattern in locale.date_formats.items()}
    skeletons = {name: pattern.pattern for name, pattern in locale.datetime_skeletons.items()}
    first = [formats["full"], skeletons.get("yMd"), skeletons.get("yMMMEd"), formats["long"], formats["short"]]
    patterns = [pattern for pattern in first if pattern] + list(formats.values())
    patterns += [pattern for _, pattern in sorted(skeletons.items())]
    return [
        pattern
        for pattern in dict.fromkeys(patterns)
        if _fields(pattern) <= set("dMLyEc") and {"d", "y"} <= _fields(pattern) and _fields(pattern) & set("ML")
    ]


def _phrasings(locale: Locale) -> list[tuple[str, str]]:
    """Return (glue, clock pattern) pairs: CLDR's usual one, the language's idioms, the rest of CLDR's."""
    glues = dict.fromkeys(str(glue).replace("'", "") for glue in locale.datetime_formats.values())
    clocks = [locale.time_formats["short"].pattern]
    if "Hm" in locale.datetime_skeletons:
        clocks.append(locale.datetime_skeletons["Hm"].pattern)
    usual = [(normalise(glue), normalise(clock)) for clock in clocks for glue in glues]
    idioms = () if locale.script else _IDIOMS.get(locale.language, ())  # they are written in the usual script
    return list(dict.fromkeys([*usual[:1], *idioms, *usual[1:]]))


def _fields(pattern: str) -> set[str]:
    """Return the field letters of a CLDR pattern, quoted text apart."""
    return set(re.findall(r"[A-Za-z]", re.sub(r"'[^']*'", "", pattern)))


class DatesConfig(Options):
    """What to generate."""

    source_language: str = "en"
    """Language of the sources: any CLDR locale, such as en, de_AT or ja."""
    target_language: str = "de"
    """Language of the targets; differs from the source's."""
    styles: int = Field(12, ge=1)
    """Right answers per source, at most; fewer if the locale has fewer styles, or if two styles coincide."""
    style_skew: float = Field(1.0, ge=0)
    """Style number r is chosen with probability proportional to r^-skew: 1 is Zipf's law, 0 is uniform."""
    train_sentences: int = Field(20_000, ge=1)
    """Training pairs."""
    dev_sentences: int = Field(500, ge=1)
    """Development pairs."""
    test_sentences: int = Field(500, ge=1)
    """Test pairs."""
    first_year: int = Field(1950, ge=1, le=9999)
    """Earliest year of a moment."""
    last_year: int = Field(2049, ge=1, le=9999)
    """Latest year of a moment."""
    seed: int = Field(1, ge=0)
    """Chooses the moments, the style of each source and the style of each training target."""

    @field_validator("source_language", "target_language")
    @classmethod
    def _known(cls, language: str) -> str:
        if not source_styles(find_locale(language)):
            raise ValueError(f"locale {language!r} has no style that names weekday, date and time")
        return language

    @model_validator(mode="after")
    def _consistent(self) -> DatesConfig:
        if find_locale(self.source_language) == find_locale(self.target_language):
            raise ValueError(f"source_language and target_language are both {self.source_language!r}; they must differ")
        if self.first_year > self.last_year:
            raise ValueError(f"first_year {self.first_year} is after last_year {self.last_year}")
        if sum(self.sentences.values()) > self.minutes:
            raise ValueError(
                f"{sum(self.sentences.values()):,} sentences are wanted, but {self.first_year} to {self.last_year} "
                f"has only {self.minutes:,} minutes"
            )
        return self

    @property
    def sentences(self) -> dict[str, int]:
        """Number of pairs in each split."""
        return dict(zip(SPLITS, (self.train_sentences, self.dev_sentences, self.test_sentences), strict=True))

    @property
    def minutes(self) -> int:
        """Number of moments to choose from."""
        first, last = datetime.date(self.first_year, 1, 1), datetime.date(self.last_year, 12, 31)
        return ((last - first).days + 1) * 24 * 60


class Dates(Task):
    """Date-time phrases with several right translations."""

    name = "dates"
    title = "Date-time phrases"
    Config = DatesConfig
    metrics = ("exact_match", "bleu", "chrf", "mixed_mode_rate", "repetition_rate", "length_ratio", "empty_rate")
    selection_metric = "exact_match"

    config: DatesConfig

    def fingerprint(self) -> dict[str, Any]:
        """Return Babel's version, which stands for its CLDR data."""
        return {"babel": babel.__version__}

    def examples(self) -> Iterator[tuple[str, Example]]:
        """Yield (split, example) in order; no moment, and so no source, comes twice."""
        config = self.config
        rng = random.Random(config.seed)
        write_source = Renderer(find_locale(config.source_language))
        write_target = Renderer(find_locale(config.target_language))
        sources, targets = self._styles()
        start = datetime.datetime(config.first_year, 1, 1)
        popularity = [rank**-config.style_skew for rank in range(1, len(targets) + 1)]
        minutes = iter(rng.sample(range(config.minutes), sum(config.sentences.values())))
        for split, count in config.sentences.items():
            for number in range(count):
                moment = start + next(minutes) * _MINUTE
                source = write_source(rng.choice(sources), moment)
                references = [write_target(style, moment) for style in targets]
                (target,) = rng.choices(references, popularity)
                yield split, Example(f"{split}-{number}", source, target, tuple(dict.fromkeys(references)))

    def prepare(self, folder: Path) -> None:
        """Write the three splits, a word tokeniser that knows the training split, and `data.json`.

        `data.json` counts, beside lengths, sentences and styles, the tokens of each split that are not in the
        vocabulary (none, unless the training split is tiny).
        """
        words: set[str] = set()
        unknown = dict.fromkeys(SPLITS, 0)
        longest_source = longest_target = 0
        for split, examples in groupby(self.examples(), key=lambda item: item[0]):
            with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                for _, example in examples:
                    texts = [split_words(text) for text in (example.source, *example.references)]
                    longest_source = max(longest_source, len(texts[0]))
                    longest_target = max(longest_target, *map(len, texts[1:]))
                    row = example.to_json()
                    if split == "train":
                        words.update(*texts)
                        row["references"] = [example.target]  # all that training reads
                    else:
                        unknown[split] += sum(word not in words for text in texts for word in text)
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        tokenizer = WordTokenizer(sorted(words))
        tokenizer.save(folder)
        sources, targets = self._styles()
        counts = {
            "max_source_length": longest_source,
            "max_target_length": longest_target,
            "sentences": self.config.sentences,
            "unknown_tokens": unknown,
            "vocabulary_size": tokenizer.size,
            "styles": len(targets),
            "source_styles": [style.description for style in sources],
            "target_styles": [style.description for style in targets],
        }
        write_json(folder / "data.json", counts)

    def _styles(self) -> tuple[list[Style], list[Style]]:
        """Return the styles of sources and of targets."""
        source, target = find_locale(self.config.source_language), find_locale(self.config.target_language)
        return source_styles(source), target_styles(target, self.config.styles)


TASK = Dates
