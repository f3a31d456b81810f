"""The user's own recordings: a manifest for each split, a JSON object on each line.

    {"audio": "wav/0001.flac", "text": "what is said", "speaker": "anna", "id": "anna-0001"}

`audio` is a WAV or FLAC file, relative to the manifest's folder. `speaker` and `id` may be left out; an utterance
without `id` is called by its split and line. A line that is anything else, that names a file that is not there, or that
gives an id again is a DataError in every split: it is a mistake in the manifest. What becomes of a recording or a
transcript that is not usable, `bench.tasks.utterances` says.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from bench.audio import read_audio
from bench.errors import DataError, nearest
from bench.fetch import sha256_of
from bench.tasks.base import SPLITS, Task
from bench.tasks.corpus import read_lines
from bench.tasks.speech import ERROR_KINDS, SpeechOptions, Utterance, library_versions, prepare_speech
from bench.tasks.transcripts import unusable_symbol

REQUIRED = ("audio", "text")
KEYS = (*REQUIRED, "speaker", "id")

_EXAMPLE = '{"audio": "wav/0001.flac", "text": "what is said"}'


@dataclass(frozen=True)
class Entry:
    """A line of a manifest."""

    place: str
    """`file:line`."""
    id: str
    audio: Path
    text: str
    speaker: str | None


class SpeechManifestConfig(SpeechOptions):
    """The manifests, relative to the current folder (`~` is the home folder), features, units and limits."""

    train_manifest: Path
    """Training utterances; gzip-compressed if the name ends in .gz."""
    dev_manifest: Path
    """Development utterances: checkpoints are selected on them."""
    test_manifest: Path
    """Test utterances."""


class SpeechManifest(Task):
    """Recordings and transcripts of the user, one reference each."""

    name = "speech_manifest"
    title = "Speech"
    Config = SpeechManifestConfig
    metrics: ClassVar = ("wer", "cer", "ser", *ERROR_KINDS, "repetition_rate", "length_ratio", "empty_rate")
    selection_metric = "cer"
    modality = "speech"

    config: SpeechManifestConfig

    def fingerprint(self) -> dict[str, Any]:
        """Return checksums of the manifests, and of the content of all recordings of each, and library versions."""
        recordings = {}
        for split, entries in self._read().items():
            content = hashlib.sha256()
            for entry in entries:
                content.update(bytes.fromhex(sha256_of(entry.audio)))
            recordings[split] = content.hexdigest()
        manifests = {split: sha256_of(path) for split, path in self._paths().items()}
        return {"manifests": manifests, "recordings": recordings, **library_versions()}

    def prepare(self, folder: Path) -> None:
        """Write the prepared data into `folder`."""
        rate = self.config.features.sample_rate
        splits = {split: [_utterance(entry, rate) for entry in entries] for split, entries in self._read().items()}
        prepare_speech(folder, splits, self.config)

    def _paths(self) -> dict[str, Path]:
        """Return the manifest of each split."""
        config = self.config
        paths = (config.train_manifest, config.dev_manifest, config.test_manifest)
        return {split: path.expanduser() for split, path in zip(SPLITS, paths, strict=True)}

    def _read(self) -> dict[str, list[Entry]]:
        """Return the lines of each manifest; no id comes twice in all of them."""
        places: dict[str, str] = {}
        entries = {split: read_manifest(path, split) for split, path in self._paths().items()}
        for entry in (entry for split in SPLITS for entry in entries[split]):
            if entry.id in places:
                raise DataError(f"{entry.place}: the id {entry.id!r} is that of {places[entry.id]}")
            places[entry.id] = entry.place
        return entries


def read_manifest(path: Path, split: str) -> list[Entry]:
    """Return the lines of a manifest.

    Raises:
        DataError: the manifest cannot be read, or a line is not as it should be; names the file and the line.
    """
    entries = []
    for number, line in enumerate(read_lines(path), 1):
        place = f"{path}:{number}"
        entries.append(_entry(_values(line, place), path.parent, place, default_id=f"{split}-{number}"))
    return entries


def _values(line: str, place: str) -> dict[str, str]:
    """Return the keys and values of a line."""
    try:
        values = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise DataError(f"{place}: {line.strip()[:40]!r} is not a JSON object, such as {_EXAMPLE}")
    for key, value in values.items():
        if key not in KEYS:
            raise DataError(f"{place}: unknown key {key!r}{nearest(key, KEYS)} (allowed: {', '.join(KEYS)})")
        if not isinstance(value, str):
            raise DataError(f"{place}: {key} must be text, not {json.dumps(value)[:40]}")
        # Transcripts may be bad one by one; names have to be good, or nothing can be called by them.
        if key != "text" and (not value.strip() or unusable_symbol(value)):
            raise DataError(f"{place}: {key} is {value!r}, which names nothing")
    for key in REQUIRED:
        if key not in values:
            raise DataError(f"{place}: the key {key!r} is missing")
    return values


def _entry(values: dict[str, str], folder: Path, place: str, default_id: str) -> Entry:
    """Return the entry that `values` describe, if its recording is there."""
    audio = folder / Path(values["audio"]).expanduser()
    try:
        problem = None if audio.is_file() else "not a file" if audio.exists() else "no such file"
    except OSError as error:
        problem = error.strerror or "no usable name"
    if problem is not None:
        raise DataError(f"{place}: {audio}: {problem}")
    return Entry(place, values.get("id", default_id), audio, values["text"], values.get("speaker"))


def _utterance(entry: Entry, sample_rate: int) -> Utterance:
    tags: dict[str, str | float] = {} if entry.speaker is None else {"speaker": entry.speaker}
    load = partial(read_audio, entry.audio, sample_rate)
    return Utterance(entry.id, entry.text, str(entry.audio), load, tags, entry.place)


TASK = SpeechManifest
