"""Non-autoregressive Transformer with fertilities (Gu et al. 2018).

A classifier on the encoder's states gives each source token a fertility, the number of times that its embedding is
copied to the decoder's input; the decoder turns the copies into the target in one pass. Trained on the fertilities of
a word aligner (`Batch.labels`), decoded with the most probable ones, with rounded expectations, or by noisy parallel
decoding (NPD): sampled fertilities, all decoded in one batch, of whose outputs the AR teacher keeps the best.

For speech the positions of the encoder are what fertilities belong to: 1 where a token begins in the best alignment
under a CTC model, which aligns in place of the word aligner, else 0; what is copied is the front end's output there.

Deviations: pre-norm by default; no dropout on attention weights; label smoothing on tokens; the encoder starts from the
teacher's only if asked; the target has no eos, its end is where the copies end; NPD has the most probable fertilities
among its candidates; a sentence without any copy gets one. In the fine-tuning stage the step behind the last copy,
where the student is certain of eos, counts too; the paper's "reverse KL", a cross-entropy of the student under the
teacher without the student's entropy, is kept as printed.
"""

from __future__ import annotations

from typing import Literal, Protocol, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.decoding.fertility import average_fertility, copied_positions, log_prob_of, sampled_fertility
from models.decoding.noise import draw_seeds, row_seeds
from models.encoder import CanvasDecoder, Encoded, Memory, source_encoder
from models.fixed_length import LengthSettings
from models.interface import (
    BLANK,
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
from models.layers import BackboneConfig, Embedding, padding_mask
from models.linear import Linear
from models.output import CHUNK_LOGITS, OutputLayer
from models.positional import PositionalStack
from models.weights import attention_heads


class Config(BackboneConfig):
    """Shape and objective; a change means retraining."""

    max_fertility: int = Field(50, ge=1)
    """Most copies of a source token."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Probability mass spread evenly over the emittable symbols."""
    fertility_weight: float = Field(1.0, gt=0)
    """Weight of the fertilities' cross-entropy beside that of the tokens; with 1 the sum is the paper's bound."""
    encoder_from_teacher: bool = False
    """Whether the encoder starts from the teacher's weights, as in the paper; both then have one shape."""
    fine_tune: float = Field(0.0, ge=0, le=1)
    """Share of the budget, at its end, that is spent on the fine-tuning stage; 0 is none."""
    fine_tune_weight: float = Field(0.25, ge=0, le=1)
    """Weight (the paper's lambda) of the two terms that fine-tuning adds; the cross-entropies keep the rest."""

    def needs(self, modality: str = "text") -> frozenset[str]:
        """A teacher, to start from or to be fine-tuned by; for speech a CTC model, whose alignments are the labels."""
        teacher = {"teacher"} if self.fine_tune or self.encoder_from_teacher else set()
        return frozenset(teacher | ({"ctc"} if modality == "speech" else set()))

    def refuses(self, role: str, other: Options) -> str | None:
        """A CTC model that counts other positions, or a teacher with another encoder if training starts from that."""
        if role == "ctc":
            return self.differing(other, ["subsampling"])
        return self.differing(other, self.ENCODER) if self.encoder_from_teacher else None


class Settings(LengthSettings):
    """Decoding; swept over one checkpoint."""

    fertility: Literal["argmax", "average", "noisy"] = "argmax"
    """The most probable fertilities, their rounded expectations, or the best of many by the teacher (NPD)."""
    candidates: int = Field(10, ge=1)
    """Fertility sequences of `noisy`: the most probable one, and otherwise samples."""
    seed: int = 1
    """Seed of the samples."""
    alpha: float = Field(1.0, ge=0)
    """`noisy` keeps the candidate whose log-probability under the teacher, over its length^alpha with eos counted, is
    the highest: 1, as in the authors' code, is the mean per token, and 0 the sum, which prefers short candidates."""

    @model_validator(mode="after")
    def _every_value_counts(self) -> Self:
        idle = [name for name in ("candidates", "seed", "alpha") if name in self.departures()]
        if idle and self.fertility != "noisy":
            raise ValueError(f"{', '.join(idle)} has no effect without fertility: noisy")
        return self

    def needs(self, modality: str = "text") -> frozenset[str]:
        """A teacher, for noisy parallel decoding."""
        return frozenset({"teacher"} if self.fertility == "noisy" else ())


class TeacherForced(Protocol):
    """What fine-tuning asks of the teacher: its distribution at each position of a given output."""

    output: OutputLayer

    def teacher_forced(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return states [m, d] and gold symbols [m] of all real positions, eos' included, and their mask [n, t+1].

        n/b consecutive targets share a source.
        """
        ...


def reverse_cross_entropy(output: OutputLayer, hidden: Tensor, teacher: OutputLayer, states: Tensor) -> Tensor:
    """Return minus the expectation of the teacher's log-probability under the student, [n] nats.

    hidden: [n, d] of the student, whose output layer is `output`; states: [n, d'] of the teacher, constant. Logits are
    made anew for backward, a chunk at a time.
    """

    def rows(hidden: Tensor, states: Tensor) -> Tensor:
        with torch.no_grad():
            log_q = teacher(states).log_softmax(-1)
            log_q = log_q.masked_fill(log_q == float("-inf"), 0.0)  # the student cannot emit these symbols either
        expected: Tensor = (output(hidden).softmax(-1) * log_q).sum(-1)
        return -expected

    size = max(1, CHUNK_LOGITS // output.weight.shape[0])
    chunks = zip(torch.split(hidden, size), torch.split(states, size), strict=True)
    return torch.cat([checkpoint(rows, h, g, use_reentrant=False, preserve_rng_state=False) for h, g in chunks])


class FertilityNAT(Model):
    """Encoder with a fertility classifier, and a decoder of copied source embeddings."""

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        c = config
        self.config = c
        self.speech = data.modality == "speech"
        self.max_target_length = data.max_target_length
        positions = max(data.source_tokens, data.max_target_length)
        self.embedding = Embedding(data.vocab_size, c.model_dim, positions, c.dropout)
        self.encoder = source_encoder(c, data, self.embedding)
        self.decoder = CanvasDecoder(self.embedding, PositionalStack(c.decoder_layers, *c.layer_shape, positions))
        self.fertility = Linear(c.model_dim, c.max_fertility + 1)
        nn.init.normal_(self.fertility.weight, std=c.model_dim**-0.5)
        nn.init.zeros_(self.fertility.bias)
        self.output = OutputLayer(self.embedding.tokens.weight, banned=(PAD, BOS, EOS, UNK, MASK, BLANK, PLH))

    def begin_training(self) -> None:
        """Start from the teacher's encoder, embeddings included, if the config says so.

        Raises:
            ValueError: the teacher's encoder has another shape, or the `ctc` that labels speech other positions.
        """
        if self.speech:
            theirs = getattr(self.companion("ctc"), "encoder", None)
            if getattr(theirs, "max_length", None) != self.encoder.max_length:
                raise ValueError("fertilities of speech need a companion 'ctc' with the same subsampling")
        if not self.config.encoder_from_teacher:
            return
        theirs = getattr(self.companion("teacher"), "encoder", None)
        weights = theirs.state_dict() if isinstance(theirs, nn.Module) else {}
        if {k: w.shape for k, w in weights.items()} != {k: w.shape for k, w in self.encoder.state_dict().items()}:
            raise ValueError("encoder_from_teacher needs a teacher whose encoder has the shape of this one's")
        assert isinstance(theirs, nn.Module)
        if attention_heads(theirs) != attention_heads(self.encoder):
            raise ValueError("encoder_from_teacher needs a teacher whose encoder has as many attention heads")
        self.encoder.load_state_dict(weights)

    def loss(self, batch: Batch, rng: torch.Generator) -> Losses:
        """Cross-entropy of tokens given gold fertilities and of these, per target token; at the end fine-tuning.

        Pairs whose labels do not sum to the target's length, or exceed the limit, do not count, but as infeasible.

        Raises:
            ValueError: the batch has no labels.
        """
        if batch.labels is None:
            raise ValueError("fertility_nat trains on fertilities, and this batch has no labels")
        source, memory, log_probs = self._encode(batch.src, batch.src_len)
        s = source.states.shape[1]
        real = padding_mask(source.lengths, s)
        gold = F.pad(batch.labels, (0, s - batch.labels.shape[1])) * real
        fits = (gold.sum(1) == batch.tgt_len) & (gold.amax(1) <= self.config.max_fertility)
        gold = gold * fits[:, None]
        num_tokens = int(batch.tgt_len.sum())
        scale = 1 / max(num_tokens, 1)

        hidden = self._run(source, memory, gold, batch.tgt.shape[1])
        counted = padding_mask(gold.sum(1), batch.tgt.shape[1])
        states = hidden[counted]
        row_weight = torch.full((states.shape[0],), scale, device=states.device)
        tokens, plain = self.output.cross_entropy(states, batch.tgt[counted], row_weight, self.config.label_smoothing)
        fertility = -(log_prob_of(log_probs, gold) * (real & fits[:, None])).sum() * scale
        total = tokens + self.config.fertility_weight * fertility
        parts = {"cross_entropy": plain, "fertility": fertility.detach()}
        if self.config.fine_tune and self.progress >= 1 - self.config.fine_tune:
            weight = self.config.fine_tune_weight * scale
            expected = (self._reverse_kl(batch, hidden, gold.sum(1)) * fits).sum()
            advantage, log_prob = self._exploration(batch, source, memory, log_probs, rng)
            reinforced = (advantage * log_prob * fits).sum()
            total = (1 - self.config.fine_tune_weight) * total + weight * (expected + reinforced)
            parts |= {"reverse_kl": expected.detach() * scale, "advantage": (advantage * fits).sum() * scale}
        return Losses(total, num_tokens, parts, {"infeasible": int((~fits).sum())})

    def _exploration(
        self, batch: Batch, source: Encoded, memory: Memory, log_probs: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return how much worse sampled fertilities are than average ones, and their log-probability (with gradient).

        Both [b], in nats: the two terms of REINFORCE (Williams 1992), whose baseline is the average's reverse KL.
        """
        b, real = batch.src.shape[0], padding_mask(source.lengths, source.states.shape[1])
        with torch.no_grad():
            seeds = draw_seeds(rng, b).to(batch.src.device)
            sampled = sampled_fertility(log_probs, seeds, 1)[:, 0]
            both = self._legal(torch.stack([sampled, average_fertility(log_probs)], dim=1), log_probs, real)
            lengths = both.sum(-1).flatten()
            hidden = self._run(source, memory, both.flatten(0, 1), int(lengths.max()))
            worth = self._reverse_kl(batch, hidden, lengths).view(b, 2)
        return worth[:, 0] - worth[:, 1], (log_prob_of(log_probs, sampled) * real).sum(1)

    def _reverse_kl(self, batch: Batch, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Return the paper's reverse KL of output distributions with states [n, t, d] to the teacher's, [n] nats.

        lengths: [n]. The teacher is forced through the student's most probable tokens; n/b outputs share a source.
        """
        n, t, _ = hidden.shape
        teacher = cast(TeacherForced, self.companion("teacher"))
        real = padding_mask(lengths, t)
        states = hidden[real]
        with torch.no_grad():
            best, _ = self.output.most_probable(states)
            tokens = lengths.new_full((n, t), PAD).masked_scatter(real, best)
            theirs, _, mask = teacher.teacher_forced(Batch(batch.src, batch.src_len, tokens, lengths))
            inner = padding_mask(lengths, t + 1)[mask]  # False where the gold symbol is eos
            ends = -teacher.output(theirs[~inner]).log_softmax(-1)[:, EOS]
        per_token = reverse_cross_entropy(self.output, states, teacher.output, theirs[inner])
        placed = hidden.new_zeros(n, t, dtype=torch.float32).masked_scatter(real, per_token)
        result: Tensor = placed.sum(1) + ends
        return result

    def decode(self, src: Tensor, src_len: Tensor, settings: Settings) -> Decoded:
        """Decode in one pass.

        Scores are log p(fertilities, tokens | src), and with NPD what the teacher chose by; see `Settings.alpha`.
        """
        b = src.shape[0]
        source, memory, log_probs = self._encode(src, src_len)
        real = padding_mask(source.lengths, source.states.shape[1])
        match settings.fertility:
            case "average":
                proposed = average_fertility(log_probs)[:, None]
            case "argmax":
                proposed = log_probs.argmax(-1)[:, None]
            case "noisy":
                seeds = row_seeds(src, src_len, settings.seed)
                drawn = sampled_fertility(log_probs, seeds, settings.candidates - 1)
                proposed = torch.cat([log_probs.argmax(-1)[:, None], drawn], dim=1)
        if settings.fixed:
            proposed = torch.ones_like(proposed)
        fertility = self._legal(proposed, log_probs, real)  # [b, c, s]
        lengths = fertility.sum(-1).flatten()  # [b * c]
        hidden = self._run(source, memory, fertility.flatten(0, 1), int(lengths.max()) if b else 1)
        emitted = padding_mask(lengths, hidden.shape[1])
        best, best_log_prob = self.output.most_probable(hidden[emitted])
        tokens = lengths.new_full(emitted.shape, PAD).masked_scatter(emitted, best)
        if settings.fertility == "noisy":
            likelihood = self.companion("teacher").log_likelihood(Batch(src, src_len, tokens, lengths))
            assert likelihood is not None, "an AR teacher has a likelihood"
            scores, chosen = (likelihood / (lengths + 1) ** settings.alpha).view(b, -1).max(1)
            rows = torch.arange(b, device=src.device) * fertility.shape[1] + chosen
            tokens, lengths = tokens[rows], lengths[rows]
        else:
            per_token = best_log_prob.new_zeros(emitted.shape).masked_scatter(emitted, best_log_prob)
            scores = per_token.sum(1) + (log_prob_of(log_probs, fertility[:, 0]) * real).sum(1)
        return Decoded(tokens, lengths, scores, torch.ones_like(lengths))

    def _encode(self, src: Tensor, src_len: Tensor) -> tuple[Encoded, Memory, Tensor]:
        """Return the encoded source, its memory and the log-probabilities of fertilities, [b, s, 1 + most] float32."""
        source = self.encoder(src, src_len)
        return source, self.decoder.remember(source), self.fertility(source.states).float().log_softmax(-1)

    def _legal(self, fertility: Tensor, log_probs: Tensor, real: Tensor) -> Tensor:
        """Return fertilities [b, c, s] of real tokens with sums from 1 to the longest target.

        What is too much is cut from the right; a sum of 0 becomes one copy of the token least likely to have none.
        """
        fertility = fertility * real[:, None]
        none = log_probs[..., 0].masked_fill(~real, float("inf"))
        likely = F.one_hot(none.argmin(1), none.shape[1])[:, None]  # [b, 1, s]
        fertility = torch.where(fertility.sum(-1, keepdim=True) == 0, likely, fertility)
        ends = fertility.cumsum(-1).clamp(max=self.max_target_length)
        return ends.diff(dim=-1, prepend=torch.zeros_like(ends[..., :1]))

    def _run(self, source: Encoded, memory: Memory, fertility: Tensor, width: int) -> Tensor:
        """Return the decoder's states [n, width, d] for fertilities [n, s]; n/b consecutive rows share a source."""
        b, s, d = source.content.shape
        n = fertility.shape[0]
        content = F.pad(source.content, (0, 0, 0, 1)).flatten(0, 1)  # [b * (s + 1), d]: zero where nothing is copied
        starts = torch.arange(b, device=content.device).repeat_interleave(n // max(b, 1)) * (s + 1)
        copied = content.index_select(0, (copied_positions(fertility, width) + starts[:, None]).flatten())
        x = self.embedding.place(copied.view(n, width, d))
        states: Tensor = self.decoder.run(x, fertility.sum(1), memory)
        return states

    def observed_modules(self) -> dict[str, list[nn.Module]]:
        """The encoder's stack and the decoder's."""
        return {"encoder": [self.encoder.stack], "decoder": [self.decoder.stack]}


FAMILY = Family(
    "fertility_nat",
    Config,
    Settings,
    FertilityNAT,
    autoregressive=False,
    title="NAT with fertility",
    roles=(
        Role("teacher", "chooses among the candidates of NPD, and fine-tunes", autoregressive=True),
        Role("ctc", "aligns speech with its text", autoregressive=False, families=("ctc",)),
    ),
    labels="fertility",
)
