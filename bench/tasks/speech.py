"""What every task of speech shares: from utterances to the prepared folder of features, audio and transcripts.

What becomes of utterances that are not as they should be, `bench.tasks.utterances` says.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile  # type: ignore[import-untyped]

from bench.arrays import ArrayFile
from bench.errors import DataError
from bench.features import Normaliser
from bench.steps import write_json
from bench.tasks import corpus
from bench.tasks.base import SPLITS
from bench.tasks.transcripts import train_tokenizer
from bench.tasks.utterances import SpeechOptions, Utterance, UtteranceSplit, at_speeds
from bench.text import Tokenizer

__all__ = ["ERROR_KINDS", "SpeechOptions", "Utterance", "library_versions", "prepare_speech"]

DEFAULT_VOCAB_SIZE = 1000
"""Subword pieces if the options name no number."""


ERROR_KINDS = (
    *("cer_substitutions", "cer_deletions", "cer_insertions"),
    *("wer_substitutions", "wer_deletions", "wer_insertions"),
)
"""Metrics that say what kinds of errors there are, which every task of speech reports."""


def prepare_speech(folder: Path, splits: Mapping[str, Iterable[Utterance]], options: SpeechOptions) -> None:
    """Write the prepared data of a task of speech (see `bench.tasks.base.Task`) into `folder`.

    Beside the tokeniser and `<split>.jsonl`, a line for each utterance, in the same order:

        <split>.features.npy    float16 [frames of all utterances, num_mels], normalised, one utterance after the other
        <split>.frames.npy      int64 [utterances], frames of each
        <split>.audio.npy       int16 [samples of all utterances] at features.sample_rate; not of the training split
        <split>.samples.npy     int64 [utterances], samples of each; not of the training split
        features.json           what the features were made with: options, normalisation, the training split's mean and
                                standard deviation, and under `speakers.<split>` the means that took its mean's place
        data.json               modality, sizes, and what became of each split's utterances

    Features are those of the 16-bit audio, so that the stored audio gives the stored features again, bit by bit. The
    vocabulary and the normaliser are made from the training split's kept utterances and from nothing else.

    Args:
        folder: an empty folder; nothing stays in it unless all goes well.
        splits: the utterances of each of `SPLITS`. Each is iterated over once and each recording loaded once (that of
            the training split once for each of `options.speeds`), so that no two of them need be in memory.
        options: see `SpeechOptions`.

    Raises:
        DataError: the data is not usable, naming the recording or the transcript, and why.
    """
    assert set(splits) == set(SPLITS)
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    try:
        ready = scratch / "ready"
        ready.mkdir(parents=True)
        parts = {name: UtteranceSplit(name, options, scratch / f"{name}.npy") for name in SPLITS}
        for name, part in parts.items():
            part.read_from(at_speeds(splits[name], options.speeds) if name == "train" else splits[name], ready)
        seen: set[str] = set()
        for row in (row for part in parts.values() for row in part.rows):
            if row.utterance.id in seen:
                raise DataError(row.utterance.about_text(f"the id {row.utterance.id!r} comes twice"))
            seen.add(row.utterance.id)
        texts = [row.text for row in parts["train"].rows]
        tokenizer = train_tokenizer(texts, options.units, options.vocab_size or DEFAULT_VOCAB_SIZE, ready)
        for part in parts.values():
            part.encode(tokenizer)
        _write_features(parts, options, ready)
        for part in parts.values():
            part.write_examples(ready)
        write_json(ready / "data.json", _description(parts, options, tokenizer))
        for path in sorted(ready.iterdir()):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def library_versions() -> dict[str, str]:
    """Return the versions, beside the input, that prepared speech depends on: for a task's fingerprint."""
    packages = {name: version(name) for name in ("kaldi-native-fbank", "scipy")}
    return {**packages, "libsndfile": soundfile.__libsndfile_version__, **corpus.library_versions()}


def _write_features(parts: Mapping[str, UtteranceSplit], options: SpeechOptions, folder: Path) -> None:
    """Write `<split>.features.npy`, normalised, and `features.json`."""
    own_mean = options.normalisation == "utterance"
    normaliser = None if options.normalisation == "none" else Normaliser.fit(parts["train"].features(), own_mean)
    speakers: dict[str, dict[str, list[float]]] = {}
    for name, part in parts.items():
        means = part.speaker_means() if options.normalisation == "speaker" else {}
        with ArrayFile(folder / f"{name}.features.npy", np.float16, options.features.num_mels) as file:
            for row, features in zip(part.rows, part.features(), strict=True):
                mean = means.get(str(row.utterance.tags.get("speaker")))
                file.append(features if normaliser is None else normaliser(features, mean))
        speakers[name] = {speaker: mean.tolist() for speaker, mean in means.items()}
    made_with = {
        "options": options.features.model_dump(),
        "normalisation": options.normalisation,
        "normaliser": normaliser.to_json() if normaliser else None,
        "speakers": speakers,
    }
    write_json(folder / "features.json", made_with)


def _description(parts: Mapping[str, UtteranceSplit], options: SpeechOptions, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of `data.json`."""
    rows = [row for part in parts.values() for row in part.rows]
    return {
        "modality": "speech",
        "num_features": options.features.num_mels,
        "frame_shift_ms": options.features.frame_shift_ms,
        "sample_rate": options.features.sample_rate,
        "vocabulary_size": tokenizer.size,
        "max_source_length": max(row.frames for row in rows),
        "max_target_length": max(len(row.tokens) for row in rows),
        "splits": {name: part.description() for name, part in parts.items()},
    }
