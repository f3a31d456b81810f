"""From distributions over frames to output: the best alignment collapsed, or prefix beam search."""

from __future__ import annotations

import torch
from torch import Tensor

from models.alignment import collapse
from models.interface import BLANK, PAD, Decoded
from models.layers import padding_mask


def decode_frames(log_probs: Tensor, frames: Tensor, beam: int, max_length: int) -> Decoded:
    """Return the output of one pass: collapsed, at most `max_length` tokens.

    Args:
        log_probs: [b, f, v] float32.
        frames: [b] frames that count.
        beam: prefix beam size; 1 takes the best symbol of each frame.
        max_length: longest output, in tokens.

    Greedy scores are the log-probability of the best alignment, beam scores that of the prefix.
    """
    if beam == 1:
        best, alignment = log_probs.max(-1)
        scores = best.masked_fill(~padding_mask(frames, best.shape[1]), 0.0).sum(1)
        tokens, lengths = collapse(alignment, frames)
    else:
        tokens, lengths, scores = prefix_beam_search(log_probs, frames, beam)
    lengths = lengths.clamp(max=max_length)
    return Decoded(tokens[:, :max_length], lengths, scores, lengths.new_ones(lengths.shape))


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
