"""Levenshtein decoding: scripted heads against rounds worked out by hand, and what holds for any weights."""

import math

import pytest
import torch

from bench.batching import collate
from models.decoding.edits import bounded
from models.decoding.refinement import refine_until_done
from models.interface import BOS, EOS, NUM_SPECIAL, PAD, PLH
from models.layers import padding_mask
from models.levenshtein import Rewriting, Settings
from tests.models.families import SPEC, VOCAB, batch_of, build, pairs

A, B, C, D = range(NUM_SPECIAL, NUM_SPECIAL + 4)


def rows_of(canvas):
    return [r[:n] for r, n in zip(canvas.tokens.tolist(), canvas.lengths.tolist(), strict=True)]


class Script:
    """Stands in for the model: says by whole canvases what to delete, insert and fill, and keeps the passes made.

    A state holds the logits of every head. `rules` maps the inner tokens of a canvas to the positions (from 0) that are
    deleted, the placeholders per slot, and the tokens for its placeholders in order.
    """

    WIDEST = 9

    def __init__(self, rules, max_target_length=20, margin=4.0):
        self.rules, self.max_target_length, self.margin = rules, max_target_length, margin
        self.passes = []

    def states(self, canvas, memory):
        self.passes.append([tuple(r[1:-1]) for r in rows_of(canvas)])
        states = torch.zeros(*canvas.tokens.shape, 2 + self.WIDEST + 1 + VOCAB)
        for i, row in enumerate(rows_of(canvas)):
            assert row[0] == BOS
            assert row[-1] == EOS
            delete, counts, tokens = self.rules.get(tuple(row[1:-1]), ((), (), ()))
            supply = iter(tokens)
            for k, symbol in enumerate(row):
                states[i, k, int(k - 1 in delete)] = self.margin
                states[i, k, 2 + (counts[k] if k < len(counts) else 0)] = self.margin
                states[i, k, 2 + self.WIDEST + 1 + (next(supply) if symbol == PLH else A)] = self.margin
        return states

    def deletion_logits(self, states):
        return states[..., :2]

    def placeholder_logits(self, states):
        return states[:, :-1, 2 : 2 + self.WIDEST + 1].clone()

    class output:  # noqa: N801
        @staticmethod
        def most_probable(states):
            best, ids = states[..., -VOCAB:].log_softmax(-1).max(-1)
            return ids, best


class Unread:
    """A memory that nobody looks at."""

    def select(self, rows):
        return self


def run(script, n=1, iterations=10, penalty=0.0):
    """Rewrite n empty canvases by the script: inner tokens and rounds of each, and the final canvases."""
    start = bounded(torch.zeros(n, 0, dtype=torch.long), torch.zeros(n, dtype=torch.long))
    canvas, rounds = refine_until_done(Rewriting(script, Unread(), penalty), start, iterations)
    return [r[1:-1] for r in rows_of(canvas)], rounds.tolist(), canvas


def test_a_round_deletes_then_inserts_then_fills():
    script = Script(
        {
            (): ((), (2,), ()),
            (PLH, PLH): ((), (), (A, D)),
            (A, D): ((1,), (9, 9, 9), ()),  # what it would insert before the deletion counts for nothing
            (A,): ((0,), (0, 2), ()),  # nor does what it would delete after it
            (A, PLH, PLH): ((), (), (B, C)),
        }
    )
    tokens, rounds, canvas = run(script)
    assert tokens == [[A, B, C]]
    assert rounds == [3]
    # Nothing to delete from an empty canvas; the last round deletes nothing, so its states serve for placeholders too.
    assert script.passes == [[()], [(PLH, PLH)], [(A, D)], [(A,)], [(A, PLH, PLH)], [(A, B, C)]]
    certain = 4.0 - math.log(math.exp(4.0) + VOCAB - 1)
    assert canvas.scores.tolist()[0] == pytest.approx([0.0, certain, certain, certain, 0.0])


def test_states_are_kept_over_rounds_until_the_canvas_changes():
    script = Script({(): ((), (2,), ()), (PLH, PLH): ((), (), (A, B)), (A, B): ((1,), (), ())})
    tokens, rounds, _ = run(script)
    assert tokens == [[A]]
    assert rounds == [3]
    assert script.passes == [[()], [(PLH, PLH)], [(A, B)], [(A,)]]  # the third round needs no pass at all


def test_a_sentence_stops_when_its_round_changes_nothing_and_not_before():
    rules = {
        (): ((), (2,), ()),
        (PLH, PLH): ((), (), (A, B)),
        (A, B): ((0,), (), ()),
        (B,): ((), (1, 0), ()),
        (PLH, B): ((), (), (A,)),
    }
    assert run(Script(rules))[:2] == ([[A, B]], [2])  # deletes and puts back: the canvas is as it was
    rules[PLH, B] = ((), (), (C,))
    rules[C, B] = ((0,), (), ())
    assert run(Script(rules))[:2] == ([[C, B]], [3])
    rules[B,] = ((), (1, 0), ())
    rules[PLH, B] = ((), (), (C,))
    rules[C, B] = ((0, 1), (), ())  # back to nothing, and round again
    for limit in (1, 2, 3, 4, 7):
        expected = [[A, B], [C, B]][(limit - 1) % 2]
        assert run(Script(rules), iterations=limit)[1] == [limit]
        assert run(Script(rules), iterations=limit)[0] == [expected], limit


def test_each_sentence_of_a_batch_stops_by_itself():
    """Rows differ by their state: the script of a row is chosen by a number that its memory holds."""

    class Rows:
        def __init__(self, numbers):
            self.numbers = numbers

        def select(self, rows):
            return Rows([self.numbers[i] for i in rows.tolist()])

    class Several(Script):
        def __init__(self, scripts):
            super().__init__({})
            self.scripts = scripts

        def states(self, canvas, memory):
            self.passes.append(list(memory.numbers))
            rows = torch.arange(len(canvas.tokens))
            parts = [
                self.scripts[number].states(canvas.select(rows[i : i + 1]), None)
                for i, number in enumerate(memory.numbers)
            ]
            return torch.cat(parts)

    scripts = [
        Script({(): ((), (1,), ()), (PLH,): ((), (), (A,))}),
        Script({}),
        Script({(): ((), (3,), ()), (PLH, PLH, PLH): ((), (), (A, B, C)), (A, B, C): ((0, 2), (), ())}),
        Script({(): ((), (2,), ()), (PLH, PLH): ((), (), (C, D)), (C, D): ((0,), (), ())}),
    ]
    several = Several(scripts)
    start = bounded(torch.zeros(4, 0, dtype=torch.long), torch.zeros(4, dtype=torch.long))
    canvas, rounds = refine_until_done(Rewriting(several, Rows([0, 1, 2, 3]), 0.0), start, 10)
    assert [r[1:-1] for r in rows_of(canvas)] == [[A], [], [B], [D]]
    assert rounds.tolist() == [2, 1, 3, 3]
    # The last round reads the states that it has, of the rows that are left.
    assert several.passes == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 2, 3], [0, 2, 3]]


def test_the_penalty_comes_off_the_logit_of_no_placeholder():
    rules = {(): ((), (0,), ()), (PLH,): ((), (), (A,)), (A,): ((), (1, 0), ()), (PLH, A): ((), (), (B,))}
    script = Script(rules)
    assert run(script, penalty=3.9)[0] == [[]]
    assert run(script, penalty=4.1, iterations=1)[0] == [[A]]  # all other logits are 0: the first of them is one
    # A slot that has placeholders anyway keeps their number.
    assert run(Script({(): ((), (3,), ()), (PLH,) * 3: ((), (), (A, B, C))}), penalty=2.0)[0] == [[A, B, C]]


def test_the_canvas_never_outgrows_the_longest_target():
    rules = {
        (): ((), (3,), ()),
        (PLH,) * 3: ((), (), (A, B, C)),
        (A, B, C): ((), (1, 9, 9, 9), ()),
        (PLH, A, PLH, B, C): ((), (), (D, D)),
    }
    tokens, rounds, _ = run(Script(rules, max_target_length=5))
    assert tokens == [[D, A, D, B, C]]
    assert rounds == [3]
    rules[PLH,] = ((), (), (D,))
    assert run(Script(rules, max_target_length=1))[0] == [[D]]  # three were asked for


@pytest.mark.parametrize("pull", [-100.0, 100.0])
def test_bos_and_eos_are_never_deleted(pull):
    model = build("levenshtein", max_placeholders=4)
    model.deletion.bias.data = torch.tensor([-pull, pull])
    model.placeholder.bias.data = torch.tensor([0.0, 0, 0, 0, 50])
    original, canvases = model.states, []
    model.states = lambda canvas, memory: (canvases.append(canvas), original(canvas, memory))[1]
    batch = batch_of(8, seed=10)
    with torch.inference_mode():
        decoded = model.decode(batch.src, batch.src_len, Settings(iterations=4))
    assert canvases
    for canvas in canvases:
        for row in rows_of(canvas):
            assert row[0] == BOS
            assert row[-1] == EOS
            assert BOS not in row[1:]
            assert EOS not in row[:-1]
            assert PAD not in row
    # Told to delete all, every round starts anew with four tokens; told to delete none, it fills the canvas.
    assert decoded.lengths.tolist() == [4 if pull > 0 else SPEC.max_target_length] * 8


def test_output_is_the_canvas_without_boundaries_scored_by_its_tokens():
    model = build("levenshtein", max_placeholders=4)
    model.placeholder.bias.data = torch.tensor([0.0, 0, 0, 50, 0])
    batch = batch_of(3, seed=11)
    with torch.inference_mode():
        memory = model.read(batch.src, batch.src_len)
        opened = bounded(torch.full((3, 3), PLH), torch.tensor([3, 3, 3]))
        best = model.output(model.states(opened, memory)[:, 1:4]).log_softmax(-1).max(-1)
        decoded = model.decode(batch.src, batch.src_len, Settings(iterations=1))
    assert torch.equal(decoded.tokens, best.indices)
    assert decoded.lengths.tolist() == [3, 3, 3]
    assert decoded.iterations.tolist() == [1, 1, 1]
    torch.testing.assert_close(decoded.scores, best.values.sum(1))


@pytest.mark.parametrize("seed", [0, 3])
def test_batch_size_1_decodes_as_batch_size_32(seed):
    model = build("levenshtein", seed=seed, max_placeholders=3)
    for parameter in model.parameters():  # far from uniform outputs
        parameter.data.mul_(2)
    items = pairs(32, seed=12 + seed)
    batch = collate(items)
    settings = Settings(penalty=0.5)
    with torch.inference_mode():
        together = model.decode(batch.src, batch.src_len, settings)
        assert (together.tokens[~padding_mask(together.lengths, together.tokens.shape[1])] == PAD).all()
        for i, item in enumerate(items):
            alone = model.decode(torch.tensor([item.source]), torch.tensor([len(item.source)]), settings)
            n = int(alone.lengths)
            assert together.tokens[i, : together.lengths[i]].tolist() == alone.tokens[0, :n].tolist()
            assert together.iterations[i] == alone.iterations[0]
            assert together.scores[i].item() == pytest.approx(alone.scores[0].item(), abs=1e-3)
    assert len(set(together.iterations.tolist())) >= 5, "the test needs sentences that stop apart"
    assert len({tuple(row) for row in together.tokens.tolist()}) > 10, "and that differ"
