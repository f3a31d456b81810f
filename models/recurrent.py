"""Building blocks of recurrent models: packed bidirectional encoder, bridge, attention, decoders.

A decoder reads the next t words from a state, for any t, so that one forward pass is a whole target in training and one
step in decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.dropout import Dropout, dropout
from models.encoder import SourceEncoder
from models.frontend import SpeechFrontend, TextFrontend
from models.interface import PAD
from models.layers import Stack, padding_mask
from models.linear import LARGE_WEIGHT, Linear, linear

State = tuple[Tensor, ...]
"""Hidden states (h,), or with the cells of an LSTM (h, c), each [layers, n, d]."""

LAYERS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
STEPS: dict[str, Callable[..., Any]] = {"RNN_TANH": torch.rnn_tanh_cell, "GRU": torch.gru_cell, "LSTM": torch.lstm_cell}


@dataclass(frozen=True)
class Annotations:
    """Encoder states as attention sees them, one source for all rows (beams, candidates) of a sentence."""

    states: Tensor
    """[b, s, d]."""
    keys: Tensor
    """[b, s, d]: what queries are compared with, projected once."""
    mask: Tensor
    """[b, 1, s] bool: real source positions."""

    def select(self, sentences: Tensor) -> Annotations:
        """Return the annotations of `sentences` [m], in that order."""
        return Annotations(*(x.index_select(0, sentences) for x in (self.states, self.keys, self.mask)))


class RecurrentEncoder(nn.Module):
    """Bidirectional layers over packed sources: what lies behind a source's end is never read."""

    def __init__(
        self, frontend: TextFrontend | SpeechFrontend, cell: str, dim: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.frontend = frontend
        self.dropout = Dropout(dropout)
        self.layers = _stack(cell, dim, dim // 2, layers, dropout, bidirectional=True)

    def forward(self, src: Tensor, src_len: Tensor) -> tuple[Tensor, Tensor, State]:
        """Encode sources (see `models.interface.Batch`).

        Returns states [b, s, d], those of padding 0; the number of positions that are real, [b]; and the last h (and
        c) of all layers and directions, [b, layers * d] each. A source without positions counts its first (padding)
        one, so that there is a state.
        """
        content, lengths = self.frontend.content(src, src_len)
        # Lengths are on the CPU, where packing wants them.
        packed = pack_padded_sequence(
            self.dropout(content), lengths.cpu().clamp(min=1), batch_first=True, enforce_sorted=False
        )
        packed_states, last = self.layers(packed)
        states, _ = pad_packed_sequence(packed_states, batch_first=True, total_length=content.shape[1])
        parts = last if isinstance(last, tuple) else (last,)  # each [layers * 2, b, d / 2]
        return states, lengths, tuple(part.transpose(0, 1).flatten(1) for part in parts)


class HybridEncoder(SourceEncoder):
    """A Transformer encoder below recurrent decoders (the hybrid of Chen et al. 2018)."""

    def __init__(self, frontend: TextFrontend | SpeechFrontend, stack: Stack, cell: str) -> None:
        super().__init__(frontend, stack)
        self.parts = 2 if cell == "lstm" else 1

    def summarised(self, src: Tensor, src_len: Tensor) -> tuple[Tensor, Tensor, State]:
        """Return what `RecurrentEncoder` does; in place of last states, the mean state, [b, d], is h and c."""
        source = self(src, src_len)
        real = source.mask[:, 0, 0, :, None]  # [b, s, 1]
        mean = (source.states * real).sum(1) / real.sum(1)
        return source.states, source.lengths, (mean,) * self.parts


class Bridge(nn.Module):
    """Maps the encoder's last state to the decoder's first."""

    def __init__(self, cell: str, dim: int, encoder_layers: int, decoder_layers: int) -> None:
        super().__init__()
        count = 2 if cell == "lstm" else 1
        self.maps = nn.ModuleList(Linear(encoder_layers * dim, decoder_layers * dim) for _ in range(count))
        self.dim = dim

    def forward(self, last: State) -> State:
        """Map parts [b, encoder_layers * d] to parts [decoder_layers, b, d]; h lies within (-1, 1), c does not."""
        mapped = [layer(part) for layer, part in zip(self.maps, last, strict=True)]
        mapped[0] = mapped[0].tanh()
        return tuple(x.unflatten(1, (-1, self.dim)).transpose(0, 1).contiguous() for x in mapped)


class Attention(nn.Module):
    """One distribution over source positions per query: additive (Bahdanau et al. 2015) or dot (Luong et al. 2015)."""

    def __init__(self, kind: str, dim: int) -> None:
        super().__init__()
        self.additive = kind == "additive"
        if self.additive:
            self.query = Linear(dim, dim, bias=False)
            self.key = Linear(dim, dim)
            self.energy = Linear(dim, 1, bias=False)

    def annotate(self, states: Tensor, lengths: Tensor) -> Annotations:
        """Return what queries will see of encoder states [b, s, d] of which the first `lengths` [b] are real."""
        mask = padding_mask(lengths.clamp(min=1), states.shape[1])[:, None]
        return Annotations(states, self.key(states) if self.additive else states, mask)

    def forward(self, query: Tensor, source: Annotations) -> tuple[Tensor, Tensor]:
        """Return contexts [n, t, d] and weights [n, t, s] of queries [n, t, d]; n/b consecutive rows share a source."""
        n, t, d = query.shape
        grouped = query.reshape(source.states.shape[0], -1, d)  # [b, n/b * t, d]
        if self.additive:
            scores = self.energy(torch.tanh(self.query(grouped)[:, :, None] + source.keys[:, None]))[..., 0]
        else:
            scores = grouped @ source.keys.transpose(1, 2)  # [b, n/b * t, s]
        weights = scores.masked_fill(~source.mask, float("-inf")).softmax(-1)
        return (weights.to(source.states.dtype) @ source.states).view(n, t, d), weights.view(n, t, -1)


class LateDecoder(nn.Module):
    """A stack of layers that reads the target alone; attention, if any, comes after it (Luong et al. 2015)."""

    def __init__(self, cell: str, dim: int, layers: int, dropout: float, attention: bool) -> None:
        super().__init__()
        self.layers = _stack(cell, dim, dim, layers, dropout)
        self.attention = Attention("dot", dim) if attention else None
        self.mix = Linear(2 * dim, dim, bias=False) if attention else None

    def forward(self, x: Tensor, state: State, source: Annotations | None) -> tuple[Tensor, State]:
        """Read the next t words x [n, t, d] from `state`; return features to classify, [n, t, d], and the new state."""
        states, state = _run(self.layers, x, state)
        if self.attention is None or self.mix is None:
            return states, state
        assert source is not None
        context, _ = self.attention(states, source)
        return self.mix(torch.cat([context, states], -1)).tanh(), state


class EarlyDecoder(nn.Module):
    """A first layer that attends before each step, so that it reads word and context (Bahdanau et al. 2015).

    Only this layer needs a loop over the target; the layers above it run over all of it at once.
    """

    def __init__(self, cell: str, dim: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention("additive", dim)
        self.first = _stack(cell, 2 * dim, dim, 1, dropout)
        self.layers = _stack(cell, dim, dim, layers - 1, dropout) if layers > 1 else None
        self.dropout = Dropout(dropout)
        self.readout = Linear(3 * dim, 2 * dim)

    def forward(self, x: Tensor, state: State, source: Annotations | None) -> tuple[Tensor, State]:
        """Read the next t words x [n, t, d] from `state`; return features to classify, [n, t, d], and the new state."""
        assert source is not None
        new: State = tuple(part[:1] for part in state)
        outputs, contexts = [], []
        for word in x.unbind(1):
            context = self.attention(new[0].transpose(0, 1), source)[0][:, 0]
            output, new = _step(self.first, torch.cat([word, context], -1), new)
            outputs.append(output)
            contexts.append(context)
        states, context = torch.stack(outputs, 1), torch.stack(contexts, 1)
        if self.layers is not None:
            states, upper = _run(self.layers, self.dropout(states), tuple(part[1:] for part in state))
            new = tuple(torch.cat(parts) for parts in zip(new, upper, strict=True))
        mixed = self.readout(torch.cat([states, x, context], -1))
        return mixed.unflatten(-1, (-1, 2)).amax(-1), new  # maxout over pairs (Goodfellow et al. 2013)


def _stack(cell: str, inputs: int, hidden: int, layers: int, dropout: float, bidirectional: bool = False) -> nn.RNNBase:
    """Return recurrent layers over [n, t, inputs], with dropout between them."""
    between = dropout if layers > 1 else 0.0  # torch warns of a dropout that has no place
    stack: nn.RNNBase = LAYERS[cell](
        inputs, hidden, layers, batch_first=True, dropout=between, bidirectional=bidirectional
    )
    return stack


def _run(layers: nn.RNNBase, x: Tensor, state: State) -> tuple[Tensor, State]:
    """Run layers on x [n, t, ...] from `state` -> outputs [n, t, d] and the new state.

    One step goes cell by cell: on a CPU a call of an LSTM's layers lays out all its weights anew, which costs a long
    sequence little and a single step up to forty times its work (d = 512, one sentence).
    """
    if x.shape[1] == 1:
        output, new = _step(layers, x[:, 0], state)
        return output[:, None], new
    outputs, last = layers(x, state if len(state) > 1 else state[0])
    return outputs, last if isinstance(last, tuple) else (last,)


def _step(layers: nn.RNNBase, x: Tensor, state: State) -> tuple[Tensor, State]:
    """Run one step of layers on x [n, ...] from `state` -> output [n, d] and the new state."""
    new: list[State] = []
    for i, weights in enumerate(layers.all_weights):
        if i and layers.training:
            x = dropout(x, layers.dropout)
        own = tuple(part[i] for part in state)
        large = min(weight.numel() for weight in weights[:2]) >= LARGE_WEIGHT
        if large and x.device.type == "cpu" and not layers.training:  # CUDA has cells of one kernel
            new.append(_large_step(layers.mode, x, own, *weights))
        else:
            result = STEPS[layers.mode](x, own if len(own) > 1 else own[0], *weights)
            new.append(result if isinstance(result, tuple) else (result,))
        x = new[-1][0]
    return x, tuple(torch.stack(parts) for parts in zip(*new, strict=True))


def _large_step(mode: str, x: Tensor, state: State, inner: Tensor, outer: Tensor, *biases: Tensor) -> State:
    """Do what PyTorch's cells do, whose products are those of its default library (see `models.linear`).

    inner: the weight of the input; outer: that of the state; biases: theirs.
    """
    hidden = state[0]
    if mode == "GRU":  # Cho et al. 2014, the reset gate after the product
        (reset, update, candidate), (reset_part, update_part, candidate_part) = (
            linear(value, weight, bias).chunk(3, 1)
            for value, weight, bias in zip((x, hidden), (inner, outer), biases, strict=True)
        )
        update = torch.sigmoid(update + update_part)
        candidate = torch.tanh(candidate + torch.sigmoid(reset + reset_part) * candidate_part)
        return (candidate + update * (hidden - candidate),)
    gates = linear(hidden, outer, biases[1], added=linear(x, inner, biases[0]))
    if mode == "RNN_TANH":
        return (gates.tanh(),)
    entry, forget, content, output = gates.chunk(4, 1)  # Hochreiter & Schmidhuber 1997, Gers et al. 2000
    cell = torch.sigmoid(forget) * state[1] + torch.sigmoid(entry) * content.tanh()
    return torch.sigmoid(output) * cell.tanh(), cell


def initialise(model: nn.Module) -> None:
    """Initialise each gate by Glorot & Bengio 2010, its recurrent weights orthogonally (Saxe et al. 2014).

    Biases are 0, those of forget gates 1. Embeddings have variance 1/d, and 0 for padding.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
            nn.init.zeros_(module.weight[PAD])
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.RNNBase):
            for name, parameter in module.named_parameters(recurse=False):
                _initialise_gates(name, parameter, module)


def _initialise_gates(name: str, parameter: Tensor, module: nn.RNNBase) -> None:
    gates = parameter.chunk(parameter.shape[0] // module.hidden_size)
    for gate in gates:
        if gate.ndim == 1:
            nn.init.zeros_(gate)
        elif name.startswith("weight_hh"):
            nn.init.orthogonal_(gate)
        else:
            nn.init.xavier_uniform_(gate)
    if name.startswith("bias_ih") and isinstance(module, nn.LSTM):
        nn.init.ones_(gates[1])  # input, forget, cell, output; the other bias of the sum stays 0
