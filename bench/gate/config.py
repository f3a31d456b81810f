"""The thresholds of the gate, as a suite file writes them. No torch, which the other sections of a suite load."""

from __future__ import annotations

import itertools
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator


class GateConfig(BaseModel):
    """What `bench gate` takes for a regression."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)

    metrics: tuple[str, ...] | None = None
    """Quality metrics to compare; by default the first of each task that ranks systems."""
    margin: float = Field(1.0, ge=0)
    """Points, of whatever scale a metric has, by which quality may fall."""
    margins: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """The same for single metrics."""
    unlike_margin: float = Field(30.0, ge=0)
    """Points by which quality may fall from one kind of machine to another, where that is more: machines that round
    differently train other models, and outputs of those differ by chance, which no test over sentences covers."""
    alpha: float = Field(0.01, gt=0, lt=1)
    """A fall beyond the margin is a regression if the paired test, adjusted for all tests (Holm), gives less."""
    samples: int = Field(10_000, ge=100)
    """Random exchanges behind each test."""
    slowdown: float = Field(10.0, gt=0, lt=100)
    """Share of the throughput, in %, by which it may fall from one checkout to another, timed in turn in one job."""
    stored_slowdown: float = Field(25.0, gt=0, lt=100)
    """The same between two results folders, which were timed at different times."""
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(None, min_length=1)
    """Batch sizes at which checkouts are timed; by default the smallest and the largest of `measure.speed`."""
    pairs: tuple[Annotated[int, Field(ge=5)], ...] = Field((20, 40, 80), min_length=1)
    """Pairs of times after which to judge; what is inconclusive is timed on, up to the next number."""
    milliseconds: float = Field(25.0, gt=0)
    """Least duration of a time: several batches are decoded where one is done sooner."""

    @field_validator("pairs", "batch_sizes")
    @classmethod
    def _rising(cls, numbers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if numbers is not None and any(later <= earlier for earlier, later in itertools.pairwise(numbers)):
            raise ValueError(f"the numbers must rise, got {', '.join(map(str, numbers))}")
        return numbers

    def margin_of(self, metric: str) -> float:
        """Return the points by which `metric` may fall."""
        return self.margins.get(metric, self.margin)
