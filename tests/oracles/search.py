"""Brute force for autoregressive search: every output is enumerated."""

import itertools


def all_outputs(symbols, limit):
    """Yield every sequence over `symbols` of length 0..limit."""
    for length in range(limit + 1):
        yield from itertools.product(symbols, repeat=length)


def best_output(log_prob, symbols, eos, limit, penalty):
    """Return the output with the highest normalised log-probability, and that score.

    log_prob(prefix, symbol) -> float; at `limit` tokens only eos may follow, but its probability still counts.
    """

    def score(output):
        total = sum(log_prob(output[:i], s) for i, s in enumerate(output)) + log_prob(output, eos)
        return total / penalty(len(output) + 1)

    best = max(all_outputs(symbols, limit), key=score)
    return best, score(best)
