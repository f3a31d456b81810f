"""Decoding by insertion (Stern et al. 2019): in every slot at once, or in the best slot alone."""

from __future__ import annotations

from typing import Literal, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import pad

from models.decoding.refinement import Canvas, lowest, refine_until_done
from models.fixed_length import LengthSettings
from models.interface import BOS, EOS, PAD, Decoded, Options
from models.layers import padding_mask
from models.slots import Termination

NO_END = 1e9
"""Penalty by which eos is never the best symbol of a slot."""


class InsertionSettings(LengthSettings):
    """Decoding; swept over one checkpoint."""

    mode: Literal["parallel", "serial"] | None = None
    """Insert in every unfinished slot at once, or in the best slot of the sentence alone. None: parallel if the model
    was trained for it (slot finalisation), else serial."""
    eos_penalty: float = Field(0.0, ge=0)
    """Subtracted from the log-probability of eos, in nats; more of it makes longer outputs."""
    iterations: int | None = Field(None, ge=1)
    """Most passes of the decoder; None: as many as the longest output can need."""

    @model_validator(mode="after")
    def _fixed_length_decides(self) -> Self:
        idle = [name for name in ("eos_penalty", "iterations") if name in self.departures()]
        if self.fixed and idle:
            raise ValueError(f"{', '.join(idle)} has no effect with output_length source")
        return self

    def misfit(self, config: Options) -> str | None:
        """Parallel decoding does not fit sequence finalisation."""
        try:
            self.is_serial(getattr(config, "termination", "slot"))
        except ValueError as error:
            return str(error)
        return None

    def is_serial(self, termination: Termination) -> bool:
        """Return whether a model with this termination decodes serially.

        Raises:
            ValueError: parallel decoding with sequence finalisation. Its empty slots are not trained to stay empty, so
                nothing tells which slots to insert in.
        """
        if self.mode is None:
            return termination == "sequence"
        if self.mode == "parallel" and termination == "sequence":
            raise ValueError(
                "mode 'parallel' needs a model with termination 'slot', not 'sequence', which allows mode 'serial'"
            )
        return self.mode == "serial"


class SlotNetwork(Protocol):
    """What a family supplies: its choice for every slot of a canvas, by one pass of its decoder."""

    termination: Termination

    def propose(self, canvas: Canvas, eos_penalty: float) -> tuple[Tensor, Tensor]:
        """Return the best symbol of each slot and its log-probability without the penalty, [n, t-1] each.

        canvas: t positions, bos and eos included; what is returned of slots beyond its length does not matter.
        """
        ...

    def select(self, rows: Tensor) -> None:
        """Keep rows `rows` [m] of whatever state there is, in that order (rising)."""
        ...


def insert_until_done(network: SlotNetwork, src_len: Tensor, limit: int, settings: InsertionSettings) -> Decoded:
    """Decode sentences with sources of lengths src_len [b] from empty canvases to at most `limit` tokens each.

    Iterations are passes of the decoder: the one that finds every slot ended, or the sentence, is among them; a
    sentence that is `limit` tokens long needs none such. Scores are the log-probabilities of all insertions when they
    were made, plus those of the ends that stopped the sentence.

    Raises:
        ValueError: the model does not decode in the mode that is asked for.
    """
    serial = settings.is_serial(network.termination)
    start = torch.tensor([BOS, EOS], device=src_len.device).repeat(len(src_len), 1)
    lengths = torch.full_like(src_len, 2)
    canvas = Canvas(start, lengths, torch.zeros_like(start, dtype=torch.float32))
    fixed = src_len.clamp(max=limit) if settings.fixed else None
    inserter = SlotInserter(network, limit, serial, settings.eos_penalty, fixed)
    passes = limit if settings.iterations is None else min(limit, settings.iterations)  # each but the last inserts
    if fixed is not None:
        passes = limit + 1  # the pass that finds the end is always made
    canvas, iterations = refine_until_done(inserter, canvas, passes)
    lengths = canvas.lengths - 2
    tokens = canvas.tokens[:, 1:-1]
    tokens = tokens.masked_fill(~padding_mask(lengths, tokens.shape[1]), PAD)
    return Decoded(tokens, lengths, canvas.scores.sum(1), iterations)


class SlotInserter:
    """The refiner. Its canvases hold bos and eos; the score of eos is that of the ends that stopped the row."""

    def __init__(
        self, network: SlotNetwork, limit: int, serial: bool, eos_penalty: float, fixed: Tensor | None = None
    ) -> None:
        """Insert at most `limit` tokens; `fixed` [n]: exactly so many, whatever the network says of ends."""
        self.fixed = fixed
        self.network = network
        self.limit = limit
        self.serial = serial
        self.eos_penalty = eos_penalty

    def refine(self, canvas: Canvas, iteration: int) -> tuple[Canvas, Tensor]:
        """Insert what the network proposes; a row is done when nothing is inserted or nothing more fits.

        Where more is proposed than fits, the most probable insertions are made.
        """
        if self.fixed is not None:
            return self._refine_to_length(canvas, self.fixed)
        ids, log_probs = self.network.propose(canvas, self.eos_penalty)
        real = padding_mask(canvas.lengths - 1, ids.shape[1])
        ends = (ids == EOS) & real
        by_slot = self.network.termination == "slot"
        candidates = real & ~ends if by_slot else real
        room = self.limit + 2 - canvas.lengths
        cost = (self.eos_penalty * ends - log_probs).masked_fill(~candidates, float("inf"))
        taken = lowest(cost, room.clamp(max=1) if self.serial else room) & candidates
        chosen = taken & ~ends
        stopped = ~chosen.any(1)
        end_score = log_probs.masked_fill(~(ends if by_slot else taken), 0.0).sum(1) * stopped
        canvas = insert(canvas, chosen, ids, log_probs)
        canvas.scores.scatter_(1, canvas.lengths[:, None] - 1, end_score[:, None])
        return canvas, stopped | (canvas.lengths == self.limit + 2)

    def _refine_to_length(self, canvas: Canvas, fixed: Tensor) -> tuple[Canvas, Tensor]:
        """Insert until a row has its length; the pass after that, in which the ends would be found, is its last."""
        ids, log_probs = self.network.propose(canvas, NO_END)
        missing = fixed + 2 - canvas.lengths
        candidates = padding_mask(canvas.lengths - 1, ids.shape[1])
        cost = (-log_probs).masked_fill(~candidates, float("inf"))
        chosen = lowest(cost, missing.clamp(max=1) if self.serial else missing) & candidates
        return insert(canvas, chosen, ids, log_probs), missing == 0

    def select(self, rows: Tensor) -> None:
        """Keep `rows` of the network's state."""
        self.network.select(rows)
        self.fixed = None if self.fixed is None else self.fixed.index_select(0, rows)


def insert(canvas: Canvas, chosen: Tensor, ids: Tensor, log_probs: Tensor) -> Canvas:
    """Return the canvases [n, t] with one symbol more in every chosen slot, as wide as the longest needs.

    Args:
        canvas: at least two positions wide; slot i lies between positions i and i + 1.
        chosen: [n, t-1] bool, False for slots beyond the length.
        ids: [n, t-1] symbols.
        log_probs: [n, t-1] float32, their scores.
    """
    n, t = canvas.tokens.shape
    inserted = chosen.cumsum(1)  # up to and including each slot
    lengths = canvas.lengths + inserted[:, -1]
    width = int(lengths.max())
    at = torch.arange(t, device=chosen.device)
    moved = (at + pad(inserted, (1, 0))).masked_fill(~padding_mask(canvas.lengths, t), width)
    placed = (at[:-1] + inserted).masked_fill(~chosen, width)
    index = torch.cat([moved, placed], dim=1)  # what goes to `width` is cut off
    tokens = canvas.tokens.new_full((n, width + 1), PAD)
    tokens.scatter_(1, index, torch.cat([canvas.tokens, ids], dim=1))
    scores = canvas.scores.new_zeros((n, width + 1))
    scores.scatter_(1, index, torch.cat([canvas.scores, log_probs], dim=1))
    return Canvas(tokens[:, :width], lengths, scores[:, :width])
