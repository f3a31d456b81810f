"""Recurrent sequence-to-sequence models (Sutskever et al. 2014; Bahdanau et al. 2015; Luong et al. 2015).

`attention: none` is Sutskever's: the encoder's last state is all that the decoder gets. `dot` is Luong's global
attention: the decoder's top state attends, and tanh(W [context; state]) is classified. `additive` is Bahdanau's: the
previous state attends through a one-layer network, the context feeds the cell, and a maxout layer over state, word and
context is classified; of a stack of layers the first one attends and the others run above it (Wu et al. 2016).

Deviations, all variants: bidirectional encoder, d/2 per direction, its layers' last states mapped by one learned layer
to the first states of the decoder's layers (Sutskever and Luong copy them, Bahdanau maps the backward one); tied
embeddings, scaled by sqrt(d); label smoothing; dropout between layers (Zaremba et al. 2014); forget gates start open
(Jozefowicz et al. 2015). `none`: the source is not reversed, as the encoder reads both ways. `dot`: no input feeding,
so that training runs over whole targets. `additive`: the maxout layer sees the new state, as the paper's text says, not
the previous one of its appendix. `gru`: the reset gate acts after the recurrent matrix, as in cuDNN. On speech, with
attention, this is the listen-attend-spell model (Chan et al. 2016) with convolutions in place of the pyramid.
`encoder: transformer` is the hybrid of Chen et al. 2018; the first states are then mapped from the mean of the
encoder's. With `ctc_weight` the encoder has a CTC output beside, for training and for decoding (Watanabe et al. 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from models.decoding.joint import ctc_scorer
from models.decoding.settings import AutoregressiveSettings, search
from models.dropout import Dropout
from models.encoder import Encoded, convolution_width, memory_mask
from models.frontend import make_frontend
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
)
from models.joint_ctc import ctc_head, with_ctc
from models.layers import Embedding, Stack, centred, padding_mask
from models.output import OutputLayer
from models.recurrent import (
    Annotations,
    Bridge,
    EarlyDecoder,
    HybridEncoder,
    LateDecoder,
    RecurrentEncoder,
    State,
    initialise,
)


class Config(Options):
    """Shape and objective; a change means retraining."""

    encoder_layers: int = Field(2, ge=1)
    """Layers of the encoder; recurrent ones read both ways."""
    decoder_layers: int = Field(2, ge=1)
    """Layers of the decoder."""
    model_dim: int = Field(512, ge=2)
    """Model width d: of embeddings, of decoder states, and of both directions of the encoder together; even."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on embeddings, between layers and before the output."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Probability mass spread evenly over the emittable symbols."""
    encoder: Literal["recurrent", "transformer"] = "recurrent"
    """Layers of the encoder: recurrent, or those of the Transformer."""
    num_heads: int = Field(8, ge=1)
    """Attention heads of a Transformer encoder; divides model_dim."""
    ffn_dim: int = Field(2048, ge=1)
    """Hidden width of a Transformer encoder's feed-forward layers."""
    norm: Literal["pre", "post"] = "pre"
    """Where layer norm stands in a Transformer encoder: before each sublayer, or after its residual."""
    subsampling: Literal[1, 2, 4, 8] = 4
    """Feature frames per encoder position; speech only."""
    convolution: int | None = Field(None, ge=0)
    """Positions that the convolution of a Transformer encoder's layer sees; see `BackboneConfig`."""
    cell: Literal["rnn", "gru", "lstm"] = "lstm"
    """Elman's tanh unit, the gated unit of Cho et al. 2014, or the long short-term memory."""
    attention: Literal["none", "additive", "dot"] = "additive"
    """None (the encoder's last state is the only bridge), Bahdanau's or Luong's."""
    ctc_weight: float = Field(0.0, ge=0, lt=1)
    """Weight of the CTC loss of the encoder per target token; what is above keeps the rest. Hybrids of speech: 0.3."""

    @field_validator("convolution")
    @classmethod
    def _centred(cls, width: int | None) -> int | None:
        return centred(width)

    @model_validator(mode="after")
    def _directions_share_width(self) -> Self:
        if self.model_dim % 2:
            raise ValueError(f"model_dim {self.model_dim} must be even: half of it per direction of the encoder")
        if self.encoder == "transformer" and self.model_dim % self.num_heads:
            raise ValueError(f"model_dim {self.model_dim} must be divisible by num_heads {self.num_heads}")
        return self


class Settings(AutoregressiveSettings):
    """Decoding; swept over one checkpoint."""


@dataclass(frozen=True)
class Start:
    """What a decoder starts from."""

    state: State
    """Its first state."""
    annotations: Annotations | None
    """What it attends to, if it does."""
    source: Encoded
    """The sources as the encoder has them."""


class RNN(Model):
    """Recurrent encoder-decoder with tied embeddings."""

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        c = config
        self.label_smoothing = c.label_smoothing
        self.max_target_length = data.max_target_length
        self.embedding = Embedding(data.vocab_size, c.model_dim, data.source_tokens, c.dropout)
        self.dropout = Dropout(c.dropout)
        frontend = make_frontend(data, self.embedding, c.subsampling, c.dropout)
        self.encoder: RecurrentEncoder | HybridEncoder
        if c.encoder == "transformer":
            layer = (c.model_dim, c.num_heads, c.ffn_dim, c.dropout, c.norm)
            stack = Stack(c.encoder_layers, *layer, convolution=convolution_width(c.convolution, data))
            self.encoder = HybridEncoder(frontend, stack, c.cell)
            self.bridge = Bridge(c.cell, c.model_dim, 1, c.decoder_layers)
        else:
            self.encoder = RecurrentEncoder(frontend, c.cell, c.model_dim, c.encoder_layers, c.dropout)
            self.bridge = Bridge(c.cell, c.model_dim, c.encoder_layers, c.decoder_layers)
            initialise(self.encoder.layers)
        shape = (c.cell, c.model_dim, c.decoder_layers, c.dropout)
        early = c.attention == "additive"
        self.decoder = EarlyDecoder(*shape) if early else LateDecoder(*shape, attention=c.attention == "dot")
        self.output = OutputLayer(self.embedding.tokens.weight, banned=(PAD, BOS, UNK, MASK, BLANK, PLH))
        self.ctc_weight = c.ctc_weight
        self.ctc = ctc_head(c.ctc_weight, self.output.weight, frontend.max_length, data)
        initialise(self.bridge)
        initialise(self.decoder)

    def loss(self, batch: Batch, rng: torch.Generator) -> Losses:
        """Label-smoothed cross-entropy of tokens and eos, per target token, and that of CTC if there is one."""
        start = self.encode(batch.src, batch.src_len)
        features, target, _ = self.teacher_forced(batch, start)
        num_tokens = int(batch.tgt_len.sum())
        row_weight = torch.full((features.shape[0],), 1.0 / max(num_tokens, 1), device=features.device)
        total, plain = self.output.cross_entropy(features, target, row_weight, self.label_smoothing)
        losses = Losses(total, num_tokens, {"cross_entropy": plain})
        return losses if self.ctc is None else with_ctc(losses, self.ctc, self.ctc_weight, start.source, batch)

    def log_likelihood(self, batch: Batch) -> Tensor:
        """Return log p(tgt, eos | src) per target, [n]; see `Model.log_likelihood` for several targets a source."""
        features, target, real = self.teacher_forced(batch)
        log_probs = self.output.log_probs_of(features, target)
        return real.new_zeros(real.shape, dtype=torch.float32).masked_scatter(real, log_probs).sum(1)

    def next_tokens(self, batch: Batch) -> Tensor:
        """Return the most probable token at each place of the targets, given those before it, [b, t]."""
        hidden, _, real = self.teacher_forced(batch)
        best, _ = self.output.most_probable(hidden)
        return batch.tgt.new_full(real.shape, PAD).masked_scatter(real, best)[:, :-1]

    def teacher_forced(self, batch: Batch, start: Start | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return features [m, d] and gold symbols [m] of the n targets' real positions, and their mask [n, t+1].

        start: the encoded sources, if they are encoded already.
        """
        n, t = batch.tgt.shape
        inputs = torch.cat([batch.tgt.new_full((n, 1), BOS), batch.tgt], dim=1)  # [n, t+1]
        gold = torch.cat([batch.tgt, batch.tgt.new_full((n, 1), PAD)], dim=1)
        gold.scatter_(1, batch.tgt_len[:, None], EOS)
        real = padding_mask(batch.tgt_len + 1, t + 1)
        start = start or self.encode(batch.src, batch.src_len, n // batch.src.shape[0])
        features, _ = self.read(inputs, start.state, start.annotations)
        return features[real], gold[real], real

    def encode(self, src: Tensor, src_len: Tensor, copies: int = 1) -> Start:
        """Encode sources for decoders of `copies` rows per sentence.

        Raises:
            ValueError: a source longer than the model's limit.
        """
        encode = self.encoder.summarised if isinstance(self.encoder, HybridEncoder) else self.encoder
        states, lengths, last = encode(src, src_len)
        state = tuple(part.repeat_interleave(copies, dim=1) for part in self.bridge(last))
        attention = self.decoder.attention
        annotations = None if attention is None else attention.annotate(states, lengths)
        return Start(state, annotations, Encoded(states, lengths, memory_mask(lengths, states.shape[1]), states))

    def read(self, tokens: Tensor, state: State, source: Annotations | None) -> tuple[Tensor, State]:
        """Return the features [n, t, d] after each of the next tokens [n, t], and the state after the last."""
        features, state = self.decoder(self._embed(tokens), state, source)
        return self.dropout(features), state

    def _embed(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.dropout(self.embedding.tokens(ids) * self.embedding.scale)
        return embedded

    def decode(self, src: Tensor, src_len: Tensor, settings: Settings) -> Decoded:
        """Decode greedily, by beam search or by sampling; see `Settings`."""
        return search(lambda _, beam: self.stepper(src, src_len, beam), src, src_len, settings, self.max_target_length)

    def stepper(self, src: Tensor, src_len: Tensor, beam: int = 1) -> RNNStepper:
        """Encode sources and return the incremental state of b x beam rows."""
        return RNNStepper(self, self.encode(src, src_len, beam), beam)

    def observed_modules(self) -> dict[str, list[nn.Module]]:
        """The encoder and the decoder, which every step runs once."""
        encoder = self.encoder.stack if isinstance(self.encoder, HybridEncoder) else self.encoder.layers
        return {"encoder": [encoder], "decoder": [self.decoder]}


class RNNStepper:
    """Hidden states per row, and the annotations of each sentence, which its beams share."""

    def __init__(self, model: RNN, start: Start, beam: int) -> None:
        self.model = model
        self.state = start.state
        self.source = start.annotations
        self.scorer = partial(ctc_scorer, model.ctc, start.source, beam)

    def step(self, tokens: Tensor) -> Tensor:
        """Consume tokens [n], return float32 logits [n, v]."""
        features, self.state = self.model.read(tokens[:, None], self.state, self.source)
        logits: Tensor = self.model.output(features[:, 0])
        return logits

    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        """Keep rows of the states and sentences of the annotations."""
        self.state = tuple(part.index_select(1, rows) for part in self.state)
        if sentences is not None and self.source is not None:
            self.source = self.source.select(sentences)


FAMILY = Family("rnn", Config, Settings, RNN, autoregressive=True, title="RNN AR")
