"""The user's own parallel text: six files, line by line, plain or gzip-compressed, UTF-8."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from bench.fetch import sha256_of
from bench.tasks.base import SPLITS, Task
from bench.tasks.corpus import CorpusOptions, library_versions, prepare_parallel, read_parallel


class ParallelTextConfig(CorpusOptions):
    """The files, relative to the current folder (`~` is the home folder), and the vocabulary."""

    train_source: Path
    """Training sources, a sentence a line; gzip-compressed if the name ends in .gz."""
    train_target: Path
    """Translations of the training sources, line by line."""
    dev_source: Path
    """Development sources: checkpoints are selected on them."""
    dev_target: Path
    """References of the development sources."""
    test_source: Path
    """Test sources."""
    test_target: Path
    """References of the test sources."""
    vocab_size: int = Field(8000, gt=257)
    """Subword pieces shared by source and target, 256 bytes and the unknown among them; a small corpus gives fewer."""


class ParallelTextTask(Task):
    """Sentence pairs from files of the user."""

    name = "parallel_text"
    title = "Parallel text"
    Config = ParallelTextConfig
    metrics: ClassVar = ("bleu", "chrf", "ter", "repetition_rate", "length_ratio", "empty_rate")
    selection_metric = "bleu"

    config: ParallelTextConfig

    def fingerprint(self) -> dict[str, Any]:
        """Return the checksum of each file and the versions of the libraries."""
        files = {
            f"{split}_{side}": sha256_of(path)
            for split in SPLITS
            for side, path in zip(("source", "target"), self._paths(split), strict=True)
        }
        return {"files": files, **library_versions()}

    def prepare(self, folder: Path) -> None:
        """Write the prepared data into `folder`."""
        texts = {split: read_parallel(*self._paths(split)) for split in SPLITS}
        prepare_parallel(folder, texts, self.config)

    def _paths(self, split: str) -> tuple[Path, Path]:
        """Return the files of `split`, source and target."""
        source: Path = getattr(self.config, f"{split}_source")
        target: Path = getattr(self.config, f"{split}_target")
        return source.expanduser(), target.expanduser()


TASK = ParallelTextTask
