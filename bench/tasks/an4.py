"""AN4: short utterances read in an office at CMU: letters spelled, numbers, names of commands.

Acero 1993, "Acoustical and Environmental Robustness in Automatic Speech Recognition". 948 training and 130 test
utterances of 74 and 10 speakers, 0.81 h, 16 kHz, close-talking microphone; free for any purpose with its notice.

The transcripts hold upper-case words of the letters A to Z and spaces, nothing else: no marks of noise, no punctuation.
Those of the training split stand between `<s>` and `</s>`, which are no part of what is said.

There is no development set. Every tenth training speaker in alphabetical order, from the fifth on, is held out for it:
89 utterances of 7 speakers, 2 of them women (names beginning with f), where the whole has 21 in 74. So no voice of it
is trained on, and 859 utterances are left to train on.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from bench.audio import read_audio_bytes
from bench.errors import DataError
from bench.features import FeatureOptions
from bench.fetch import data_root, locate, sha256_of
from bench.tasks.base import SPLITS, Task
from bench.tasks.speech import ERROR_KINDS, SpeechOptions, Utterance, library_versions, prepare_speech

COMMIT = "b567d132f43304e70a2b2eca6077f22255311812"
"""State of the repository cmusphinx/an4 that the archive is made from."""
URL = f"https://codeload.github.com/cmusphinx/an4/tar.gz/{COMMIT}"
UPSTREAM = f"an4-{COMMIT}.tar.gz"
"""The repository's own archive, with WAV files."""
FLAC = f"an4-{COMMIT}.flac.tar"
"""The same tree with each WAV file as FLAC; taken if it is there, never downloaded."""

# GitHub packs its archive anew from time to time, with other bytes. It is verified by the checksum inside the gzip
# format and by the number of utterances; the commit pins its content.
SHA256 = {FLAC: "c668a02178b36ba7afc27871e50f8bad58132fa67ce3620bf08d19a4f5203cb5"}

UTTERANCES = {"train": 948, "test": 130}
"""Utterances of each list, as the repository has them."""
DEV_SPEAKERS = slice(4, None, 10)
"""Which of the sorted training speakers are held out for development."""

_LINE = re.compile(r"(?:<s> )?(?P<text>[A-Z]+(?: [A-Z]+)*)(?: </s>)? \((?P<id>[^()\s]+)\)")


class An4Features(FeatureOptions):
    """Filterbank for speech of 16 kHz."""

    num_mels: int = Field(80, ge=1, le=512)
    """Mel bands, and so numbers in a frame."""


class An4Config(SpeechOptions):
    """Features, units and limits."""

    features: An4Features = An4Features()
    """How audio becomes frames."""


class An4(Task):
    """Spelled and spoken words and numbers, one reference each."""

    name = "an4"
    title = "AN4"
    Config = An4Config
    metrics: ClassVar = ("wer", "cer", "ser", *ERROR_KINDS, "repetition_rate", "length_ratio", "empty_rate")
    selection_metric = "cer"
    modality = "speech"

    config: An4Config

    def fingerprint(self) -> dict[str, Any]:
        """Return the checksum of the archive and the versions of the libraries; a missing archive is downloaded."""
        return {"archive": sha256_of(_locate()), **library_versions()}

    def prepare(self, folder: Path) -> None:
        """Write the prepared data into `folder`."""
        path = _locate()
        archive = Archive(path)
        train, test = (archive.utterances(name, self.config.features.sample_rate) for name in ("train", "test"))
        held_out = set(sorted({str(utterance.tags["speaker"]) for utterance in train})[DEV_SPEAKERS])
        splits: dict[str, list[Utterance]] = {split: [] for split in SPLITS}
        for utterance in train:
            splits["dev" if utterance.tags["speaker"] in held_out else "train"].append(utterance)
        splits["test"] = test
        prepare_speech(folder, splits, self.config)


class Archive:
    """The corpus as one archive holds it: lists, transcripts, and recordings found by their stem, WAV or FLAC.

    It is small (about 100 MB as WAV), and read once from front to end: a compressed archive cannot be read otherwise.
    """

    def __init__(self, path: Path) -> None:
        """Read the archive at `path`.

        Raises:
            DataError: it is no intact archive.
        """
        self.path = path
        self._lists: dict[str, bytes] = {}
        self._recordings: dict[str, tuple[str, bytes]] = {}
        try:
            for name, content in _members(path):
                if name.startswith("etc/"):
                    self._lists[name] = content
                elif name.startswith("wav/") and name.endswith((".wav", ".flac")):
                    stem = name.removeprefix("wav/").rsplit(".", 1)[0]
                    self._recordings[stem] = (name, content)
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: not an intact archive ({error})") from error

    def utterances(self, name: str, sample_rate: int) -> list[Utterance]:
        """Return the utterances of the list called `name`, "train" or "test".

        Raises:
            DataError: a list or a recording is missing, or they do not belong together.
        """
        stems, transcripts = self._lines(f"etc/an4_{name}.fileids"), self._lines(f"etc/an4_{name}.transcription")
        expected = UTTERANCES[name]
        if not len(stems) == len(transcripts) == expected:
            raise DataError(
                f"{self.path}: {len(stems)} {name} recordings and {len(transcripts)} transcripts "
                f"where {expected} are expected"
            )
        found = []
        for number, (stem, line) in enumerate(zip(stems, transcripts, strict=True), 1):
            match = _LINE.fullmatch(line)
            identity = stem.rsplit("/", 1)[-1]
            if match is None or match["id"] != identity:
                place = f"{self.path}: etc/an4_{name}.transcription:{number}"
                raise DataError(f"{place}: {line!r} is not a transcript of {identity!r}")
            if stem not in self._recordings:
                raise DataError(f"{self.path}: there is neither wav/{stem}.wav nor wav/{stem}.flac")
            member, content = self._recordings[stem]
            load = partial(read_audio_bytes, content, f"{self.path}: {member}", sample_rate)
            tags: dict[str, str | float] = {"speaker": stem.split("/")[-2]}
            found.append(Utterance(identity, match["text"], stem, load, tags))
        return found

    def _lines(self, name: str) -> list[str]:
        if name not in self._lists:
            raise DataError(f"{self.path}: {name} is missing")
        return [line.strip() for line in self._lists[name].decode("ascii", errors="replace").splitlines()]


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the path, below the archive's one folder, and the content of each file in an archive."""
    with tarfile.open(path, "r:gz" if path.suffix == ".gz" else "r:") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name.partition("/")[2], file.read()


def _locate() -> Path:
    """Return the archive that is there; the repository's is downloaded if there is none."""
    if (data_root() / An4.name / FLAC).exists():
        return locate(An4.name, FLAC, URL, SHA256[FLAC])
    return locate(An4.name, UPSTREAM, URL, None)


TASK = An4
