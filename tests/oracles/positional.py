"""One decoder layer of Gu et al. 2018 for one sentence, position by position and head by head."""

import torch
import torch.nn.functional as F


def attend(query, keys, values):
    """Attend from one query [k] to lists of keys and values [k] each."""
    scores = torch.stack([query @ key for key in keys]) / query.shape[0] ** 0.5
    return sum(w * value for w, value in zip(scores.softmax(0), values, strict=True))


def attention(layer, queries, keys, values, visible):
    """Multi-head attention with the weights of `layer`; `visible(i)` lists the positions that query i sees."""
    d = queries.shape[1]
    key_weight, value_weight = layer.key_value.weight[:d], layer.key_value.weight[d:]
    key_bias, value_bias = layer.key_value.bias[:d], layer.key_value.bias[d:]
    q, k, v = layer.query(queries), keys @ key_weight.T + key_bias, values @ value_weight.T + value_bias
    width = d // layer.heads
    rows = []
    for i in range(len(q)):
        heads = [slice(h * width, (h + 1) * width) for h in range(layer.heads)]
        seen = visible(i)
        rows.append(torch.cat([attend(q[i, h], [k[j, h] for j in seen], [v[j, h] for j in seen]) for h in heads]))
    return layer.output(torch.stack(rows))


def layer_output(layer, x, codes, memory):
    """A pre-norm layer on x [t, d] with position codes [t, d] and encoder states [s, d]."""
    t, s = len(x), len(memory)
    others = (lambda i: [j for j in range(t) if j != i]) if t > 1 else lambda i: [0]
    h = layer.norm_self(x)
    x = x + attention(layer.self_attention, h, h, h, others)
    x = x + attention(layer.positional_attention, codes, codes, layer.norm_positional(x), lambda i: range(t))
    x = x + attention(layer.cross_attention, layer.norm_cross(x), memory, memory, lambda i: range(s))
    h = layer.norm_feed(x)
    inner = F.relu(h @ layer.feed_forward.inner.weight.T + layer.feed_forward.inner.bias)
    return x + layer.feed_forward.outer(inner)
