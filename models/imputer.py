"""Imputer (Chan et al. 2020; for translation Saharia et al. 2020): CTC whose frames are committed in a few passes.

A stack over the upsampled encoder states, as in the CTC model, reads a partial alignment beside them: a symbol or blank
at each committed frame, MASK at the others. Frames stand in blocks of B. Training shows r random frames of every block
of the best alignment under a trained CTC model, r ~ Uniform{0..B-1} per sentence, and maximises the sum over the
target's alignments that agree with them. Decoding commits the most confident frames of every block, pass by pass.

The last block of a sentence may be short: r of its frames are shown, or all of them if it has no more, which are the
states that decoding meets. A sentence of fewer frames than B has r below their number, and as few passes.

Deviations from the papers: pre-norm by default, no dropout on attention weights; cross-attention by default (Saharia et
al. have none); the tied embeddings, behind a linear map that starts at zero, embed the partial alignment, so that
training starts from the very outputs of the CTC model; short blocks, and K that does not divide B, are treated as here.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.alignment import collapse, ctc_loss
from models.decoding.noise import draw_seeds, uniform_noise
from models.decoding.refinement import Canvas, refine_until_done
from models.encoder import Memory, memory_mask, source_encoder
from models.fixed_length import LengthSettings, refused_frames, spaced_out
from models.interface import (
    BOS,
    EOS,
    MASK,
    PAD,
    PLH,
    UNK,
    Batch,
    DataSpec,
    Decoded,
    Family,
    Losses,
    Model,
    Options,
    Role,
)
from models.layers import Embedding, padding_mask
from models.linear import Linear
from models.output import OutputLayer
from models.upsampling import FrameConfig, Upsampler, attends_to_source, frame_layers, frames_per_position
from models.weights import attention_heads, weights_of


class Config(FrameConfig):
    """Shape and objective; a change means retraining. All but block_size is as in the companion `ctc`."""

    block_size: int = Field(8, ge=1)
    """Frames per block (B): the most passes that decoding can take."""

    def needs(self, modality: str = "text") -> frozenset[str]:
        """The CTC model that training starts from and whose alignments it is shown."""
        return frozenset({"ctc"})

    def refuses(self, role: str, other: Options) -> str | None:
        """A CTC model of another shape: training starts from its weights."""
        shape = [name for name in type(self).model_fields if name not in ("block_size", "dropout")]
        return self.differing(other, shape)


class Settings(LengthSettings):
    """Decoding; swept over one checkpoint."""

    iterations: int = Field(8, ge=1)
    """Decoder passes (K): pass i ends with floor(i * B / K) frames of each block committed; more than B count as B."""

    def misfit(self, config: Options) -> str | None:
        """Outputs as long as the source need a blank between two tokens."""
        return refused_frames(self, getattr(config, "upsampling", None))


class Imputer(Model):
    """Encoder, upsampling and a stack over frames that sees what is committed so far."""

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        c = config
        self.cross_attention = attends_to_source(c, data)
        self.block_size = c.block_size
        self.max_target_length = data.max_target_length
        self.embedding = Embedding(data.vocab_size, c.model_dim, data.source_tokens, c.dropout)
        self.encoder = source_encoder(c, data, self.embedding)
        self.upsample = Upsampler(c.model_dim, frames_per_position(c.upsampling, data), self.encoder.max_length)
        self.decoder = frame_layers(c, data)
        self.output = OutputLayer(self.embedding.tokens.weight, banned=(PAD, BOS, EOS, UNK, MASK, PLH))
        # What the CTC model lacks; zero at first, so that nothing changes until it is learned.
        self.committed = Linear(c.model_dim, c.model_dim, bias=False)
        nn.init.zeros_(self.committed.weight)

    def begin_training(self) -> None:
        """Start from the weights of the companion `ctc`.

        Raises:
            ValueError: it has another shape.
        """
        own = {name: x for name, x in weights_of(self).items() if not name.startswith("committed.")}
        given = weights_of(self.companion("ctc"))
        differing = [
            f"{name} is {_shape(given.get(name))} there and {_shape(own.get(name))} here"
            for name in sorted(own.keys() | given.keys())
            if _shape(given.get(name)) != _shape(own.get(name))
        ]
        if attention_heads(self) != attention_heads(self.companion("ctc")):
            differing.append("the numbers of attention heads differ")
        if differing:
            raise ValueError(f"the imputer and its companion 'ctc' must have one shape, but {'; '.join(differing)}")
        for name, x in own.items():
            x.copy_(given[name])

    def loss(self, batch: Batch, rng: torch.Generator) -> Losses:
        """Return -log p of the target given the frames shown, summed over the alignments left, per target token.

        Pairs without labels, and those whose target has no alignment with the frames shown, count as infeasible.
        """
        if batch.labels is None:
            raise ValueError("the imputer trains on alignments: batch.labels must be set")
        encoded = EncodedFrames(self, batch.src, batch.src_len)
        frames = encoded.frames
        labels = _fitted(batch.labels, encoded.inputs.shape[1])
        aligned = (labels != PAD).any(1) | (frames == 0)
        frames = frames.masked_fill(~aligned, 0)
        shown = roll_in(frames, labels.shape[1], self.block_size, draw_seeds(rng, len(frames)))
        revealed = labels.masked_fill(~shown, PAD)
        canvas = torch.where(padding_mask(frames, labels.shape[1]) & ~shown, MASK, revealed)
        hidden = encoded.states(canvas)
        total, _, feasible = ctc_loss(self.output, hidden, frames, batch.tgt, batch.tgt_len, revealed)
        num_tokens = int(batch.tgt_len.sum())
        total = total / max(num_tokens, 1)
        infeasible = int((~(feasible & aligned)).sum())
        return Losses(total, num_tokens, {"imputer": total.detach()}, {"infeasible": infeasible})

    def decode(self, src: Tensor, src_len: Tensor, settings: Settings) -> Decoded:
        """Commit all frames in `settings.iterations` passes; scores sum the log-probabilities of their symbols."""
        passes = min(settings.iterations, self.block_size)
        encoded = EncodedFrames(self, src, src_len)
        frames = encoded.frames
        real = padding_mask(frames, encoded.inputs.shape[1])
        canvas = Canvas(torch.where(real, MASK, PAD), frames, torch.zeros_like(real, dtype=torch.float32))
        committer = BlockCommitter(encoded, self.block_size, passes, ragged=bool((frames < self.block_size).any()))
        canvas, iterations = refine_until_done(committer, canvas, passes)
        alignment = spaced_out(canvas.tokens, frames, src_len) if settings.fixed else canvas.tokens
        tokens, lengths = collapse(alignment, frames)
        lengths = lengths.clamp(max=self.max_target_length)
        return Decoded(tokens[:, : self.max_target_length], lengths, canvas.scores.sum(1), iterations)

    def observed_modules(self) -> dict[str, list[nn.Module]]:
        """The encoder's stack and the stack over frames."""
        return {"encoder": [self.encoder.stack], "decoder": [self.decoder]}


def _shape(x: Tensor | None) -> tuple[int, ...] | None:
    return None if x is None else tuple(x.shape)


def _fitted(labels: Tensor, width: int) -> Tensor:
    """Return labels [b, l] cut or padded to [b, width]: the batch may be padded wider, or narrower, than they are."""
    return F.pad(labels[:, :width], (0, max(width - labels.shape[1], 0)), value=PAD)


def roll_in(frames: Tensor, width: int, block_size: int, seeds: Tensor) -> Tensor:
    """Return [b, width] bool: the frames that training shows, r of every block of `block_size` frames.

    frames: [b] frames that count; seeds: [b]. A sentence draws r ~ Uniform{0..m-1}, m its frames or `block_size` if
    that is less; of its last block min(r, size of the block) are shown.
    """
    blocks = -(-width // block_size)
    choices = frames.clamp(min=1, max=block_size)
    count = (uniform_noise(seeds, 0, 1)[:, 0] * choices).long()  # noise is below 1
    noise = uniform_noise(seeds, 1, blocks * block_size).masked_fill(~padding_mask(frames, blocks * block_size), 2.0)
    rank = noise.view(-1, blocks, block_size).argsort(-1).argsort(-1)
    return (rank < count[:, None, None]).flatten(1)[:, :width] & padding_mask(frames, width)


class EncodedFrames:
    """Encoded sources: the inputs of their frames and what the stack over frames attends to."""

    def __init__(self, model: Imputer, src: Tensor, src_len: Tensor) -> None:
        """Run the encoder once on sources (see `models.interface.Batch`)."""
        source = model.encoder(src, src_len)
        self.model = model
        self.frames = source.lengths * model.upsample.factor  # [b]
        self.inputs = model.upsample(source.states)  # [b, f, d]
        self.mask = memory_mask(self.frames, self.inputs.shape[1])
        self.memory = None
        if model.cross_attention:
            self.memory = Memory(model.decoder.project_memory(source.states), source.mask)

    def states(self, canvas: Tensor) -> Tensor:
        """Return the states of all frames [b, f, d] in sight of the partial alignments `canvas` [b, f]: one pass."""
        symbols = self.model.embedding.tokens(canvas) * self.model.embedding.scale
        layers, mask = (None, None) if self.memory is None else (self.memory.layers, self.memory.mask)
        x = self.inputs + self.model.committed(symbols)
        states: Tensor = self.model.decoder(x, self_mask=self.mask, memory=layers, memory_mask=mask)
        return states

    def propose(self, canvas: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most probable symbols of the frames `positions` [b, m] and their log-probabilities, [b, m]."""
        states = self.states(canvas)
        states = states.gather(1, positions[:, :, None].expand(-1, -1, states.shape[2]))
        ids, log_probs = self.model.output.most_probable(states.flatten(0, 1))
        return ids.view_as(positions), log_probs.view_as(positions)

    def select(self, rows: Tensor) -> None:
        """Keep sentences `rows` [m], in that order."""
        self.frames, self.inputs, self.mask = (x.index_select(0, rows) for x in (self.frames, self.inputs, self.mask))
        self.memory = None if self.memory is None else self.memory.select(rows)


class Proposer(Protocol):
    """What `BlockCommitter` asks for symbols: see `EncodedFrames`."""

    def propose(self, canvas: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """See `EncodedFrames.propose`."""
        ...

    def select(self, rows: Tensor) -> None:
        """See `EncodedFrames.select`."""
        ...


class BlockCommitter:
    """The `Refiner` of block decoding: after pass i of K, floor(i * B / K) frames of each block of B are committed."""

    def __init__(self, proposer: Proposer, block_size: int, passes: int, ragged: bool) -> None:
        """Decode in `passes` <= block_size passes; `ragged`: some sentence has fewer frames than a block."""
        self.proposer = proposer
        self.block_size = block_size
        self.passes = passes
        self.ragged = ragged

    def refine(self, canvas: Canvas, iteration: int) -> tuple[Canvas, Tensor | None]:
        """Commit the most confident symbols among the MASK frames of each block; what is committed stays."""
        before, after = (i * self.block_size // self.passes for i in (iteration, iteration + 1))
        positions, masked = self._masked(canvas.tokens, self.block_size - before)  # [n, blocks, m]
        ids, log_probs = self.proposer.propose(canvas.tokens, positions.flatten(1))
        confidence = log_probs.view_as(positions).masked_fill(~masked, float("-inf"))
        best = confidence.argsort(dim=-1, descending=True, stable=True)[:, :, : after - before]
        # Where a short block has nothing left, a spare last column takes the symbol and is cut off.
        width = canvas.tokens.shape[1]
        where = positions.masked_fill(~masked, width).gather(-1, best).flatten(1)
        tokens = F.pad(canvas.tokens, (0, 1)).scatter(1, where, ids.view_as(positions).gather(-1, best).flatten(1))
        scores = F.pad(canvas.scores, (0, 1)).scatter(
            1, where, log_probs.view_as(positions).gather(-1, best).flatten(1)
        )
        done = canvas.lengths <= after if self.ragged else None
        return Canvas(tokens[:, :width], canvas.lengths, scores[:, :width]), done

    def _masked(self, tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return `count` frames of each block, the MASK ones first, and which of them are MASK, [n, blocks, count]."""
        n, width = tokens.shape
        blocks = -(-width // self.block_size)
        masked = F.pad(tokens == MASK, (0, blocks * self.block_size - width)).view(n, blocks, self.block_size)
        offset = masked.byte().argsort(dim=-1, descending=True, stable=True)[:, :, :count]
        start = torch.arange(blocks, device=tokens.device)[:, None] * self.block_size
        return (start + offset).clamp(max=width - 1), masked.gather(-1, offset)

    def select(self, rows: Tensor) -> None:
        """See `Refiner`."""
        self.proposer.select(rows)


FAMILY = Family(
    "imputer",
    Config,
    Settings,
    Imputer,
    autoregressive=False,
    title="Imputer",
    roles=(Role("ctc", "aligns the targets and gives the first weights", autoregressive=False, families=("ctc",)),),
    labels="ctc_alignment",
)
