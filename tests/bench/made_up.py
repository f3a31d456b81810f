"""Families and a task that are made up, a suite of them, and how to read it."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from bench.suite import load_suite
from bench.tasks import registry as task_registry
from bench.tasks.base import Task
from models import registry as family_registry
from models.interface import Family, Model, Options


class Config(Options):
    """Shape."""

    encoder_layers: int = Field(6, ge=1)
    """Layers."""
    model_dim: int = Field(512, ge=2)
    """Width."""
    num_heads: int = Field(8, ge=1)
    """Heads."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share dropped."""

    @model_validator(mode="after")
    def _divides(self):
        if self.model_dim % self.num_heads:
            raise ValueError(f"model_dim {self.model_dim} is not divisible\nby num_heads {self.num_heads}")
        return self


class UpConfig(Config):
    """Shape of the other."""

    upsampling: int | Literal["auto"] = "auto"
    """Frames per source position."""


class Settings(Options):
    """Decoding."""

    beam: int = Field(1, ge=1)
    """Beam size."""
    alpha: float = Field(0.6, ge=0)
    """Length normalisation."""
    penalty: Literal["gnmt", "power"] = "gnmt"
    """Its form."""
    stop: bool = False
    """Early."""


class NarSettings(Options):
    """Decoding of the other."""

    iterations: int | None = Field(None, ge=1)
    """Passes."""


class DatesConfig(Options):
    """Options of a task."""

    target_language: str = "de"
    """Language."""
    folder: Path | None = None
    """Where."""
    snr_db: tuple[float, ...] = (0.0,)
    """Levels."""


class Speech(Task):
    name = "morse"
    title = "Morse"
    Config = DatesConfig
    metrics = ("cer",)
    selection_metric = "cer"
    modality = "speech"

    def fingerprint(self):
        return {}

    def prepare(self, folder):
        raise NotImplementedError


class Dates(Task):
    name = "dates"
    title = "Dates"
    Config = DatesConfig
    metrics = ("exact_match", "bleu")
    selection_metric = "exact_match"

    def fingerprint(self):
        return {}

    def prepare(self, folder):
        pass


AR = Family("transformer", Config, Settings, Model, autoregressive=True, title="Transformer")
NAR = Family("ctc", UpConfig, NarSettings, Model, autoregressive=False, title="CTC")


def register(monkeypatch):
    """Let these be the only families and tasks there are."""
    monkeypatch.setattr(family_registry, "built_in_families", lambda: {"ctc": NAR, "transformer": AR})
    monkeypatch.setattr(task_registry, "built_in_tasks", lambda: {"dates": Dates})


SUITE = """\
name: quick
tasks:
  - dates
backbone: {model_dim: 128, num_heads: 4}
train:
  budget: {target_tokens: 600_000}
  learning_rate: 1e-3
systems:
  - name: transformer
    family: transformer
    config: {encoder_layers: 2}
    settings: [{beam: 1}, {beam: 5}]
  - name: ctc
    family: ctc
    teacher: transformer
    data: [raw, distilled]
    config:
      upsampling: 2
measure:
  speed: {batch_sizes: [1, 8]}
"""


def load(text=SUITE, overrides=()):
    """Read `text` as the file s.yaml of the current folder."""
    Path("s.yaml").write_text(text, encoding="utf-8")
    return load_suite(Path("s.yaml"), overrides)


def changed(old, new, text=SUITE):
    """The suite with one thing changed."""
    assert old in text
    return text.replace(old, new)
