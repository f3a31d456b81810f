"""Connectionist temporal classification (Graves et al. 2006): collapse, feasibility, best alignment, loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.interface import BLANK, PAD
from models.layers import padding_mask
from models.output import OutputLayer

FORBIDDEN = -1e30
"""Log-probability of what cannot be: no sum over alignments makes up for one, and sums of several stay finite (minus
infinity would leave NaN in the gradient of `F.ctc_loss`)."""


def token_begins(alignment: Tensor, lengths: Tensor) -> Tensor:
    """Return [b, f] bool: the frames, of the `lengths` [b] that count, where a token of an alignment [b, f] begins."""
    changed = torch.ones_like(alignment, dtype=torch.bool)
    changed[:, 1:] = alignment[:, 1:] != alignment[:, :-1]
    return changed & (alignment != BLANK) & padding_mask(lengths, alignment.shape[1])


def collapse(alignment: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Merge repeats, then drop blanks.

    alignment: [b, f] symbols; lengths: [b] frames that count. Returns tokens [b, t] padded with PAD, t the longest
    result, and their numbers [b]. One device sync, to size the result.
    """
    keep = token_begins(alignment, lengths)
    counts = keep.sum(1)
    width = int(counts.max()) if len(counts) else 0
    # Kept symbols move to their rank; all others go to a spare last column that is cut off.
    rank = torch.where(keep, keep.cumsum(1) - 1, width)
    tokens = alignment.new_full((alignment.shape[0], width + 1), PAD)
    tokens.scatter_(1, rank, alignment)
    return tokens[:, :width], counts


def required_frames(target: Tensor, lengths: Tensor) -> Tensor:
    """Return [b] the least number of frames that can carry targets [b, t]: tokens plus adjacent repeats."""
    repeat = (target[:, 1:] == target[:, :-1]) & padding_mask(lengths - 1, max(target.shape[1] - 1, 0))
    return lengths + repeat.sum(1)


def _local_nll(
    log_probs: Tensor, target: Tensor, frames: Tensor, lengths: Tensor, row_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of -log p and its terms [b] for log_probs [b, f, c] with blank in column 0."""
    x = log_probs.transpose(0, 1)
    nll = F.ctc_loss(x, target, frames, lengths, blank=0, reduction="none", zero_infinity=True)
    return (nll * row_weight).sum(), nll


class _LocalCTC(torch.autograd.Function):
    """CTC over log-probabilities that need not sum to one over the given symbols.

    `F.ctc_loss` returns exp(x) - occupancy as the gradient with respect to x, which is right only below a
    log-softmax over the same symbols; here the normaliser lies outside, so the gradient is minus the occupancy.
    """

    @staticmethod
    def forward(
        ctx: Any, log_probs: Tensor, target: Tensor, frames: Tensor, lengths: Tensor, row_weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = log_probs.detach().requires_grad_()  # [b, f, c]
            total, nll = _local_nll(x, target, frames, lengths, row_weight)
            (grad,) = torch.autograd.grad(total, x)
        real = padding_mask(frames, log_probs.shape[1])[:, :, None]
        occupancy = torch.where(real, log_probs.exp() * row_weight[:, None, None] - grad, 0.0)
        ctx.save_for_backward(-occupancy)
        nll = nll.detach()
        ctx.mark_non_differentiable(nll)
        return total.detach(), nll

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_total, None, None, None, None


def _sentence_logits(output: OutputLayer, hidden: Tensor, target: Tensor) -> Tensor:
    """Return float32 logits [b, f, t+1] of blank and the tokens of each target [b, t] at hidden [b, f, d].

    Those of banned symbols, padding included, are FORBIDDEN: they have no part in log Z.
    """
    symbols = torch.cat([target.new_full((target.shape[0], 1), BLANK), target], dim=1)
    weight = output.weight[symbols].to(hidden.dtype)  # [b, t+1, d]
    logits = torch.bmm(hidden, weight.transpose(1, 2)).float()
    return logits.masked_fill((output.ban[symbols] < 0)[:, None, :], FORBIDDEN)


def _fits(output: OutputLayer, target: Tensor, lengths: Tensor, frames: Tensor) -> Tensor:
    """Return [b] bool: the frames can carry the target, and the model can emit all its tokens."""
    banned = (output.ban[target] < 0) & padding_mask(lengths, target.shape[1])
    return (required_frames(target, lengths) <= frames) & ~banned.any(1)


@torch.no_grad()
def best_alignment(
    output: OutputLayer, hidden: Tensor, frames: Tensor, target: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the most probable alignment of each target (Viterbi), and whether there is one.

    Arguments as in `ctc_loss`. As there, only blank and the target's own symbols are scored; a frame's log Z adds the
    same to every path, so that the best one needs none. The loop is over frames, with no device sync.

    Returns:
        Symbols [b, f] int64, BLANK included, PAD beyond a sentence's frames and throughout where no alignment fits;
        and [b] bool: the target fits into the frames, and holds no banned symbol.
    """
    b, f, _ = hidden.shape
    t = target.shape[1]
    device = hidden.device
    # The states of a path: blank, first token, blank, second token, ..., blank; u = 2t + 1 of them.
    states = target.new_full((b, 2 * t + 1), BLANK)
    states[:, 1::2] = target
    column = torch.zeros(2 * t + 1, dtype=torch.long, device=device)
    column[1::2] = torch.arange(1, t + 1, device=device)
    emission = _sentence_logits(output, hidden, target)[:, :, column].transpose(0, 1)  # [f, b, u]
    # A path stays, goes to the next state, or leaves out the blank between two tokens that differ.
    barrier = torch.full((b, 2 * t + 1), float("-inf"), device=device)
    barrier[:, 3::2].masked_fill_(target[:, 1:] != target[:, :-1], 0.0)
    score = torch.full((b, 2 * t + 1), float("-inf"), device=device)
    score[:, 0] = 0.0  # a virtual start at the first blank: from it frame 0 reaches that blank and the first token
    steps = torch.zeros((f, b, 2 * t + 1), dtype=torch.uint8, device=device)
    for i in range(f):
        before = F.pad(score, (2, 0), value=float("-inf"))
        best, step = torch.stack([score, before[:, 1:-1], before[:, :-2] + barrier]).max(0)
        active = (i < frames)[:, None]
        score = torch.where(active, best + emission[i], score)
        steps[i] = step.masked_fill_(~active, 0)
    # A path ends in the last token or in the blank behind it.
    final = torch.stack([2 * lengths, (2 * lengths - 1).clamp(min=0)], dim=1)  # [b, 2]
    state = final.gather(1, score.gather(1, final).argmax(1, keepdim=True))  # [b, 1]
    path = torch.full((b, f), PAD, device=device)
    for i in reversed(range(f)):
        path[:, i] = states.gather(1, state)[:, 0]
        state = state - steps[i].gather(1, state)
    feasible = _fits(output, target, lengths, frames)
    return path.masked_fill_(~(padding_mask(frames, f) & feasible[:, None]), PAD), feasible


def ctc_loss(
    output: OutputLayer,
    hidden: Tensor,
    frames: Tensor,
    target: Tensor,
    lengths: Tensor,
    revealed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """CTC loss without a [frames, vocabulary] matrix: only the symbols of a sentence's target and blank are scored.

    Args:
        output: the output layer; its banned symbols must allow BLANK.
        hidden: [b, f, d] frame states.
        frames: [b] frames that count.
        target: [b, t] ids, padded.
        lengths: [b] target lengths.
        revealed: [b, f] symbols, BLANK included, of frames that are given, PAD where a frame is free. Then the sum
            runs over the target's alignments that carry these symbols there, and over the probabilities of the free
            frames alone (Imputer, Chan et al. 2020); a given frame's state gets no gradient.

    Returns:
        The sum over feasible sentences of -log p(target) (scalar with gradient), -log p per sentence ([b], constant,
        infinite where infeasible), and [b] bool: feasible. Infeasible is a target that needs more frames than there
        are, that holds a banned symbol, or that has no alignment with what is revealed.
    """
    b, f, _ = hidden.shape
    target = target if target.shape[1] else F.pad(target, (0, 1), value=PAD)
    # Equal tokens share the column of the first of them.
    first = (target[:, :, None] == target[:, None, :]).int().argmax(-1) + 1  # [b, t]
    feasible = _fits(output, target, lengths, frames)
    scored = padding_mask(frames, f)
    rest = hidden.new_zeros((b, f, 1), dtype=torch.float32)
    if revealed is not None:
        refused, consistent = _refused(revealed, target, first, frames, lengths)
        feasible = feasible & consistent
        scored = scored & (revealed == PAD)
        rest = torch.where(refused & feasible[:, None, None], FORBIDDEN, rest)  # [b, f, t+1]
    scored = scored & feasible[:, None]
    flat = hidden[scored]  # [n, d]
    log_z_sum, log_z_flat = output.log_partition(flat, torch.ones(len(flat), device=flat.device))
    log_z = torch.zeros_like(rest[:, :, 0]).masked_scatter(scored, log_z_flat)
    log_probs = _sentence_logits(output, hidden, target) - log_z[:, :, None]  # [b, f, t+1]
    log_probs = torch.where(scored[:, :, None], log_probs, rest)
    weighted_nll = _LocalCTC.apply if torch.is_grad_enabled() else _local_nll
    local, nll = weighted_nll(log_probs, first, frames, lengths, feasible.float())
    # The constant log Z inside `local` is exchanged for the differentiable one.
    total = local + (log_z_sum - log_z_flat.sum())
    return total, nll.masked_fill(~feasible, float("inf")), feasible


def _refused(revealed: Tensor, target: Tensor, first: Tensor, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the revealed symbols rule out, and whether they leave the target an alignment.

    For `first` see `ctc_loss`. The former is [b, f, t+1] bool (blank, then the target's symbols) and False at free
    frames; the latter is [b] bool.
    """
    symbols = torch.cat([target.new_full((len(target), 1), BLANK), target], dim=1)  # [b, t+1]
    refused = (revealed != PAD)[:, :, None] & (revealed[:, :, None] != symbols[:, None, :])
    # With all that is allowed at 0, CTC counts alignments: minus log of none is infinite.
    allowed = torch.zeros(refused.shape, device=refused.device).masked_fill_(refused, float("-inf"))
    count = F.ctc_loss(allowed.transpose(0, 1), first, frames, lengths, blank=0, reduction="none")
    return refused, count.isfinite()
