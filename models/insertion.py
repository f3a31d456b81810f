"""Insertion Transformer (Stern et al. 2019).

A decoder without causal mask reads a partial target, and for each slot between neighbours predicts a token to insert
there, or that the slot is finished. In training the partial target is a random subset of the tokens; in decoding every
slot is filled at once, which takes floor(log2 n) + 1 passes for n tokens if centres are inserted, and one that finds
every slot finished; or the best slot alone.

Terminations: slot finalisation with p(content | slot), for both ways of decoding; sequence finalisation with
p(content | slot) p(slot), the paper's factorised distribution, for serial decoding. Parallel decoding needs to know
which slots are finished, so it is refused for a model with sequence finalisation.

Deviations from the paper: slots' representations are projected from 2d to d, so that the output is tied to the
embedding; with slot finalisation p(slot), whose optimum is uniform, is not modelled; no
contextual bias over the vocabulary and no mixture of softmaxes; with sequence finalisation the mean over slots leaves
out those without loss; a sentence's mean slot loss counts |y| + 1 times, the number of canvas sizes that it is drawn
from, so that the sum over sentences estimates a whole generation of each; one symbol, eos, serves as end of the canvas,
of slot and of sequence; pre-norm by default, no dropout on attention weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.decoding.insertions import InsertionSettings, insert_until_done
from models.decoding.noise import draw_seeds, uniform_noise
from models.decoding.refinement import Canvas
from models.encoder import CanvasDecoder, Memory, source_encoder
from models.interface import Batch, DataSpec, Decoded, Family, Losses, Model
from models.layers import Embedding, Stack, padding_mask
from models.slots import SlotConfig, SlotHead, Termination, roll_in


class Config(SlotConfig):
    """Shape and objective; a change means training again."""


class Settings(InsertionSettings):
    """Decoding; swept over one checkpoint."""


class InsertionTransformer(Model):
    """Encoder, and a decoder over partial targets."""

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        c = config
        self.max_target_length = data.max_target_length
        self.leftmost = c.alignment == "leftmost"
        self.canvases = c.canvases
        positions = max(data.source_tokens, data.max_target_length + 2)
        self.embedding = Embedding(data.vocab_size, c.model_dim, positions, c.dropout)
        self.encoder = source_encoder(c, data, self.embedding)
        self.decoder = CanvasDecoder(self.embedding, Stack(c.decoder_layers, *c.layer_shape, cross=True))
        self.head = SlotHead(self.embedding.tokens.weight, c)

    def loss(self, batch: Batch, rng: torch.Generator) -> Losses:
        """Slot loss of a pair's partial targets, scaled to the |y| + 1 sizes they are drawn from, per target token."""
        tgt, tgt_len = (x.repeat_interleave(self.canvases, 0) for x in (batch.tgt, batch.tgt_len))
        rolled = roll_in(tgt, tgt_len, uniform_noise(draw_seeds(rng, len(tgt)), 0, 1 + tgt.shape[1]), self.leftmost)
        memory = self.decoder.remember(self.encoder(batch.src, batch.src_len))
        slots = self.head(self.decoder(rolled.tokens, rolled.lengths, memory))
        num_tokens = int(batch.tgt_len.sum())
        total, parts = self.head.loss(slots, tgt, rolled, (tgt_len + 1) / (self.canvases * max(num_tokens, 1)))
        return Losses(total, num_tokens, parts)

    def decode(self, src: Tensor, src_len: Tensor, settings: Settings) -> Decoded:
        """Decode by insertion; see `models.decoding.insertions.insert_until_done`."""
        reader = _Reader(self, self.decoder.remember(self.encoder(src, src_len)))
        return insert_until_done(reader, src_len, self.max_target_length, settings)

    def observed_modules(self) -> dict[str, list[nn.Module]]:
        """The encoder's stack and the decoder's."""
        return {"encoder": [self.encoder.stack], "decoder": [self.decoder.stack]}


class _Reader:
    """The `SlotNetwork` of one decode: the model and the sources that it attends to."""

    def __init__(self, model: InsertionTransformer, memory: Memory) -> None:
        self.model = model
        self.memory = memory
        self.termination: Termination = model.head.termination

    def propose(self, canvas: Canvas, eos_penalty: float) -> tuple[Tensor, Tensor]:
        slots = self.model.head(self.model.decoder(canvas.tokens, canvas.lengths, self.memory))
        return self.model.head.best(slots, padding_mask(canvas.lengths - 1, slots.shape[1]), eos_penalty)

    def select(self, rows: Tensor) -> None:
        self.memory = self.memory.select(rows)


FAMILY = Family(
    "insertion", Config, Settings, InsertionTransformer, autoregressive=False, title="Insertion Transformer"
)
