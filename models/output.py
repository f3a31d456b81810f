"""The output layer and losses over a large vocabulary that keep no [tokens, vocabulary] matrix for backward.

The gradient of log Z with respect to logits is the softmax, so one pass over chunks of rows computes log Z and both
gradients at once; only [n, d] and [v, d] buffers survive. Everything else in cross-entropy is linear in few logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.linear import linear, product

DECODING_LOGITS = {"cpu": 2**22}
"""Logits at a time while symbols are chosen, by kind of device: 16 MiB in float32, so that memory is used again."""
MOST_DECODING_LOGITS = 2**26
"""The same on other devices: 256 MiB."""
CHUNK_LOGITS = 2**21
"""Logits per chunk: 8 MiB in float32, which stays in a last-level cache."""


class _WeightedLogPartition(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, row_weight: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            matmul_hidden, matmul_weight = hidden.to(dtype), weight.to(dtype)
        else:
            matmul_hidden, matmul_weight = hidden, weight
        n = hidden.shape[0]
        rows = max(1, CHUNK_LOGITS // weight.shape[0])
        log_z = torch.empty(n, dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(matmul_hidden)
        grad_weight = torch.zeros(weight.shape[::-1], dtype=torch.float32, device=weight.device)  # transposed
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, n, rows):
                part = slice(start, start + rows)
                logits = product(matmul_hidden[part], matmul_weight, bias.to(matmul_weight.dtype)).float()  # [rows, v]
                log_z[part] = torch.logsumexp(logits, dim=1)
                scaled = logits.sub_(log_z[part, None]).exp_().mul_(row_weight[part, None]).to(matmul_hidden.dtype)
                grad_hidden[part] = product(scaled, matmul_weight.t())
                grad_weight += product(matmul_hidden[part].T, scaled.T).float()
        ctx.save_for_backward(grad_hidden.to(hidden.dtype), grad_weight.T.to(weight.dtype))
        ctx.mark_non_differentiable(log_z)
        return (log_z * row_weight).sum(), log_z

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_total, grad_weight * grad_total, None, None


class OutputLayer(nn.Module):
    """Logits over the vocabulary from hidden states, with symbols that can never be emitted at minus infinity.

    `weight` [v, d] is a parameter: the embedding's when tied (Press & Wolf 2017).
    """

    ban: Tensor

    def __init__(self, weight: Tensor, banned: Sequence[int]) -> None:
        super().__init__()
        self.weight = weight
        ban = torch.zeros(weight.shape[0])
        ban[list(banned)] = float("-inf")
        self.register_buffer("ban", ban, persistent=False)
        allowed = (ban == 0).float()
        self.register_buffer("uniform", allowed / allowed.sum(), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return float32 logits [..., v] of hidden [..., d]; banned symbols are at minus infinity."""
        return linear(hidden, self.weight, self.ban).float()

    def most_probable(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most probable symbols at hidden [n, d] and their log-probabilities, [n] each."""
        ids, log_probs = [], []
        size = DECODING_LOGITS.get(hidden.device.type, MOST_DECODING_LOGITS)
        for part in torch.split(hidden, max(1, size // self.weight.shape[0])):
            logits = self(part)
            best = logits.argmax(-1)
            ids.append(best)
            log_probs.append(-F.cross_entropy(logits, best, reduction="none"))  # one kernel; logsumexp takes five
        return torch.cat(ids), torch.cat(log_probs)

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Return the float32 logits of `ids` [n] at hidden [n, d], without the others, [n]."""
        return (hidden * self.weight[ids].to(hidden.dtype)).sum(-1, dtype=torch.float32)

    def log_probs_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Return the log-probabilities of `ids` [n] at hidden [n, d], [n] float32, never holding all logits at once.

        Gold logit and log Z come from the same product, so that rounding to bfloat16 hits both alike.
        """
        rows = max(1, CHUNK_LOGITS // self.weight.shape[0])
        parts = zip(torch.split(hidden, rows), torch.split(ids, rows), strict=True)
        return torch.cat([self(x).log_softmax(-1).gather(1, y[:, None])[:, 0] for x, y in parts])

    def log_partition(self, hidden: Tensor, row_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return sum_i row_weight_i log Z_i (differentiable, scalar) and log Z (constant, [n] float32).

        hidden: [n, d]; row_weight: [n] float32, constant.
        """
        if not (torch.is_grad_enabled() and (hidden.requires_grad or self.weight.requires_grad)):
            parts = torch.split(hidden, max(1, CHUNK_LOGITS // len(self.ban)))
            log_z = torch.cat([torch.logsumexp(self(part), -1) for part in parts])
            return (log_z * row_weight).sum(), log_z
        total, log_z = _WeightedLogPartition.apply(hidden, self.weight, self.ban, row_weight)  # type: ignore[no-untyped-call]
        return total, log_z

    def cross_entropy(
        self, hidden: Tensor, target: Tensor, row_weight: Tensor, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted sums of the smoothed and of the plain cross-entropy (the latter detached), in nats.

        hidden: [n, d]; target: [n] ids that are allowed; row_weight: [n] float32. Smoothing spreads `label_smoothing`
        evenly over the allowed symbols (Szegedy et al. 2016).
        """
        log_z_sum, _ = self.log_partition(hidden, row_weight)
        gold_sum = (self.logits_of(hidden, target) * row_weight).sum()
        plain = log_z_sum - gold_sum
        if not label_smoothing:
            return plain, plain.detach()
        mean_weight = self.get_buffer("uniform").to(self.weight.dtype) @ self.weight  # [d]
        uniform_sum = ((hidden @ mean_weight.to(hidden.dtype)).float() * row_weight).sum()
        smoothed = log_z_sum - (1 - label_smoothing) * gold_sum - label_smoothing * uniform_sum
        return smoothed, plain.detach()
