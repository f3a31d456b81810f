"""Insertion into slots by its definition: one sentence, one slot and one token at a time."""

import math
from itertools import pairwise

import torch

from models.interface import BOS, EOS


def spans(target, kept):
    """The missing tokens of each slot, slots in order, if the target's positions in `kept` are on the canvas."""
    found = [[]]
    for position, token in enumerate(target):
        if position in kept:
            found.append([])
        else:
            found[-1].append(token)
    return found


def weights(span_length, tau):
    """What each token of a span counts: all the same (tau None), or as a soft balanced binary tree has it."""
    raw = [1.0 if tau is None else math.exp(-abs(i - (span_length - 1) / 2) / tau) for i in range(span_length)]
    return [w / sum(raw) for w in raw]


def slot_targets(target, kept, tau, termination):
    """For each slot, what it should predict: a dict from symbol to weight, or None if it has no loss."""
    all_spans = spans(target, kept)
    complete = not any(all_spans)
    targets = []
    for span in all_spans:
        wanted = {}
        for token, weight in zip(span, weights(len(span), tau), strict=True):
            wanted[token] = wanted.get(token, 0.0) + weight
        if not span:
            wanted = {EOS: 1.0} if termination == "slot" or complete else None
        targets.append(wanted)
    return targets


def slot_loss(log_probs, targets):
    """Mean over the slots that have a loss; log_probs[slot][symbol] may carry a gradient."""
    losses = []
    for of_slot, wanted in zip(log_probs, targets, strict=True):
        if wanted is not None:
            losses.append(sum(-weight * of_slot[symbol] for symbol, weight in wanted.items()))
    return sum(losses) / len(losses)


def inserted(tokens, choices):
    """The canvas after inserting choices {slot: symbol}, from the right so that slots keep their numbers."""
    tokens = list(tokens)
    for slot in sorted(choices, reverse=True):
        tokens.insert(slot + 1, choices[slot])
    return tokens


class CentreInserter:
    """A network that knows the outputs, whose tokens are distinct: it proposes the centre of what a slot misses.

    The shorter the span, the surer it is; `log_prob` of a proposal is minus the length of the span, of an end -0.5.
    """

    termination = "slot"

    def __init__(self, goals):
        self.goals = [[BOS, *goal, EOS] for goal in goals]
        self.passes = 0

    def propose(self, canvas, eos_penalty):
        self.passes += 1
        n, t = canvas.tokens.shape
        ids = torch.full((n, t - 1), 10_000)  # beyond the length nothing may be read
        log_probs = torch.full((n, t - 1), float("nan"))
        for row, goal in enumerate(self.goals):
            places = [goal.index(token) for token in canvas.tokens[row, : canvas.lengths[row]].tolist()]
            for slot, (left, right) in enumerate(pairwise(places)):
                missing = goal[left + 1 : right]
                ids[row, slot] = missing[(len(missing) - 1) // 2] if missing else EOS
                log_probs[row, slot] = -float(len(missing)) if missing else -0.5
        return ids, log_probs

    def select(self, rows):
        self.goals = [self.goals[row] for row in rows.tolist()]
