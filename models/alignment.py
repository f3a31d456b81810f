"""Connectionist temporal classification (Graves et al. 2006): collapse, feasibility, loss, prefix beam search."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.interface import BLANK, PAD
from models.layers import padding_mask
from models.output import OutputLayer


def collapse(alignment: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Merge repeats, then drop blanks.

    alignment: [b, f] symbols; lengths: [b] frames that count. Returns tokens [b, t] padded with PAD, t the longest
    result, and their numbers [b]. One device sync, to size the result.
    """
    changed = torch.ones_like(alignment, dtype=torch.bool)
    changed[:, 1:] = alignment[:, 1:] != alignment[:, :-1]
    keep = changed & (alignment != BLANK) & padding_mask(lengths, alignment.shape[1])
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


def ctc_loss(
    output: OutputLayer, hidden: Tensor, frames: Tensor, target: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """CTC loss without a [frames, vocabulary] matrix: only the symbols of a sentence's target and blank are scored.

    Args:
        output: the output layer; its banned symbols must allow BLANK.
        hidden: [b, f, d] frame states.
        frames: [b] frames that count.
        target: [b, t] ids, padded.
        lengths: [b] target lengths.

    Returns:
        The sum over feasible sentences of -log p(target) (scalar with gradient), -log p per sentence ([b], constant,
        infinite where infeasible), and [b] bool: feasible.
    """
    b, f, _ = hidden.shape
    feasible = required_frames(target, lengths) <= frames
    row_weight = feasible.float()
    real = padding_mask(frames, f)
    flat = hidden[real]  # [n, d]
    per_frame = row_weight[:, None].expand(b, f)[real]
    log_z_sum, log_z_flat = output.log_partition(flat, per_frame)
    log_z = hidden.new_zeros((b, f), dtype=torch.float32).masked_scatter(real, log_z_flat)
    # Symbols of one sentence: blank, then its target tokens; equal tokens share the column of the first of them.
    symbols = torch.cat([target.new_full((b, 1), BLANK), target], dim=1)  # [b, t+1]
    first = (target[:, :, None] == target[:, None, :]).int().argmax(-1) + 1  # [b, t]
    weight = output.weight[symbols].to(hidden.dtype)  # [b, t+1, d]
    logits = torch.bmm(hidden, weight.transpose(1, 2)).float()  # [b, f, t+1]
    args = (logits - log_z[:, :, None], first, frames, lengths, row_weight)
    weighted_nll = _LocalCTC.apply if torch.is_grad_enabled() else _local_nll
    local, nll = weighted_nll(*args)
    # The constant log Z inside `local` is exchanged for the differentiable one.
    total = local + (log_z_sum - (log_z_flat * per_frame).sum())
    return total, nll.masked_fill(~feasible, float("inf")), feasible


def prefix_beam_search(log_probs: Tensor, frames: Tensor, beam: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prefix beam search (Hannun et al. 2014; Graves 2012) without a language model, batched.

    A prefix's probability sums over its alignments; hypotheses that become equal are merged. With a beam that holds
    all prefixes the result is the most probable collapsed string.

    Args:
        log_probs: [b, f, v] float32.
        frames: [b] frames that count.
        beam: prefixes kept after each frame.

    Returns:
        Best tokens [b, t] padded with PAD, their numbers [b], and log p(tokens | source) of the search, [b] float32.
    """
    b, f, v = log_probs.shape
    device = log_probs.device
    beam = max(beam, 1)
    # New prefixes come from the `beam` best symbols that lead to a prefix not yet held; fewer than `beam` are held.
    width = min(2 * beam, v - 1)
    negative = float("-inf")
    prefix = torch.full((b, beam, f), PAD, device=device)
    length = torch.zeros(b, beam, dtype=torch.long, device=device)
    last = torch.full((b, beam), PAD, device=device)
    # A running 64-bit hash tells prefixes apart; equal prefixes get equal codes however they were reached.
    code = torch.zeros(b, beam, dtype=torch.long, device=device)
    blank_score = torch.full((b, beam), negative, device=device)
    label_score = torch.full((b, beam), negative, device=device)
    blank_score[:, 0] = 0.0
    symbols = log_probs.clone()
    symbols[:, :, BLANK] = negative
    for i in range(f):
        frame = log_probs[:, i]
        total = torch.logaddexp(blank_score, label_score)
        # 1. The prefix stays: blank, or its last symbol again.
        stay_blank = total + frame[:, BLANK, None]
        stay_label = label_score + frame.gather(1, last)
        stay_label = stay_label.masked_fill(length == 0, negative)
        # 2. The prefix grows by one symbol; the last symbol again only after a blank.
        top, choice = symbols[:, i].topk(width, dim=1)  # [b, w]
        source = torch.where(choice[:, None, :] == last[:, :, None], blank_score[:, :, None], total[:, :, None])
        grow = source + top[:, None, :]  # [b, beam, w]
        grow_code = _extend(code[:, :, None], choice[:, None, :])
        # 3. A grown prefix that the beam already holds adds to that one instead of standing twice.
        held = (total > negative) & (length > 0)  # [b, beam]
        moved = _score_of_parents(code, last, held, blank_score, total) + frame.gather(1, last)
        stay_label = torch.logaddexp(stay_label, moved)
        known = (grow_code.flatten(1)[:, :, None] == code[:, None, :]) & held[:, None, :]  # [b, beam*w, beam]
        grow = torch.where(known.any(-1).view_as(grow), negative, grow)
        # 4. The best `beam` of both kinds go on.
        stay = torch.logaddexp(stay_blank, stay_label)
        best, index = torch.cat([stay, grow.flatten(1)], dim=1).topk(beam, dim=1)
        grown = index >= beam
        offspring = (index - beam).clamp(min=0)
        parent = torch.where(grown, offspring // width, index)
        symbol = choice.gather(1, offspring % width)
        new_prefix = prefix.gather(1, parent[:, :, None].expand(-1, -1, f))
        new_length = length.gather(1, parent)
        appended = new_prefix.scatter(2, new_length.clamp(max=f - 1)[:, :, None], symbol[:, :, None])
        active = (i < frames)[:, None]
        prefix = torch.where(
            (active & grown)[:, :, None], appended, torch.where(active[:, :, None], new_prefix, prefix)
        )
        last = torch.where(active, torch.where(grown, symbol, last.gather(1, parent)), last)
        code = torch.where(
            active, torch.where(grown, _extend(code.gather(1, parent), symbol), code.gather(1, parent)), code
        )
        length = torch.where(active, new_length + grown.long(), length)
        blank_score = torch.where(active, torch.where(grown, negative, stay_blank.gather(1, parent)), blank_score)
        label_score = torch.where(active, torch.where(grown, best, stay_label.gather(1, parent)), label_score)
    score = torch.logaddexp(blank_score, label_score)
    best, winner = score.max(1)
    rows = torch.arange(b, device=device)
    lengths = length[rows, winner]
    longest = int(lengths.max()) if b else 0
    return prefix[rows, winner, :longest], lengths, best


def _score_of_parents(code: Tensor, last: Tensor, held: Tensor, blank_score: Tensor, total: Tensor) -> Tensor:
    """Return for each prefix of a beam [b, beam] the score with which shorter ones can grow into it, symbol apart.

    Asked for all pairs, not only for the best symbols of a frame: the symbol between two held prefixes can be any.
    """
    child = _extend(code[:, :, None], last[:, None, :]) == code[:, None, :]  # [b, parent, child]
    before = torch.where(last[:, None, :] == last[:, :, None], blank_score[:, :, None], total[:, :, None])
    return torch.where(child & held[:, None, :], before, float("-inf")).logsumexp(1)


def _extend(code: Tensor, symbol: Tensor) -> Tensor:
    """Return the 64-bit code of a prefix extended by a symbol (wrapping multiply-add)."""
    return (code + symbol + 1) * 6364136223846793005 + 1442695040888963407
