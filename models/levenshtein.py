"""Levenshtein Transformer (Gu, Wang & Zhao 2019): a canvas is rewritten by deletion and insertion, both learned.

Three heads share one decoder, all of its layers: one deletes tokens, one says how many placeholders to insert between
two neighbours, one fills them. Decoding starts from the empty canvas, bos eos; a round deletes, inserts and fills; a
sentence stops when a round leaves its canvas as it was. Training imitates an expert who makes the fewest edits
(`models.decoding.edits`) in states that the learner itself gets into: dual policy learning.

A pass is one run of the decoder. A round takes at most three, the first one two: no pass is made to fill no
placeholders, nor to see once more canvases of which nothing was deleted (so none for the deletions of an empty canvas).

Deviations from the paper: no early exit; pre-norm by default, and no dropout on attention weights; drafts hold the
learner's most probable tokens (`drafts`), as in its published code, where the paper samples them: from samples it
learns to delete improbable tokens, which decoding never writes; the insertion state is what the learner's own deletion
(argmax, as in decoding) leaves of the deletion state, with which it is empty where that is; the number of tokens
dropped at random is uniform in 0..|y| inclusive, so that the complete canvas, where nothing is to be inserted, and the
empty one are trained for certain (its published code excludes the former); each head's loss is the mean over what it
classified, as in that code, where the paper writes sums; special symbols are never predicted. The expert's choice among
equally short scripts is named in `models.decoding.edits`.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.decoding.edits import (
    apply_deletions,
    bounded,
    expert_edits,
    fill,
    inner,
    insert_placeholders,
    limited,
    missing_tokens,
)
from models.decoding.noise import draw_seeds, uniform_noise
from models.decoding.refinement import Canvas, lowest, refine_until_done
from models.encoder import CanvasDecoder, Memory, source_encoder
from models.fixed_length import LengthSettings
from models.interface import NUM_SPECIAL, PAD, PLH, Batch, DataSpec, Decoded, Family, Losses, Model
from models.layers import BackboneConfig, Embedding, Stack, padding_mask
from models.linear import Linear
from models.output import OutputLayer

CHUNK_LOGITS = 2**24
"""Most probabilities at a time while tokens are drawn: 128 MiB in float64."""
MIXTURE, DRAFT, SAMPLE, DROP = 0, 1, 3, 4  # streams of noise; those of `random_tokens` take two each


class Config(BackboneConfig):
    """Shape and objective; a change means retraining."""

    max_placeholders: int = Field(255, ge=1)
    """Most placeholders that are inserted between two neighbours at once; the head has a class for each number."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Probability mass that the token loss spreads evenly over the emittable symbols."""
    canvases: int = Field(1, ge=1)
    """Canvases of each kind drawn of each target at a time (the paper: 1), which share a pass of the encoder; more of
    them make the same objective less noisy, for more time. A budget of target tokens counts a pair once."""
    alpha: float = Field(0.5, ge=0, le=1)
    """Share of sentences whose deletion state is the empty canvas; the others' is a draft by the learner."""
    drafts: Literal["best", "sampled"] = "best"
    """The learner writes drafts as it decodes, by its most probable tokens, or samples them as in the paper."""
    beta: float = Field(0.5, ge=0, le=1)
    """Share of sentences whose insertion state is the learner's deletion output; the others' drops random tokens."""


class Settings(LengthSettings):
    """Decoding; swept over one checkpoint."""

    iterations: int = Field(10, ge=1)
    """Most rounds per sentence."""
    penalty: float = 0.0
    """Subtracted from the logit of inserting nothing, so that more is inserted if it is positive."""

    @model_validator(mode="after")
    def _fixed_length_decides(self) -> Self:
        if self.fixed and self.penalty:
            raise ValueError("penalty has no effect with output_length source")
        return self


class Levenshtein(Model):
    """Encoder, and one decoder with heads for deletion, placeholders and tokens."""

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        c = config
        self.max_placeholders = c.max_placeholders
        self.label_smoothing = c.label_smoothing
        self.canvases = c.canvases
        self.alpha = c.alpha
        self.drafts = c.drafts
        self.beta = c.beta
        self.max_target_length = data.max_target_length
        # In training the expert may insert a whole target between the tokens, all wrong, of a whole draft.
        positions = max(data.source_tokens, 2 * data.max_target_length + 2)
        self.embedding = Embedding(data.vocab_size, c.model_dim, positions, c.dropout)
        self.encoder = source_encoder(c, data, self.embedding)
        self.decoder = CanvasDecoder(self.embedding, Stack(c.decoder_layers, *c.layer_shape, cross=True))
        self.deletion = Linear(c.model_dim, 2)
        self.placeholder = Linear(2 * c.model_dim, c.max_placeholders + 1)
        for head in (self.deletion, self.placeholder):
            nn.init.normal_(head.weight, std=c.model_dim**-0.5)
            nn.init.zeros_(head.bias)
        self.output = OutputLayer(self.embedding.tokens.weight, banned=range(NUM_SPECIAL))

    def read(self, src: Tensor, src_len: Tensor) -> Memory:
        """Encode sources; return what the decoder attends to."""
        return self.decoder.remember(self.encoder(src, src_len))

    def states(self, canvas: Canvas, memory: Memory) -> Tensor:
        """Make a pass: return the decoder's states [b, t, d] of canvases [b, t]."""
        states: Tensor = self.decoder(canvas.tokens, canvas.lengths, memory)
        return states

    def deletion_logits(self, states: Tensor) -> Tensor:
        """Return float32 logits [..., 2] of keeping and of deleting a token with states [..., d]."""
        logits: Tensor = self.deletion(states).float()
        return logits

    def placeholder_logits(self, states: Tensor) -> Tensor:
        """Return float32 logits [b, t-1, k+1] of 0..k placeholders between neighbours with states [b, t, d]."""
        logits: Tensor = self.placeholder(torch.cat([states[:, :-1], states[:, 1:]], dim=-1)).float()
        return logits

    def loss(self, batch: Batch, rng: torch.Generator) -> Losses:
        """Cross-entropy of deletions plus that of placeholders plus that of tokens.

        Each is a mean: over the tokens that could be deleted, the slots, and the placeholders of the whole batch. Costs
        three passes and one without gradient; those of the deletion state only where it is not empty.
        """
        memory = self.read(batch.src, batch.src_len)
        tgt, tgt_len = (x.repeat_interleave(self.canvases, 0) for x in (batch.tgt, batch.tgt_len))
        target = bounded(tgt, tgt_len)
        seeds = draw_seeds(rng, len(tgt))
        empty, learner = mixture(seeds, self.alpha, self.beta)

        rows = (~empty & (tgt_len > 0)).nonzero()[:, 0]
        if not len(rows):  # then an empty canvas, of which nothing is classified
            rows = rows.new_zeros(1)
        aims, sources = target.select(rows), memory.select(rows // self.canvases)
        drafts = self.deletion_state(aims, sources, seeds[rows], empty[rows])
        logits = self.deletion_logits(self.states(drafts, sources))
        erasable = inner(drafts)
        wrong = expert_edits(drafts, aims).delete
        deletion = F.cross_entropy(logits[erasable], wrong[erasable].long(), reduction="sum")
        deletion = deletion / erasable.sum().clamp(min=1)

        canvas = insertion_state(target, seeds, learner, rows, apply_deletions(drafts, chosen(logits) & erasable))
        edits = expert_edits(canvas, target)
        counts = edits.insert.clamp(max=self.max_placeholders)
        slots = padding_mask(canvas.lengths - 1, canvas.tokens.shape[1] - 1)
        logits = self.placeholder_logits(self.states(canvas, memory))
        placeholder = F.cross_entropy(logits[slots], counts[:, :-1][slots])

        canvas = insert_placeholders(canvas, counts)
        hidden = self.states(canvas, memory)[canvas.tokens == PLH]  # [m, d]
        weight = hidden.new_full((len(hidden),), 1 / max(len(hidden), 1), dtype=torch.float32)
        gold = missing_tokens(target, edits, counts)
        token, plain = self.output.cross_entropy(hidden, gold, weight, self.label_smoothing)
        parts = {"deletion": deletion.detach(), "placeholder": placeholder.detach(), "token": plain}
        return Losses(deletion + placeholder + token, int(batch.tgt_len.sum()), parts)

    @torch.no_grad()
    def deletion_state(self, target: Canvas, memory: Memory, seeds: Tensor, empty: Tensor) -> Canvas:
        """Return canvases [b, t] to delete from: bos eos where `empty` [b], elsewhere drafts as long as the targets.

        For a draft the expert puts placeholders for random tokens of the target, and the learner fills them: with the
        most probable tokens, or with tokens drawn by their probability.
        """
        tokens = target.tokens.masked_fill(random_tokens(target, seeds, DRAFT), PLH)
        canvas, hidden = Canvas(tokens, target.lengths, target.scores), tokens == PLH
        states = self.states(canvas, memory)[hidden]
        if self.drafts == "best":
            ids, log_probs = self.output.most_probable(states)
        else:
            ids = draw(self.output, states, uniform_noise(seeds, SAMPLE, tokens.shape[1])[hidden])
            log_probs = states.new_zeros(len(ids))
        drafts = fill(canvas, ids, log_probs)
        return apply_deletions(drafts, inner(drafts) & empty[:, None])

    def decode(self, src: Tensor, src_len: Tensor, settings: Settings) -> Decoded:
        """Rewrite each sentence until a round changes nothing; scores are the sums of the tokens' log-probabilities.

        A token's is that which it had when it was filled in; neither deletions nor placeholders are scored. Outputs of
        a fixed length are rewritten in all rounds, every second token of them.
        """
        nothing = src_len.new_zeros(len(src), 0)
        start = bounded(nothing, torch.zeros_like(src_len))
        fixed = src_len.clamp(max=self.max_target_length) if settings.fixed else None
        refiner = Rewriting(self, self.read(src, src_len), settings.penalty, fixed)
        canvas, iterations = refine_until_done(refiner, start, settings.iterations)
        lengths = canvas.lengths - 2
        real = padding_mask(lengths, canvas.tokens.shape[1] - 2)
        tokens = canvas.tokens[:, 1:-1].masked_fill(~real, PAD)
        return Decoded(tokens, lengths, canvas.scores.sum(1), iterations)

    def observed_modules(self) -> dict[str, list[nn.Module]]:
        """The encoder's stack and the decoder's."""
        return {"encoder": [self.encoder.stack], "decoder": [self.decoder.stack]}


def mixture(seeds: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """Return [b] bool each: whose deletion state is empty (rate alpha), whose insertion state the learner's (beta)."""
    noise = uniform_noise(seeds, MIXTURE, 2)
    return noise[:, 0] < alpha, noise[:, 1] < beta


def random_tokens(target: Canvas, seeds: Tensor, stream: int) -> Tensor:
    """Return [b, t] bool: a random set of the tokens of targets [b, t] with boundaries, its size uniform in 0..|y|."""
    counts = (uniform_noise(seeds, stream, 1)[:, 0] * (target.lengths - 1)).long()
    noise = uniform_noise(seeds, stream + 1, target.tokens.shape[1])
    return lowest(noise.masked_fill(~inner(target), float("inf")), counts)


def insertion_state(target: Canvas, seeds: Tensor, learner: Tensor, rows: Tensor, left: Canvas) -> Canvas:
    """Return canvases [b, t] to insert into: where `learner` [b], what it has left of the deletion state.

    That is `left` [m, t] for `rows` [m], and the empty canvas for others. Elsewhere random tokens of the target [b, t]
    are dropped.
    """
    nothing = apply_deletions(target, inner(target))
    dropped = apply_deletions(target, random_tokens(target, seeds, DROP))
    tokens = nothing.tokens.index_copy(0, rows, left.tokens)
    lengths = nothing.lengths.index_copy(0, rows, left.lengths)
    tokens = torch.where(learner[:, None], tokens, dropped.tokens)
    return Canvas(tokens, torch.where(learner, lengths, dropped.lengths), target.scores)


def chosen(logits: Tensor) -> Tensor:
    """Return [...] bool: where deletion logits [..., 2] say delete; in doubt a token stays."""
    return logits[..., 1] > logits[..., 0]


def draw(output: OutputLayer, states: Tensor, noise: Tensor) -> Tensor:
    """Return symbols [n] drawn by their probability at states [n, d], by inversion of uniform noise [n] float64."""
    ids = []
    rows = max(1, CHUNK_LOGITS // output.weight.shape[0])
    for part, share in zip(torch.split(states, rows), torch.split(noise, rows), strict=True):
        mass = output(part).softmax(-1).cumsum(-1, dtype=torch.float64)
        ids.append(torch.searchsorted(mass, share[:, None] * mass[:, -1:], right=True)[:, 0])
    return torch.cat(ids)


class Rewriting:
    """The refiner: deletes, inserts placeholders and fills them."""

    def __init__(self, model: Levenshtein, memory: Memory, penalty: float, fixed: Tensor | None = None) -> None:
        """Rewrite what attends to `memory`.

        fixed: [n] lengths of the outputs, whatever the heads say: then each round after the first deletes every second
        token and puts one in its place, so that it takes its three passes.
        """
        self.fixed = fixed
        self.model = model
        self.memory = memory
        self.penalty = penalty
        self.states: Tensor | None = None  # of the canvases as they are, if a pass has been made over them

    def refine(self, canvas: Canvas, iteration: int) -> tuple[Canvas, Tensor | None]:
        """Make one round; a row is done if its canvas is what it was, and of fixed length never."""
        before = canvas
        delete = chosen(self.model.deletion_logits(self._states(canvas))) & inner(canvas)
        delete = delete if self.fixed is None else every_second(canvas)
        if delete.any():
            canvas, self.states = apply_deletions(canvas, delete), None
        logits = self.model.placeholder_logits(self._states(canvas))
        logits[..., 0] -= self.penalty
        slots = padding_mask(canvas.lengths - 1, logits.shape[1])
        counts = limited(logits.argmax(-1) * slots, self.model.max_target_length + 2 - canvas.lengths)
        counts = counts if self.fixed is None else even_counts(canvas, self.fixed)
        if counts.any():
            canvas = insert_placeholders(canvas, F.pad(counts, (0, 1)))
            states = self.model.states(canvas, self.memory)[canvas.tokens == PLH]
            canvas, self.states = fill(canvas, *self.model.output.most_probable(states)), None
        if self.fixed is not None:
            return canvas, None
        # If one is longer, they differ where the other ends.
        width = min(before.tokens.shape[1], canvas.tokens.shape[1])
        return canvas, (canvas.tokens[:, :width] == before.tokens[:, :width]).all(1)

    def _states(self, canvas: Canvas) -> Tensor:
        if self.states is None:
            self.states = self.model.states(canvas, self.memory)
        return self.states

    def select(self, rows: Tensor) -> None:
        """Keep `rows` of the sources, and of the states."""
        self.memory = self.memory.select(rows)
        self.states = None if self.states is None else self.states.index_select(0, rows)
        self.fixed = None if self.fixed is None else self.fixed.index_select(0, rows)


def every_second(canvas: Canvas) -> Tensor:
    """Return [n, t] bool: the first token between bos and eos, the third, and so on."""
    return inner(canvas) & (torch.arange(canvas.tokens.shape[1], device=canvas.tokens.device) % 2 == 1)


def even_counts(canvas: Canvas, lengths: Tensor) -> Tensor:
    """Return [n, t-1] placeholders for each slot, evenly and the first slots more, for outputs of `lengths` [n]."""
    slots = (canvas.lengths - 1)[:, None]
    missing = (lengths + 2 - canvas.lengths)[:, None]
    at = torch.arange(canvas.tokens.shape[1] - 1, device=slots.device)
    return (missing // slots + (at < missing % slots)) * (at < slots)


FAMILY = Family("levenshtein", Config, Settings, Levenshtein, autoregressive=False, title="Levenshtein Transformer")
