"""The thresholds of the gate, as a suite file writes them. No torch, which the other sections of a suite load."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class GateConfig(BaseModel):
    """What `bench gate` takes for a regression."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)

    metrics: tuple[str, ...] | None = None
    """Quality metrics to compare; by default the first of each task that ranks systems."""
    margin: float = Field(1.0, ge=0)
    """Points, of whatever scale a metric has, by which quality may fall."""
    margins: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """The same for single metrics."""
    alpha: float = Field(0.01, gt=0, lt=1)
    """A fall beyond the margin is a regression if the paired test, adjusted for all tests (Holm), gives less."""
    samples: int = Field(10_000, ge=100)
    """Random exchanges behind each test."""
    slowdown: float = Field(25.0, gt=0, lt=100)
    """Share of the throughput, in %, by which it may fall; 10 on a quiet machine, 25 on a shared one."""

    def margin_of(self, metric: str) -> float:
        """Return the points by which `metric` may fall."""
        return self.margins.get(metric, self.margin)
