"""Expert edits and their application, against plain lists and rapidfuzz."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Indel

from models.decoding.edits import (
    apply_deletions,
    bounded,
    expert_edits,
    fill,
    inner,
    insert_placeholders,
    limited,
    missing_tokens,
)
from models.decoding.refinement import Canvas
from models.interface import BOS, EOS, NUM_SPECIAL, PAD, PLH
from tests.oracles import edits as oracle

A, B, C, D = range(NUM_SPECIAL, NUM_SPECIAL + 4)
# Three symbols, so that most of them repeat and most pairs have several shortest scripts.
SENTENCES = st.lists(st.integers(A, C), max_size=7)
PAIRS = st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=5)


def canvas_of(rows, extra=0):
    """Canvases of sentences without bos and eos, `extra` columns of padding behind the longest."""
    width = max(map(len, rows)) + extra
    tokens = torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows], dtype=torch.long).view(
        len(rows), width
    )
    return bounded(tokens, torch.tensor([len(row) for row in rows]))


def rows_of(canvas):
    """The real tokens of each canvas; what is beyond them must be padding."""
    rows = []
    for tokens, scores, length in zip(canvas.tokens, canvas.scores, canvas.lengths.tolist(), strict=True):
        assert (tokens[length:] == PAD).all()
        assert (scores[length:] == 0).all()
        rows.append(tokens[:length].tolist())
    return rows


def whole(row):
    return [BOS, *row, EOS]


def scored(canvas):
    """The canvas with a score of its own at every real position."""
    real = torch.arange(canvas.tokens.shape[1]) < canvas.lengths[:, None]
    scores = -torch.arange(1.0, canvas.tokens.numel() + 1).view_as(canvas.tokens)
    return Canvas(canvas.tokens, canvas.lengths, scores.masked_fill(~real, 0))


def in_sequence(canvas, reference):
    """What the expert makes of the canvases in one round, and the number of its edits per row."""
    edits = expert_edits(canvas, reference)
    canvas = apply_deletions(canvas, edits.delete)
    again = expert_edits(canvas, reference)  # slots are pairs of the tokens that are left
    assert not again.delete.any(), "what is kept is part of the reference"
    assert torch.equal(again.insert.sum(1), edits.insert.sum(1))
    canvas = insert_placeholders(canvas, again.insert)
    tokens = missing_tokens(reference, again, again.insert)
    return fill(canvas, tokens, torch.zeros(len(tokens))), edits.delete.sum(1) + edits.insert.sum(1)


@given(PAIRS, st.integers(0, 3), st.integers(0, 3))
def test_deletions_then_insertions_give_the_reference_by_the_fewest_edits(pairs, extra, more):
    canvas, reference = canvas_of([y for y, _ in pairs], extra), canvas_of([r for _, r in pairs], more)
    result, edits = in_sequence(canvas, reference)
    assert rows_of(result) == [whole(r) for _, r in pairs]
    assert edits.tolist() == [Indel.distance(y, r) for y, r in pairs]


@given(PAIRS, st.integers(0, 3), st.integers(0, 3))
def test_every_row_gets_the_script_of_the_documented_rule(pairs, extra, more):
    canvas, reference = canvas_of([y for y, _ in pairs], extra), canvas_of([r for _, r in pairs], more)
    edits = expert_edits(canvas, reference)
    flat = missing_tokens(reference, edits, edits.insert).tolist()
    taken = 0
    for i, (y, r) in enumerate(pairs):
        delete, missing = oracle.expert(whole(y), whole(r))
        beyond = canvas.tokens.shape[1] - len(delete)
        assert edits.delete[i].tolist() == delete + [False] * beyond
        assert edits.insert[i].tolist() == [len(m) for m in missing] + [0] * beyond
        expected = [token for m in missing for token in m]
        assert flat[taken : taken + len(expected)] == expected
        taken += len(expected)
    assert taken == len(flat)


@pytest.mark.parametrize(
    ("canvas", "reference", "delete", "insert"),
    [
        # A token too many is deleted where it is repeated, and matches as early as it can.
        ([A, B, B], [A, B], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]),
        ([A], [B, A, A], [0, 0, 0], [1, 1, 0]),
        # Of A B against B A either can stay: the left one does.
        ([A, B], [B, A], [0, 0, 1, 0], [1, 0, 0, 0]),
        # Keeping the leftmost would cost an edit: it goes.
        ([C, A, B], [A, B, C], [0, 1, 0, 0, 0], [0, 0, 0, 1, 0]),
        # What is missing stands before what is still to be deleted.
        ([A, D, B], [A, C, C, B], [0, 0, 1, 0, 0], [0, 2, 0, 0, 0]),
        ([], [A, B], [0, 0], [2, 0]),
        ([A, B], [], [0, 1, 1, 0], [0, 0, 0, 0]),
        ([], [], [0, 0], [0, 0]),
    ],
)
def test_hand_worked_scripts(canvas, reference, delete, insert):
    edits = expert_edits(canvas_of([canvas]), canvas_of([reference]))
    assert edits.delete[0].int().tolist() == delete
    assert edits.insert[0].tolist() == insert


def test_a_batch_gives_each_row_what_it_gets_alone():
    generator = torch.Generator().manual_seed(0)

    def sentence(longest):
        length = int(torch.randint(longest + 1, (), generator=generator))
        return torch.randint(A, D + 1, (length,), generator=generator).tolist()

    pairs = [(sentence(40), sentence(25)) for _ in range(50)]
    together = expert_edits(canvas_of([y for y, _ in pairs]), canvas_of([r for _, r in pairs]))
    for i, (y, r) in enumerate(pairs):
        alone = expert_edits(canvas_of([y]), canvas_of([r]))
        width = len(y) + 2
        assert torch.equal(together.delete[i, :width], alone.delete[0])
        assert torch.equal(together.insert[i, :width], alone.insert[0])
        slots = alone.insert[0] > 0
        assert torch.equal(together.first[i, :width][slots], alone.first[0][slots])


@given(st.lists(st.lists(st.tuples(st.integers(A, C), st.booleans(), st.integers(0, 3)), max_size=6), max_size=4))
def test_application_is_that_of_plain_lists(rows):
    rows = [*rows, [(A, True, 2)]]
    start = scored(canvas_of([[token for token, _, _ in row] for row in rows], extra=1))
    t = start.tokens.shape[1]
    delete, counts = torch.zeros(len(rows), t, dtype=torch.bool), torch.zeros(len(rows), t, dtype=torch.long)
    for i, row in enumerate(rows):
        delete[i, 1 : len(row) + 1] = torch.tensor([gone for _, gone, _ in row], dtype=torch.bool)
        counts[i, 1 : len(row) + 1] = torch.tensor([count for _, _, count in row], dtype=torch.long)
    counts[:, 0] = torch.arange(len(rows))
    tokens = [r[:n] for r, n in zip(start.tokens.tolist(), start.lengths.tolist(), strict=True)]
    scores = [r[:n] for r, n in zip(start.scores.tolist(), start.lengths.tolist(), strict=True)]

    deleted = apply_deletions(start, delete)
    assert deleted.tokens.shape == start.tokens.shape
    for i, kept in enumerate(rows_of(deleted)):
        gone = delete[i, : len(tokens[i])].tolist()
        assert kept == oracle.without(tokens[i], gone)
        assert deleted.scores[i, : len(kept)].tolist() == oracle.without(scores[i], gone)

    opened = insert_placeholders(start, counts)
    assert opened.tokens.shape[1] == max(map(len, rows_of(opened)))
    for i, longer in enumerate(rows_of(opened)):
        slots = counts[i, : len(tokens[i])].tolist()
        assert longer == oracle.with_inserted(tokens[i], [[PLH] * n for n in slots])
        assert opened.scores[i, : len(longer)].tolist() == oracle.with_inserted(scores[i], [[0.0] * n for n in slots])

    total = int(counts.sum())
    ids, log_probs = torch.arange(100, 100 + total), -torch.arange(1.0, total + 1) / 4
    filled = fill(opened, ids, log_probs)
    supply = iter(range(total))
    for i, row in enumerate(rows_of(filled)):
        wanted = [[next(supply) for _ in range(n)] for n in counts[i, : len(tokens[i])].tolist()]
        assert row == oracle.with_inserted(tokens[i], [[100 + k for k in slot] for slot in wanted])
        expected = oracle.with_inserted(scores[i], [[-(k + 1) / 4 for k in slot] for slot in wanted])
        assert filled.scores[i, : len(row)].tolist() == expected


def test_a_slot_that_gets_fewer_placeholders_gets_the_first_of_its_tokens():
    canvas, reference = canvas_of([[A], [B]]), canvas_of([[C, D, C, A, D, B, C], [B, A]])
    edits = expert_edits(canvas, reference)
    assert edits.insert.tolist() == [[3, 3, 0], [0, 1, 0]]
    counts = edits.insert.clamp(max=2)
    assert missing_tokens(reference, edits, counts).tolist() == [C, D, D, B, A]
    tokens = missing_tokens(reference, edits, counts)
    result = fill(insert_placeholders(canvas, counts), tokens, torch.zeros(len(tokens)))
    assert rows_of(result) == [whole([C, D, A, D, B]), whole([B, A])]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(0, 12))
def test_the_leftmost_slots_get_what_room_there_is(counts, room):
    both = torch.tensor([counts, counts])
    cut = limited(both, torch.tensor([room, 100]))
    assert cut.tolist() == [oracle.cut(counts, room), counts]


def test_boundaries_are_not_inner():
    canvas = canvas_of([[A, B], []], extra=1)
    assert canvas.tokens.tolist() == [[BOS, A, B, EOS, PAD], [BOS, EOS, PAD, PAD, PAD]]
    assert canvas.lengths.tolist() == [4, 2]
    assert inner(canvas).int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    garbage = bounded(torch.tensor([[A, B, C]]), torch.tensor([1]))  # beyond the length anything may stand
    assert garbage.tokens.tolist() == [[BOS, A, EOS, PAD, PAD]]
