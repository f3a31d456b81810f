"""The settings of training, distillation and measurement, as a suite file writes them."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from models.interface import Options

MOST_COMBINATIONS = 100_000
"""Of values that a search draws from."""


class Budget(Options):
    """How long to train: a number of target tokens or of minutes; exactly one is set."""

    target_tokens: int | None = Field(None, ge=0)
    """Target tokens to train on (padding and eos not counted); gives the same run on every visit. 0 leaves the weights
    as they were drawn, for suites that measure speed alone (see `output_length` in the settings of a family)."""
    minutes: float | None = Field(None, gt=0)
    """Minutes of training, development-set decoding included: of CPU time if it has one CPU thread, which other
    processes do not shorten, else of the wall clock. How far it gets depends on the machine."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Budget:
        if (self.target_tokens is None) == (self.minutes is None):
            raise ValueError("set exactly one of target_tokens and minutes")
        return self

    @property
    def none(self) -> bool:
        """Whether there is no training at all."""
        return self.target_tokens == 0


class SpecAugment(Options):
    """SpecAugment (Park et al. 2019) without time warping: masks of random place and width, filled with the mean."""

    time_masks: int = Field(2, ge=0)
    """Masks over time."""
    time_width: int = Field(40, ge=0)
    """Frames of the widest of them; the width is uniform from 0."""
    time_share: float = Field(0.2, gt=0, le=1)
    """No mask covers more than this share of a recording."""
    frequency_masks: int = Field(2, ge=0)
    """Masks over frequency."""
    frequency_width: int = Field(27, ge=0)
    """Features of the widest of them; the width is uniform from 0."""


class TrainConfig(Options):
    """One training recipe for every family."""

    budget: Budget
    """How long to train; the same for every system unless a system overrides it, which tables then say."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field((1,), min_length=1)
    """Training seeds, each once; each is a cell of its own."""
    batch_tokens: int = Field(1024, gt=0)
    """Largest number of positions of a batch's longer side, source or target, padding included."""
    batch_frames: int = Field(8000, gt=0)
    """Largest number of feature frames in a batch, padding included; for speech, in place of batch_tokens."""
    spec_augment: SpecAugment | None = None
    """Masking of training features (speech only); none by default."""
    init: str | None = None
    """System on whose encoder, trained on raw data if it has any, the others' start (its budget is not counted in
    theirs, and tables say so); none by default."""
    curriculum: int = Field(0, ge=0)
    """Epochs in which longer and longer sources come in: in the first of n only the shortest n-th of them."""
    max_batch_sentences: int = Field(512, gt=0)
    """Largest number of sentences in a batch."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["inverse_sqrt", "cosine", "linear"] = "cosine"
    """Decay after warm-up; cosine and linear reach zero at the end of the budget."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the budget over which the learning rate rises linearly."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of matrices (biases, norms and embeddings are spared)."""
    adam_beta2: float = Field(0.98, gt=0, lt=1)
    """Second-moment decay of AdamW."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this global norm."""
    evaluations: int = Field(10, ge=1)
    """How many times the development set is decoded, evenly over the budget."""
    dev_sentences: int = Field(200, ge=1)
    """Development sentences decoded each time (the first ones)."""
    average: Literal["best", "last"] = "best"
    """Which checkpoints to average: the best by the task's metric, or the last."""
    average_count: int = Field(3, ge=1)
    """How many checkpoints to average; the average is kept if it beats the best single one on the development set."""
    checkpoint_seconds: float = Field(30.0, ge=0)
    """A resumable checkpoint is written at least this often."""
    threads: int = Field(1, ge=1)
    """CPU threads of one training process; as many processes run side by side as the cores allow."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds must differ, got {', '.join(map(str, seeds))}")
        return seeds


class SearchConfig(Options):
    """A search for hyper-parameters on the development set, before a model is trained.

    Every model has as many trials, each as long, with its first seed; they are not counted in its budget.
    """

    trials: int = Field(ge=2, le=1000)
    """Trials of each model: its own recipe first, the others drawn from all combinations of the values below."""
    budget: Budget
    """How long each trial trains."""
    train: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Values to try by field of the training recipe."""
    config: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Values to try by field of a family's Config that leaves the network's shape alone, such as dropout; families
    without the field go without."""
    seed: int = Field(1, ge=0)
    """Draws the combinations."""

    @model_validator(mode="after")
    def _something_to_try(self) -> SearchConfig:
        if not self.train and not self.config:
            raise ValueError("name values to try under train or config")
        for part in (self.train, self.config):
            for name, values in part.items():
                if any(value in values[:i] for i, value in enumerate(values)):
                    raise ValueError(f"{name} has the same value twice")
        if math.prod(len(values) for part in (self.train, self.config) for values in part.values()) > MOST_COMBINATIONS:
            raise ValueError(f"there are more than {MOST_COMBINATIONS} combinations of the values")
        return self


class DistillConfig(Options):
    """Sequence-level knowledge distillation (Kim & Rush 2016)."""

    beam: int = Field(5, ge=1)
    """Beam size with which the teacher decodes the training sources."""
    length_penalty: Literal["gnmt", "power"] = "gnmt"
    """Length normalisation of the teacher's beam."""
    alpha: float = Field(0.6, ge=0)
    """Exponent of the length normalisation."""
    batch_tokens: int = Field(4096, gt=0)
    """Largest number of source tokens in a decoding batch, padding included."""
    batch_frames: int = Field(32_000, gt=0)
    """Largest number of feature frames in a decoding batch, padding included; for speech, in place of batch_tokens."""
    batch_sentences: int = Field(128, ge=1)
    """Largest number of sentences in a decoding batch."""
    shard_sentences: int = Field(1000, ge=1)
    """A killed distillation resumes at the last finished shard of this many sentences."""


class QualityConfig(Options):
    """How quality is measured."""

    split: Literal["dev", "test"] = "test"
    """The split that is decoded and scored."""
    batch_size: int = Field(32, ge=1)
    """Sentences per batch when decoding for quality."""
    bootstrap_samples: int = Field(1000, ge=0)
    """Resamplings behind each interval; 0 gives none."""
    max_sentences: int | None = Field(None, ge=1)
    """Score only the first this many sentences."""


class SpeedConfig(Options):
    """How speed is measured (interleaved rounds over the same sentences)."""

    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 8, 32), min_length=1)
    """Batch sizes, rising; one that does not fit in memory becomes a record with status oom."""
    sentences: int = Field(160, ge=1)
    """Test sentences (a fixed random sample) in each timed round, unless `max_batches` leaves some out."""
    max_batches: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Most batches of a size in a timed round, evenly over the sample sorted by length: one number for all sizes, or as
    many as there are sizes; all batches by default. A sample that fills a large batch makes a great many small ones.
    Batch sizes compare only if each times sentences of about the same lengths. Passes are counted at batch 1."""
    min_seconds: float = Field(2.0, ge=0)
    """Least time spent on each cell and batch size, warm-up apart."""
    min_runs: int = Field(8, ge=2)
    """Least number of timed rounds."""
    max_seconds: float = Field(600.0, gt=0)
    """Once every cell has min_runs rounds, stop at this much measuring time even if min_seconds is not reached."""
    roofline: bool = False
    """Whether to count the arithmetic and the bytes of decoding, and compare its time with what they must take."""
    breakdown: bool = False
    """Whether to time the parts of decoding too: encoder, decoder, output layer, companions and the rest."""
    threads: int | None = Field(None, ge=1)
    """CPU threads while timing; all cores by default."""

    @field_validator("batch_sizes")
    @classmethod
    def _rising(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if any(later <= earlier for earlier, later in itertools.pairwise(sizes)):
            raise ValueError(f"batch sizes must rise, got {', '.join(map(str, sizes))}")
        return sizes

    @model_validator(mode="after")
    def _a_number_for_each_size(self) -> SpeedConfig:
        if isinstance(self.max_batches, tuple) and len(self.max_batches) != len(self.batch_sizes):
            raise ValueError(f"max_batches has {len(self.max_batches)} numbers for {len(self.batch_sizes)} batch_sizes")
        return self

    def batches_of(self, size: int) -> int | None:
        """Return the most batches of `size` sentences in a round; None if there is no limit.

        Of a size that is not among `batch_sizes`, as many as of the first.
        """
        if not isinstance(self.max_batches, tuple):
            return self.max_batches
        return self.max_batches[self.batch_sizes.index(size) if size in self.batch_sizes else 0]


class MeasureConfig(Options):
    """What is measured on each trained system."""

    quality: QualityConfig = QualityConfig()
    speed: SpeedConfig | None = SpeedConfig()
    """null: no speed measurement."""
