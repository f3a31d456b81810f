"""The NAT with fertilities sentence by sentence and token by token, on the weights of a model."""

import torch

from models.interface import BOS, EOS, NUM_SPECIAL


def log_probs_of(model, source, fertility):
    """Log-probabilities of the tokens [t, v] of one sentence with `fertility`, and of fertilities [s, 1 + most]."""
    src = torch.tensor([source])
    _, memory, fertilities = model._encode(src, torch.tensor([len(source)]))
    copies = [token for token, count in zip(source, fertility, strict=True) for _ in range(count)]
    states = model.decoder(torch.tensor([copies]), torch.tensor([len(copies)]), memory)
    return model.output(states[0]).log_softmax(-1), fertilities[0]


def negative_log_likelihood(model, source, target, fertility):
    """Minus log p(target | fertilities) and minus log p(fertilities), token by token."""
    tokens, fertilities = log_probs_of(model, source, fertility)
    return (
        -sum(tokens[i, y] for i, y in enumerate(target)),
        -sum(fertilities[i, f] for i, f in enumerate(fertility)),
    )


def greedy_output(model, source, fertility):
    """The most probable tokens and log p(tokens | fertilities) + log p(fertilities)."""
    tokens, fertilities = log_probs_of(model, source, fertility)
    best, ids = tokens.max(-1)
    return ids.tolist(), float(best.sum() + sum(fertilities[i, f] for i, f in enumerate(fertility)))


def reverse_kl(model, source, fertility):
    """The paper's reverse KL of one sentence, with the teacher run step by step."""
    tokens, _ = log_probs_of(model, source, fertility)
    with torch.no_grad():
        stepper = model.companions["teacher"].stepper(torch.tensor([source]), torch.tensor([len(source)]), 30)
        total, previous = 0.0, BOS
        forced = [*tokens.argmax(-1).tolist(), EOS]
        steps = []
        for token in forced:
            steps.append(stepper.step(torch.tensor([previous]))[0].log_softmax(-1))
            previous = token
    for p, log_q in zip(tokens.exp(), steps[:-1], strict=True):
        total = total - (p[NUM_SPECIAL:] * log_q[NUM_SPECIAL:]).sum()
    return total - steps[-1][EOS]
