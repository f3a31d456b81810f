"""Recurrent models written out: one sentence, one layer, one step, one source position at a time, in float64."""

import torch

from models.interface import BOS, PAD


def cell(kind, weights, x, state):
    """One unit's new (h,) or (h, c), gate by gate."""
    w_x, w_h, b_x, b_h = (w.detach().double() for w in weights)
    h = state[0]
    d = len(h)

    def gate(i, reset=1.0):
        rows = slice(i * d, (i + 1) * d)
        return w_x[rows] @ x + b_x[rows] + reset * (w_h[rows] @ h + b_h[rows])

    if kind == "rnn":
        return (gate(0).tanh(),)
    if kind == "gru":
        reset, keep = gate(0).sigmoid(), gate(1).sigmoid()
        return (keep * h + (1 - keep) * gate(2, reset).tanh(),)
    write, forget, candidate, show = gate(0).sigmoid(), gate(1).sigmoid(), gate(2).tanh(), gate(3).sigmoid()
    c = forget * state[1] + write * candidate
    return (show * c.tanh(), c)


def weights_of_layer(module, layer, suffix=""):
    return [getattr(module, f"{name}_l{layer}{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def linear(module, x):
    y = module.weight.detach().double() @ x
    return y if module.bias is None else y + module.bias.detach().double()


def encode(model, kind, source):
    """Encoder states, one vector per token, and the parts of the last state, all layers and directions in a row."""
    d = model.embedding.tokens.embedding_dim
    states = [model.embedding.tokens.weight[i].detach().double() * d**0.5 for i in source or [PAD]]
    parts = 2 if kind == "lstm" else 1
    last = [[] for _ in range(parts)]
    for layer in range(model.encoder.layers.num_layers):
        outputs = []
        for suffix, order in (("", range(len(states))), ("_reverse", reversed(range(len(states))))):
            state = [torch.zeros(d // 2, dtype=torch.float64)] * parts
            of_position = {}
            for position in order:
                weights = weights_of_layer(model.encoder.layers, layer, suffix)
                state = cell(kind, weights, states[position], state)
                of_position[position] = state[0]
            outputs.append(of_position)
            for collected, part in zip(last, state, strict=True):
                collected.append(part)
        states = [torch.cat([outputs[0][i], outputs[1][i]]) for i in range(len(states))]
    return states, [torch.cat(collected) for collected in last]


def first_state(model, layers, last):
    """The decoder's first state: per layer its (h,) or (h, c)."""
    d = model.embedding.tokens.embedding_dim
    h, *c = [linear(layer, part) for layer, part in zip(model.bridge.maps, last, strict=True)]
    return [tuple(part[i * d : (i + 1) * d] for part in (h.tanh(), *c)) for i in range(layers)]


def attend(kind, attention, query, states):
    """The context: each source position is scored by itself."""
    if kind == "additive":
        scores = [
            linear(attention.energy, torch.tanh(linear(attention.query, query) + linear(attention.key, h)))[0]
            for h in states
        ]
    else:
        scores = [query @ h for h in states]
    weights = torch.stack(scores).softmax(0)
    return sum(w * h for w, h in zip(weights, states, strict=True))


def logits(model, kind, attention, layers, source, target):
    """Logits [1 + len(target), v] of the next symbol after bos and each target token."""
    d = model.embedding.tokens.embedding_dim
    embedding = model.embedding.tokens.weight.detach().double()
    decoder = model.decoder
    sources, last = encode(model, kind, source)
    state = first_state(model, layers, last)
    rows = []
    for token in [BOS, *target]:
        word = embedding[token] * d**0.5
        x = word
        if attention == "additive":  # the context comes before the first layer, from its previous state
            context = attend("additive", decoder.attention, state[0][0], sources)
            x = torch.cat([word, context])
        for i in range(layers):
            if attention == "additive":
                weights = weights_of_layer(decoder.first, 0) if i == 0 else weights_of_layer(decoder.layers, i - 1)
            else:
                weights = weights_of_layer(decoder.layers, i)
            state[i] = cell(kind, weights, x, state[i])
            x = state[i][0]
        if attention == "additive":
            mixed = linear(decoder.readout, torch.cat([x, word, context]))
            x = torch.stack([torch.maximum(mixed[2 * i], mixed[2 * i + 1]) for i in range(d)])
        elif attention == "dot":
            context = attend("dot", decoder.attention, x, sources)
            x = linear(decoder.mix, torch.cat([context, x])).tanh()
        rows.append(embedding @ x)
    return torch.stack(rows)
