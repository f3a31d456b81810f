"""Steps with the keys that follow from all they depend on."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from bench.configs import Budget, SpeedConfig
from bench.steps import MODULES, Step
from bench.store import code_fingerprint, key_of

StepId = tuple[str, str]

LIBRARIES = {
    "prepare": ("babel", "kaldi-native-fbank", "numpy", "scipy", "sentencepiece", "soundfile"),
    "train": ("numpy", "sentencepiece", "torch"),
    "choose": (),
    "distill": ("sentencepiece", "torch"),
    "label": ("eflomal", "numpy", "torch"),
    "evaluate": ("jiwer", "numpy", "sacrebleu", "sentencepiece", "torch"),
    "measure": ("numpy", "sentencepiece", "torch"),
}
"""Libraries whose version can change what a step of the kind gives."""

SECONDS = {"prepare": 10.0, "choose": 1.0, "distill": 60.0, "label": 20.0, "evaluate": 20.0}
"""Rough times of the other steps."""

HOUR = 3600.0
TIME_LIMITS = {"prepare": 6 * HOUR, "choose": HOUR, "distill": 24 * HOUR, "label": 6 * HOUR, "evaluate": 6 * HOUR}

TOKENS_PER_SECOND = {"cpu": 10_000, "cuda": 200_000}
"""Training speed of a small model, for estimates only."""
SLOWEST_TOKENS_PER_SECOND = 200
"""A training slower than this is taken for hung."""
TIMED_SENTENCE_SECONDS = 0.003
"""What a small model takes for a sentence of a timed round, over all batch sizes; for estimates only."""


def training_time(budget: Budget, device: str) -> tuple[float, float]:
    """Return an estimate of the seconds that training takes, and after how many it is taken for hung."""
    if budget.minutes is not None:
        seconds = 60 * budget.minutes
        return seconds, 5 * seconds + HOUR / 2  # of the wall clock, on a busy machine too
    assert budget.target_tokens is not None
    return (
        budget.target_tokens / TOKENS_PER_SECOND[device],
        budget.target_tokens / SLOWEST_TOKENS_PER_SECOND + HOUR / 2,
    )


def timing_time(speed: SpeedConfig, points: int) -> float:
    """Return an estimate of the seconds that it takes to time as many cells and batch sizes as `points`."""
    return points * max(speed.min_seconds, speed.min_runs * speed.sentences * TIMED_SENTENCE_SECONDS)


def make_step(
    kind: str,
    spec: dict[str, Any],
    parents: dict[str, StepId],
    modules: Iterable[str],
    extra: dict[str, Any] | None = None,
    packages: Iterable[str] = (),
    **options: Any,
) -> Step:
    """Return a step with the key that follows from all it depends on.

    modules: what the step imports by name (families, tasks) beside its own module; packages: what it needs beyond the
    usual ones; extra: what its result depends on that the spec does not say; options: fields of `Step`, the usual time
    and limit of the kind by default.
    """
    description = {
        "kind": kind,
        "spec": spec,
        "parents": parents,
        "code": code_fingerprint(sorted({MODULES[kind], *modules})),
        "libraries": {name: version(name) for name in sorted({*LIBRARIES[kind], *packages})},
        "extra": extra or {},
    }
    usual = {"seconds": SECONDS.get(kind, 0.0), "time_limit": TIME_LIMITS.get(kind)}
    return Step(kind, key_of(description), spec, parents, **(usual | options))
