"""The sections of a suite file: which keys there are, and what may stand under them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bench.configs import DistillConfig, MeasureConfig, SearchConfig, TrainConfig
from bench.gate.config import GateConfig
from models.interface import Options

Data = Literal["raw", "distilled"]

SUITE_NAME = "^[a-z0-9_-]+$"
LABEL = "^[A-Za-z0-9][A-Za-z0-9_+-]*$"
"""Names of systems and tasks: they become parts of file names, of override paths and of table rows."""


class SuiteFile(Options):
    """A whole suite. Keys that begin with `x-` are ignored; they are a place for YAML anchors."""

    name: str = Field(pattern=SUITE_NAME)
    """Name of the suite; its results go to results/NAME."""
    tasks: list[Any] = Field(min_length=1)
    """Tasks, each a name or a mapping of `task`, an optional `name`, and the task's options."""
    backbone: dict[str, Any] = Field(default_factory=dict)
    """Config values for every system whose family has the field; a system's own config wins."""
    decoding: dict[str, Any] = Field(default_factory=dict)
    """Settings of every system whose family has the field; an entry of a system's own settings wins."""
    train: TrainConfig
    """The training recipe of all systems."""
    search: SearchConfig | None = None
    """A search for hyper-parameters before each training; none by default."""
    distill: DistillConfig = DistillConfig()
    """How teachers decode the training sources."""
    systems: list[Any] = Field(min_length=1)
    """The systems to compare."""
    measure: MeasureConfig = MeasureConfig()
    """What is measured."""
    gate: GateConfig = GateConfig()
    """What `bench gate` takes for a regression, with these results as the baseline."""
    references: list[Any] | None = None
    """What speed-ups compare with; by default all settings of the first autoregressive system trained on raw data."""


class TaskSection(Options):
    """What every task in a suite may have beside its own options."""

    task: str
    """Which task."""
    name: str | None = Field(None, pattern=LABEL)
    """How the suite calls it; by default after the task, and its options if the suite has the task more than once."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Departures from the suite's training recipe, for this task; a system's own win. A budget is replaced whole."""
    systems: list[str] | None = Field(None, min_length=1)
    """Only these systems; all by default."""
    data: Literal["raw"] | None = None
    """`raw`: no models on distilled data; by default models on all data that their systems name."""


class CompanionSection(Options):
    """Another system that fills a role."""

    system: str
    """Which system of the suite."""
    data: Data | None = None
    """Its model on which data; by default on the same as the system that uses it, if it has one, else raw."""


class SystemSection(Options):
    """One system: a family, configured, and the settings to decode with."""

    name: str = Field(pattern=LABEL)
    """How tables and figures call it."""
    family: str
    """A built-in family, or the dotted name of an importable module that defines FAMILY."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Values of the family's Config; a change means retraining."""
    settings: list[Any] = Field(default_factory=lambda: [{}], min_length=1)
    """Values of the family's Settings; each entry is decoded and measured with the same trained model."""
    teacher: str | None = None
    """The autoregressive system, trained on raw data, whose outputs are the distilled training targets."""
    companions: dict[str, str | CompanionSection] = Field(default_factory=dict)
    """Other systems that this one uses, by role (`bench list FAMILY` shows the roles); each is a name or a mapping."""
    data: Data | tuple[Data, ...] | None = None
    """What to train on; distilled by default if there is a teacher, else raw. Each entry is a model of its own."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Departures from the suite's training recipe; a budget is replaced as a whole."""


class ReferenceSection(Options):
    """One settings entry of one system, to compare speeds with."""

    system: str
    """An autoregressive system of the suite, trained on raw data."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """One of the system's settings entries."""
