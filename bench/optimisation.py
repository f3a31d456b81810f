"""The optimiser and its learning rate, the same for every family."""

from __future__ import annotations

import math

import torch

from bench.configs import TrainConfig
from models.interface import Model


def make_optimizer(model: Model, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW that decays matrices other than embeddings; one fused kernel per update."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    decayed: list[torch.nn.Parameter] = []
    spared: list[torch.nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 and id(parameter) not in embeddings else spared).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.adam_beta2), eps=1e-9, fused=True)


def learning_rate(config: TrainConfig, share: float) -> float:
    """Return the learning rate when `share` (0-1) of the budget is spent: linear warm-up, then the schedule."""
    peak, warmup = config.learning_rate, config.warmup
    if share < warmup:
        return peak * max(share / warmup, 1e-3)
    if config.schedule == "inverse_sqrt":
        return peak * math.sqrt(max(warmup, 1e-3) / max(share, 1e-3))
    rest = (share - warmup) / (1 - warmup)
    return peak * (1 - rest) if config.schedule == "linear" else peak * 0.5 * (1 + math.cos(math.pi * rest))
