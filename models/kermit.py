"""KERMIT (Chan et al. 2019): the insertion objective with one stack over the concatenated pair, without an encoder.

The stack reads [bos x eos ; bos y eos] without causal mask, where one side is given and the other a canvas; segment
embeddings tell the languages apart. Slots, objective, terminations and decoding are the Insertion Transformer's (see
`models.insertion` and its deviations). A model with `joint` is trained in both directions, one drawn per canvas, and
can be asked for p(y | x) and for p(x | y); what it cannot do is insert on both sides at once, p(x, y), or model the
marginals.

Deviations from the paper: positions start anew in each segment, so that it does not matter which comes first; the
stack is encoder_layers + decoder_layers deep, the depth that an encoder-decoder of the same backbone has in all (the
paper widens its stack instead); the given side is read again in every pass, as it attends to the canvas, and by every
canvas in training.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from models.decoding.insertions import InsertionSettings, insert_until_done
from models.decoding.noise import draw_seeds, uniform_noise
from models.decoding.refinement import Canvas
from models.interface import BOS, EOS, PAD, UNK, Batch, DataSpec, Decoded, Family, Losses, Model, Options
from models.layers import Embedding, Stack, padding_mask
from models.slots import SlotConfig, SlotHead, Termination, roll_in

REVERSE = "reverse needs a model that is trained in both directions (config: joint true)"
UNSCORED = "reverse decodes sources, and suites score targets; it is for use from Python"


class Config(SlotConfig):
    """Shape and objective; a change means training again. The one stack has encoder_layers + decoder_layers layers."""

    joint: bool = False
    """Train in both directions: half of the canvases, drawn anew each time, are of the source instead."""

    @model_validator(mode="after")
    def _no_convolution(self) -> Self:
        if self.convolution:
            raise ValueError(f"convolution {self.convolution} has no place: source and canvas share the one stack")
        return self


class Settings(InsertionSettings):
    """Decoding; swept over one checkpoint."""

    reverse: bool = False
    """Take the input for a target and decode a source, p(x | y); needs a model with `joint`."""

    def misfit(self, config: Options) -> str | None:
        """Beside what does not fit any insertion: the reverse, whose output has no references."""
        if self.reverse:
            return UNSCORED if getattr(config, "joint", False) else REVERSE
        return super().misfit(config)


class Kermit(Model):
    """One stack that reads what is given and a canvas side by side."""

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        c = config
        self.joint = c.joint
        self.max_source_length = data.max_source_length
        self.max_target_length = data.max_target_length
        self.leftmost = c.alignment == "leftmost"
        self.canvases = c.canvases
        positions = max(data.max_source_length, data.max_target_length) + 2
        self.embedding = Embedding(data.vocab_size, c.model_dim, positions, c.dropout)
        self.segments = nn.Embedding(2, c.model_dim)  # source, target
        nn.init.normal_(self.segments.weight, std=c.model_dim**-0.5)
        self.decoder = Stack(c.encoder_layers + c.decoder_layers, *c.layer_shape)
        self.head = SlotHead(self.embedding.tokens.weight, c)

    def loss(self, batch: Batch, rng: torch.Generator) -> Losses:
        """Slot loss of a pair's partial sides, scaled to the sizes they are drawn from, per target token."""
        pair = (batch.src, batch.src_len, batch.tgt, batch.tgt_len)
        given, given_len, out, out_len = (x.repeat_interleave(self.canvases, 0) for x in pair)
        seeds = draw_seeds(rng, len(out))
        reverse = torch.zeros_like(out_len, dtype=torch.bool)
        if self.joint:
            # No decoder emits the unknown word: a source that holds it is never the output.
            known = (batch.src != UNK).all(1).repeat_interleave(self.canvases)
            reverse = (uniform_noise(seeds, 1, 1)[:, 0] < 0.5) & known
            given, out = _swapped(given, out, reverse)
            given_len, out_len = given_len.where(~reverse, out_len), out_len.where(~reverse, given_len)
        rolled = roll_in(out, out_len, uniform_noise(seeds, 0, 1 + out.shape[1]), self.leftmost)
        states = self.read(*_enclosed(given, given_len), rolled.tokens, rolled.lengths, reverse)
        num_tokens = int(batch.tgt_len.sum())
        weight = (out_len + 1) / (self.canvases * max(num_tokens, 1))
        total, parts = self.head.loss(self.head(states), out, rolled, weight)
        return Losses(total, num_tokens, parts)

    def read(self, given: Tensor, given_len: Tensor, canvas: Tensor, lengths: Tensor, reverse: Tensor) -> Tensor:
        """Return states [n, t, d] of canvases [n, t] beside what is `given` [n, s], bos and eos included in both.

        reverse: [n] bool; True where a target is given and the canvas is that of a source.
        """
        side = reverse.long()[:, None]
        x = torch.cat(
            [self.embedding(given) + self.segments(side), self.embedding(canvas) + self.segments(1 - side)], dim=1
        )
        mask = torch.cat([padding_mask(given_len, given.shape[1]), padding_mask(lengths, canvas.shape[1])], dim=1)
        states: Tensor = self.decoder(x, self_mask=mask[:, None, None, :])
        return states[:, given.shape[1] :]

    def decode(self, src: Tensor, src_len: Tensor, settings: Settings) -> Decoded:
        """Decode by insertion; see `models.decoding.insertions.insert_until_done`.

        Raises:
            ValueError: the reverse of a model that was trained in one direction, or as `insert_until_done` says.
        """
        if settings.reverse and not self.joint:
            raise ValueError(REVERSE)
        reader = _Reader(self, *_enclosed(src, src_len), settings.reverse)
        limit = self.max_source_length if settings.reverse else self.max_target_length
        return insert_until_done(reader, src_len, limit, settings)

    def observed_modules(self) -> dict[str, list[nn.Module]]:
        """The one stack, as the decoder."""
        return {"decoder": [self.decoder]}


class _Reader:
    """The `SlotNetwork` of one decode: the model and what it is given."""

    def __init__(self, model: Kermit, given: Tensor, given_len: Tensor, reverse: bool) -> None:
        self.model = model
        self.given = given
        self.given_len = given_len
        self.reverse = torch.full_like(given_len, reverse, dtype=torch.bool)
        self.termination: Termination = model.head.termination

    def propose(self, canvas: Canvas, eos_penalty: float) -> tuple[Tensor, Tensor]:
        states = self.model.read(self.given, self.given_len, canvas.tokens, canvas.lengths, self.reverse)
        slots = self.model.head(states)
        return self.model.head.best(slots, padding_mask(canvas.lengths - 1, slots.shape[1]), eos_penalty)

    def select(self, rows: Tensor) -> None:
        kept = (x.index_select(0, rows) for x in (self.given, self.given_len, self.reverse))
        self.given, self.given_len, self.reverse = kept


def _enclosed(ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids [n, t] of `lengths` [n] between bos and eos, [n, t+2], and their lengths."""
    enclosed = nn.functional.pad(ids, (1, 1), value=PAD)
    enclosed[:, 0] = BOS
    return enclosed.scatter(1, lengths[:, None] + 1, EOS), lengths + 2


def _swapped(first: Tensor, second: Tensor, swap: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids [n, t] and [n, s], both as wide as the wider one, exchanged in the rows where `swap` [n] is True."""
    width = max(first.shape[1], second.shape[1])
    first, second = (nn.functional.pad(x, (0, width - x.shape[1]), value=PAD) for x in (first, second))
    return first.where(~swap[:, None], second), second.where(~swap[:, None], first)


FAMILY = Family("kermit", Config, Settings, Kermit, autoregressive=False, title="KERMIT", modalities=("text",))
