"""Insertion into slots (Stern et al. 2019): partial targets, what belongs in their slots, the slot loss.

A canvas is a subsequence of the target between bos and eos. With n tokens it has n + 1 slots, one between each two
neighbours; the tokens that are still missing there are the slot's span. eos is also what a slot predicts to say that
nothing is to be inserted; it is never inserted. Shapes: t target tokens, m slots, m + 1 positions of a canvas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.interface import BLANK, BOS, EOS, MASK, PAD, PLH, UNK
from models.layers import BackboneConfig, padding_mask
from models.linear import Linear
from models.output import OutputLayer

MAX_LOGITS = 2**26
"""Logits that are held at a time while symbols are chosen: 256 MiB in float32."""

Termination = Literal["slot", "sequence"]


class SlotConfig(BackboneConfig):
    """Shape and objective; a change means training again."""

    termination: Termination = "slot"
    """How decoding learns to end: every empty slot predicts the end (slot finalisation), or the slots of the complete
    canvas do and other empty slots are left out of the loss (sequence finalisation, for serial decoding only)."""
    span_weights: Literal["uniform", "binary_tree"] = "binary_tree"
    """Which tokens of a slot's span are wanted: all alike, or those near its centre."""
    tau: float = Field(1.0, gt=0)
    """Temperature of the balanced binary tree, whose weights are proportional to exp(-|i - (L-1)/2| / tau)."""
    alignment: Literal["drawn", "leftmost"] = "drawn"
    """What a canvas is a part of, where repeated tokens leave a choice: those that were drawn to be kept (the paper),
    or the first tokens of the target that it fits, so that a canvas always has the same spans."""
    canvases: int = Field(1, ge=1)
    """Partial targets drawn of each pair at a time (the paper: 1); more of them make the same objective less noisy, and
    an update as much slower. A budget of target tokens counts a pair once, however many canvases it gives."""


@dataclass(frozen=True)
class RollIn:
    """Partial targets, and where their missing tokens belong."""

    tokens: Tensor
    """[b, m+1] int64: bos, the tokens that are kept, eos, PAD."""
    lengths: Tensor
    """[b] int64: kept tokens, and two."""
    missing: Tensor
    """[b, t] bool: target tokens that are not kept."""
    slot: Tensor
    """[b, t] int64: the slot, from 0, that a missing token belongs in."""
    index: Tensor
    """[b, t] int64: place of a missing token in the span of its slot, from 0."""
    span: Tensor
    """[b, t] int64: tokens in that span."""


def roll_in(tgt: Tensor, tgt_len: Tensor, noise: Tensor, leftmost: bool) -> RollIn:
    """Keep k tokens of each target, k uniform in 0..|y| inclusive, each subset of that size equally likely.

    Args:
        tgt: [b, t] ids.
        tgt_len: [b].
        noise: [b, 1 + t] float64, uniform in [0, 1): it draws k, then which tokens.
        leftmost: take the canvas for the first tokens of the target that it fits, not for those that were drawn.
    """
    b, t = tgt.shape
    at = torch.arange(t, device=tgt.device)
    count = (noise[:, 0] * (tgt_len + 1)).long()
    order = noise[:, 1:].masked_fill(~padding_mask(tgt_len, t), float("inf"))
    kept = order.argsort(1).argsort(1) < count[:, None]

    slot = kept.cumsum(1)  # of a kept token: its position on the canvas
    tokens = tgt.new_full((b, t + 3), PAD).scatter_(1, slot.masked_fill(~kept, t + 2), tgt)
    tokens[:, 0] = BOS
    tokens.scatter_(1, count[:, None] + 1, EOS)
    if leftmost:
        kept = _first_match(tgt, tokens)
        slot = kept.cumsum(1)

    before = at.where(kept, -1).cummax(1).values  # the last kept position before a missing one
    after = at.where(kept, tgt_len[:, None]).flip(1).cummin(1).values.flip(1)
    return RollIn(
        tokens[:, : int(count.max()) + 2],
        count + 2,
        padding_mask(tgt_len, t) & ~kept,
        slot,
        index=at - before - 1,
        span=after - before - 1,
    )


def _first_match(tgt: Tensor, canvas: Tensor) -> Tensor:
    """Return [b, t] bool: the first tokens of tgt [b, t] that the canvas [b, m+1] consists of, bos and eos apart."""
    waiting = torch.ones(tgt.shape[0], 1, dtype=torch.long, device=tgt.device)  # position of the next token to match
    matched = []
    for token in tgt.T[..., None]:
        matched.append(canvas.gather(1, waiting) == token)
        waiting = waiting + matched[-1]
    return torch.cat([*matched, tgt.new_empty((tgt.shape[0], 0), dtype=torch.bool)], dim=1)


def span_weights(longest: int, tau: float | None, device: torch.device | str = "cpu") -> Tensor:
    """Return float32 weights [longest, longest]: row L - 1 holds those of a span of L tokens, which sum to 1.

    They are proportional to exp(-|i - (L-1)/2| / tau), the soft balanced binary tree, or equal if tau is None.
    """
    i = torch.arange(longest, device=device, dtype=torch.float32)
    length = i[:, None] + 1
    logits = torch.zeros(longest, longest, device=device) if tau is None else -(i - (length - 1) / 2).abs() / tau
    return logits.masked_fill(i >= length, float("-inf")).softmax(1)


class SlotHead(nn.Module):
    """The distribution over insertions, p(content, slot) = p(content | slot) p(slot), from a decoder's states.

    A slot's representation is the concatenation of the states on both sides, projected to the width of the output.
    With slot finalisation every slot counts the same in training, p(slot) is uniform at the optimum, and not modelled.
    With sequence finalisation it is a softmax over slots, which learns the slots that are not empty.
    """

    def __init__(self, weight: Tensor, config: SlotConfig) -> None:
        """Tie the output to `weight` [v, d]."""
        super().__init__()
        d = weight.shape[1]
        self.termination: Termination = config.termination
        self.tau = config.tau if config.span_weights == "binary_tree" else None
        self.combine = Linear(2 * d, d)
        nn.init.xavier_uniform_(self.combine.weight)
        nn.init.zeros_(self.combine.bias)
        self.location = Linear(d, 1, bias=False) if config.termination == "sequence" else None
        self.output = OutputLayer(weight, banned=(PAD, BOS, UNK, MASK, BLANK, PLH))

    def forward(self, states: Tensor) -> Tensor:
        """Return representations of slots [n, m, d] from states [n, m+1, d] of canvases."""
        slots: Tensor = self.combine(torch.cat([states[:, :-1], states[:, 1:]], dim=-1))
        return slots

    def log_location(self, slots: Tensor, real: Tensor) -> Tensor:
        """Return float32 log p(slot) [n, m] over the `real` [n, m] ones of slots [n, m, d]; 0 if it is not modelled."""
        if self.location is None:
            return torch.zeros(real.shape, device=real.device)
        logits: Tensor = self.location(slots)[..., 0].float()
        return logits.masked_fill(~real, float("-inf")).log_softmax(1)

    def loss(self, slots: Tensor, tgt: Tensor, rolled: RollIn, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum over sentences of their losses, in nats, and its parts, detached.

        A sentence's loss is the mean over its slots of the slot's loss: the weighted negative log-likelihood of its
        span, or that of eos where the span is empty. With sequence finalisation the mean is over the slots that have
        one, those with a span or all of a complete canvas, and -log p(slot) is added to each.

        Args:
            slots: [b, m, d].
            tgt: [b, t].
            rolled: the canvases that `slots` are from.
            weight: [b] float32, of each sentence.
        """
        real = padding_mask(rolled.lengths - 1, slots.shape[1])
        rows, columns = rolled.missing.nonzero(as_tuple=True)
        places = rolled.slot[rows, columns]
        ending = real.clone()  # empty slots, and of these the ones that have a loss
        ending[rows, places] = False
        if self.termination == "sequence":
            ending &= ~rolled.missing.any(1, keepdim=True)
        scored = ending.clone()
        scored[rows, places] = True
        slot_weight = scored * (weight / scored.sum(1))[:, None]  # [b, m]

        log_z, _ = self.output.log_partition(slots[scored], slot_weight[scored])
        table = span_weights(tgt.shape[1], self.tau, tgt.device)
        shares = table[rolled.span[rows, columns] - 1, rolled.index[rows, columns]]
        ending_rows, ending_places = ending.nonzero(as_tuple=True)
        rows, places = torch.cat([rows, ending_rows]), torch.cat([places, ending_places])
        gold = torch.cat([tgt[rolled.missing], torch.full_like(ending_rows, EOS)])
        shares = torch.cat([shares, torch.ones_like(ending_rows, dtype=shares.dtype)])
        content = log_z - (self.output.logits_of(slots[rows, places], gold) * shares * slot_weight[rows, places]).sum()
        if self.location is None:
            return content, {"content": content.detach()}
        location = -(self.log_location(slots, real)[scored] * slot_weight[scored]).sum()
        return content + location, {"content": content.detach(), "location": location.detach()}

    def best(self, slots: Tensor, real: Tensor, eos_penalty: float) -> tuple[Tensor, Tensor]:
        """Return the best symbol of each slot and log p(symbol, slot), without the penalty, [n, m] each.

        Args:
            slots: [n, m, d].
            real: [n, m] bool; other slots get PAD and 0.
            eos_penalty: subtracted from the log-probability of eos, in nats.
        """
        ids, log_probs = [], []
        for part in torch.split(slots[real], max(1, MAX_LOGITS // self.output.weight.shape[0])):
            logits = self.output(part)
            log_z = logits.logsumexp(-1)
            logits[:, EOS] -= eos_penalty
            value, chosen = logits.max(-1)
            ids.append(chosen)
            log_probs.append(value - log_z + eos_penalty * (chosen == EOS))
        content = torch.zeros(real.shape, device=real.device).masked_scatter(real, torch.cat(log_probs))
        symbols = ids[0].new_full(real.shape, PAD).masked_scatter(real, torch.cat(ids))
        return symbols, content + self.log_location(slots, real).masked_fill(~real, 0.0)
