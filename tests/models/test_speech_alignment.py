"""CTC and Imputer on recordings, against enumeration: full-width beams, words with doubled letters."""

import itertools
import math

import pytest
import torch

from models.alignment import ctc_loss
from models.ctc import CTC, Config, Settings
from models.interface import BLANK, NUM_SPECIAL, PAD, Batch, DataSpec
from tests.models.families import SMALL
from tests.oracles import ctc as oracle

LETTERS = "AELFT"
IDS = {letter: NUM_SPECIAL + i for i, letter in enumerate(LETTERS)}


def model_for(letters, dim=32):
    """A CTC model of recordings with six features, over as many letters, far from uniform."""
    torch.manual_seed(1)
    fields = {k: v for k, v in SMALL.items() if k in Config.model_fields}
    data = DataSpec(NUM_SPECIAL + letters, 96, 20, modality="speech", num_features=6)
    model = CTC(Config(**fields), data).eval()
    for parameter in model.parameters():
        parameter.data.mul_(2)
    return model


def frame_log_probs(model, src, src_len):
    """Log-probabilities of blank and the letters at each frame, [b, f, 1 + letters], and the frames that count."""
    hidden, frames = model._frames(src, src_len)
    log_probs = model.output(hidden).log_softmax(-1)
    return log_probs[:, :, [BLANK, *range(NUM_SPECIAL, log_probs.shape[2])]], frames


@torch.inference_mode()
def test_a_full_width_beam_finds_the_most_probable_text_of_all():
    model = model_for(2)
    src, src_len = torch.randn(6, 20, 6), torch.tensor([20, 17, 12, 8, 4, 1])
    decoded = model.decode(src, src_len, Settings(beam=64))  # more than all 2^6 - 1 strings of up to 5 letters
    log_probs, frames = frame_log_probs(model, src, src_len)
    assert frames.tolist() == [5, 5, 3, 2, 1, 1]
    for row in range(6):
        table = oracle.string_probabilities(log_probs[row, : frames[row]].tolist())
        best = max(table, key=table.get)
        text = [i - NUM_SPECIAL + 1 for i in decoded.tokens[row, : decoded.lengths[row]].tolist()]
        assert text == list(best)
        assert decoded.scores[row].item() == pytest.approx(math.log(table[best]), abs=1e-4)


@pytest.mark.parametrize("word", ["ALL", "FEET", "TATTLE", "LLLL"])
def test_the_constrained_loss_of_words_with_doubled_letters_is_exact(word):
    """Any set of frames of an alignment may be shown: the loss sums over the alignments that carry them."""
    model = model_for(len(LETTERS))
    tgt = torch.tensor([[IDS[letter] for letter in word]])
    positions = len(word) + sum(a == b for a, b in itertools.pairwise(word)) + 1
    src, src_len = torch.randn(1, 4 * positions, 6), torch.tensor([4 * positions])
    hidden, frames = model._frames(src, src_len)
    hidden = hidden.detach().requires_grad_()
    batch = Batch(src, src_len, tgt, torch.tensor([len(word)]))
    path, fits = model.best_alignment(batch)
    assert fits.all()
    generator = torch.Generator().manual_seed(0)
    for shown in (0, 1, positions // 2, positions):
        keep = torch.rand(positions, generator=generator).argsort() < shown
        revealed = torch.where(keep, path, PAD)
        total, _, feasible = ctc_loss(model.output, hidden, frames, tgt, batch.tgt_len, revealed)
        assert feasible.all()
        log_probs = model.output(hidden).log_softmax(-1)[0][:, [BLANK, *range(NUM_SPECIAL, NUM_SPECIAL + len(LETTERS))]]
        given = [symbol if k else None for symbol, k in zip(oracle.small(path[0].tolist()), keep.tolist(), strict=True)]
        expected = oracle.constrained_nll(log_probs, oracle.small(tgt[0].tolist()), given)
        assert total.item() == pytest.approx(expected.item(), abs=1e-4)
        if shown < positions:
            got, wanted = (torch.autograd.grad(loss, hidden)[0] for loss in (total, expected))
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)
