"""Multi30k: translation of image captions between English, German, French and Czech.

Elliott, Frank, Sima'an and Specia 2016, "Multi30K: Multilingual English-German Image Descriptions"; the French side,
the 2017 test sets and the Czech side are described by Elliott et al. 2017 and Barrault et al. 2018. For research use.
The raw text of task 1 is taken, one reference per sentence, neither lower-cased nor tokenised.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from bench.errors import DataError
from bench.fetch import locate, sha256_of
from bench.tasks.base import SPLITS, Task
from bench.tasks.corpus import CorpusOptions, ParallelText, library_versions, prepare_parallel, read_parallel

COMMIT = "a3d2e0d26b56f3846f66a952536ffed4e401d05a"
"""State of the repository that the files are taken from."""
URL = f"https://raw.githubusercontent.com/multi30k/dataset/{COMMIT}/data/task1/raw"

LINES = {"train": 29_000, "val": 1014, "test_2016_flickr": 1000, "test_2017_flickr": 1000, "test_2017_mscoco": 461}
"""Sentences in each file, as the repository states them."""

# Files without a checksum here (French, Czech, the 2017 test sets) could not be obtained when this was written. They
# are verified by the checksum inside the gzip format and by their number of lines; the commit pins their content.
SHA256 = {
    "train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "val.en.gz": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "val.de.gz": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "test_2016_flickr.en.gz": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
    "test_2016_flickr.de.gz": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
}

Language = Literal["en", "de", "fr", "cs"]


class Multi30kConfig(CorpusOptions):
    """Which languages, which test set, how much of it, and the vocabulary."""

    source_language: Language = "en"
    """Language to translate from."""
    target_language: Language = "de"
    """Language to translate into."""
    test_set: Literal["test_2016_flickr", "test_2017_flickr", "test_2017_mscoco"] = "test_2016_flickr"
    """Test set; Czech has only that of 2016."""
    train_sentences: int | None = Field(None, ge=1)
    """Train on the first this many pairs; all by default."""

    @model_validator(mode="after")
    def _exists(self) -> Multi30kConfig:
        languages = (self.source_language, self.target_language)
        if self.source_language == self.target_language:
            raise ValueError(f"source_language and target_language are both {self.source_language!r}")
        if "cs" in languages and self.test_set != "test_2016_flickr":
            raise ValueError(f"test_set {self.test_set!r} has no Czech; allowed with 'cs': 'test_2016_flickr'")
        return self


class Multi30k(Task):
    """Image captions, one reference each."""

    name = "multi30k"
    title = "Multi30k"
    Config = Multi30kConfig
    metrics: ClassVar = ("bleu", "chrf", "ter", "repetition_rate", "length_ratio", "empty_rate")
    selection_metric = "bleu"

    config: Multi30kConfig

    def fingerprint(self) -> dict[str, Any]:
        """Return the checksums of the six files and the versions of the libraries; missing files are downloaded."""
        paths = [path for split in SPLITS for path in self._paths(split)]
        return {"files": {path.name: sha256_of(path) for path in paths}, **library_versions()}

    def prepare(self, folder: Path) -> None:
        """Write the prepared data into `folder`."""
        texts = {split: self._read(split) for split in SPLITS}
        prepare_parallel(folder, texts, self.config, self.config.train_sentences)

    def _stem(self, split: str) -> str:
        """Return how the repository calls `split`."""
        return {"train": "train", "dev": "val", "test": self.config.test_set}[split]

    def _paths(self, split: str) -> tuple[Path, Path]:
        """Return the files of `split`, source and target, downloaded where they are missing."""
        source, target = (
            f"{self._stem(split)}.{language}.gz"
            for language in (self.config.source_language, self.config.target_language)
        )
        return _locate(source), _locate(target)

    def _read(self, split: str) -> ParallelText:
        text = read_parallel(*self._paths(split))
        expected = LINES[self._stem(split)]
        if len(text.sources) != expected:
            raise DataError(
                f"{text.source_path}, {text.target_path}: {len(text.sources)} lines each where {expected} are expected"
            )
        return text


def _locate(filename: str) -> Path:
    return locate(Multi30k.name, filename, f"{URL}/{filename}", SHA256.get(filename))


TASK = Multi30k
