"""Roll-in, slot targets, slot loss and decoding by insertion, against one-token-at-a-time twins."""

import math
from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.batching import pad
from models.decoding.insertions import InsertionSettings, insert, insert_until_done
from models.decoding.noise import uniform_noise
from models.decoding.refinement import Canvas
from models.interface import BOS, EOS, NUM_SPECIAL, PAD
from models.slots import SlotConfig, SlotHead, roll_in, span_weights
from tests.oracles import slots as oracle

A, B, C = NUM_SPECIAL, NUM_SPECIAL + 1, NUM_SPECIAL + 2
VOCAB = NUM_SPECIAL + 3
ALMOST_ONE = 1 - 2.0**-41  # the largest value that uniform_noise gives

targets = st.lists(st.lists(st.integers(A, C), max_size=9), min_size=1, max_size=5)


def rolled_in(rows, seed, leftmost=False):
    tgt, tgt_len = pad(rows)
    noise = uniform_noise(torch.arange(len(rows)) + 1000 * seed, 0, 1 + tgt.shape[1])
    return tgt, tgt_len, roll_in(tgt, tgt_len, noise, leftmost)


def kept_positions(rolled, row, length):
    return set(range(length)) - set(rolled.missing[row].nonzero()[:, 0].tolist())


@given(targets, st.integers(0, 10_000), st.booleans())
def test_roll_in_puts_every_missing_token_into_its_slot(rows, seed, leftmost):
    _, _, rolled = rolled_in(rows, seed, leftmost)
    assert rolled.tokens.shape[1] == rolled.lengths.max()
    for row, target in enumerate(rows):
        kept = kept_positions(rolled, row, len(target))
        canvas = [BOS, *(target[i] for i in sorted(kept)), EOS]
        assert rolled.lengths[row] == len(canvas)
        assert rolled.tokens[row].tolist() == canvas + [PAD] * (rolled.tokens.shape[1] - len(canvas))
        spans = oracle.spans(target, kept)
        found = [[None] * len(span) for span in spans]
        for position in rolled.missing[row].nonzero()[:, 0].tolist():
            slot, index = int(rolled.slot[row, position]), int(rolled.index[row, position])
            assert rolled.span[row, position] == len(spans[slot])
            assert found[slot][index] is None
            found[slot][index] = target[position]
        assert found == spans


@given(targets, st.integers(0, 10_000))
def test_the_leftmost_alignment_changes_what_is_missing_but_not_the_canvas(rows, seed):
    _, _, drawn = rolled_in(rows, seed)
    _, _, rolled = rolled_in(rows, seed, leftmost=True)
    assert torch.equal(rolled.tokens, drawn.tokens)
    for row, target in enumerate(rows):
        kept = tuple(sorted(kept_positions(rolled, row, len(target))))
        canvas = [target[i] for i in sorted(kept_positions(drawn, row, len(target)))]
        fitting = [c for c in combinations(range(len(target)), len(canvas)) if [target[i] for i in c] == canvas]
        assert kept == min(fitting)


def test_the_drawn_alignment_keeps_what_was_drawn():
    tgt, tgt_len = pad([[A, A]])
    noise = torch.tensor([[0.5, 0.9, 0.1]], dtype=torch.float64)  # one token, the second
    assert roll_in(tgt, tgt_len, noise, leftmost=False).missing.tolist() == [[True, False]]
    assert roll_in(tgt, tgt_len, noise, leftmost=True).missing.tolist() == [[False, True]]


def test_sizes_are_uniform_from_empty_to_complete_and_subsets_of_a_size_equally_likely():
    draws = 24_000
    _, _, rolled = rolled_in([[A, B, C]] * draws, seed=1)
    kept = Counter(frozenset(kept_positions(rolled, row, 3)) for row in range(draws))
    for size in range(4):  # a size has a quarter of the draws, divided evenly among its subsets
        subsets = math.comb(3, size)
        counts = [count for subset, count in kept.items() if len(subset) == size]
        assert len(counts) == subsets
        assert counts == pytest.approx([draws / 4 / subsets] * subsets, rel=0.08)  # four standard deviations


@pytest.mark.parametrize(("noise", "size"), [(0.0, 0), (0.2499, 0), (0.25, 1), (0.7499, 2), (0.75, 3), (ALMOST_ONE, 3)])
def test_the_extremes_of_the_noise_give_the_empty_and_the_complete_canvas(noise, size):
    tgt, tgt_len = pad([[A, B, C], [A], [A]])
    draws = [[noise, 0.9, 0.1, 0.5], [ALMOST_ONE, 0.0, 0.0, 0.0], [0.4999, 0.0, 0.0, 0.0]]
    rolled = roll_in(tgt, tgt_len, torch.tensor(draws, dtype=torch.float64), leftmost=False)
    assert rolled.lengths.tolist() == [size + 2, 3, 2]
    assert (
        rolled.tokens[0, : size + 2].tolist()
        == [[BOS, EOS], [BOS, B, EOS], [BOS, B, C, EOS], [BOS, A, B, C, EOS]][size]
    )


def test_targets_without_tokens_have_one_slot_and_nothing_to_insert():
    for width in (0, 1):
        tgt, tgt_len = torch.full((2, width), PAD), torch.zeros(2, dtype=torch.long)
        for leftmost in (False, True):
            rolled = roll_in(tgt, tgt_len, torch.full((2, 1 + width), ALMOST_ONE, dtype=torch.float64), leftmost)
            assert rolled.tokens.tolist() == [[BOS, EOS]] * 2
            assert not rolled.missing.any()
        loss, _ = head_of().loss(torch.randn(2, 1, 8), tgt, rolled, torch.ones(2))
        assert loss > 0


@pytest.mark.parametrize("tau", [None, 0.3, 1.0, 20.0])
def test_span_weights_are_their_formula(tau):
    table = span_weights(7, tau)
    for length in range(1, 8):
        expected = oracle.weights(length, tau) + [0.0] * (7 - length)
        assert table[length - 1].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_centre_of_a_span_counts_most():
    third, fourth = span_weights(4, 0.5)[2:4].tolist()
    side = math.exp(-2) / (1 + 2 * math.exp(-2))  # one step from the centre (3-1)/2 = 1, tau 1/2
    assert third == pytest.approx([side, 1 - 2 * side, side, 0.0], abs=1e-6)
    assert fourth[1] == pytest.approx(fourth[2])  # an even span has two centres
    assert fourth[1] > fourth[0]


def test_a_token_that_occurs_twice_in_a_span_gets_both_weights():
    first, middle, last = oracle.weights(3, 0.5)
    assert oracle.slot_targets([A, B, A, C], {3}, 0.5, "slot") == [
        pytest.approx({A: first + last, B: middle}),
        {EOS: 1.0},
    ]


def head_of(termination="slot", weighting="binary_tree", tau=0.7, d=8):
    config = SlotConfig(model_dim=d, num_heads=2, termination=termination, span_weights=weighting, tau=tau)
    torch.manual_seed(3)
    return SlotHead(torch.nn.Parameter(torch.randn(VOCAB, d)), config)


def test_a_slot_is_made_of_the_states_on_both_sides():
    head = head_of()
    states = torch.randn(2, 4, 8)
    slots = head(states)
    assert slots.shape == (2, 3, 8)
    for row in range(2):
        for slot in range(3):
            both = torch.cat([states[row, slot], states[row, slot + 1]])
            torch.testing.assert_close(slots[row, slot], head.combine.weight @ both + head.combine.bias)


@pytest.mark.parametrize("termination", ["slot", "sequence"])
@pytest.mark.parametrize("weighting", ["uniform", "binary_tree"])
@settings(max_examples=25)
@given(targets, st.integers(0, 10_000))
def test_loss_and_gradient_equal_a_double_loop(termination, weighting, rows, seed):
    head = head_of(termination, weighting)
    tau = 0.7 if weighting == "binary_tree" else None
    tgt, _, rolled = rolled_in(rows, seed)
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(*rolled.tokens.shape, 8, generator=generator, requires_grad=True)
    weight = torch.rand(len(rows), generator=generator) + 0.5

    content, location = 0.0, 0.0
    slots = head(states)
    for row, target in enumerate(rows):
        kept = kept_positions(rolled, row, len(target))
        wanted = oracle.slot_targets(target, kept, tau, termination)
        of_row = slots[row, : len(wanted)]
        content = content + weight[row] * oracle.slot_loss(head.output(of_row).log_softmax(-1), wanted)
        if termination == "sequence":  # the slots that have a loss, all alike, among all slots
            log_location = (of_row @ head.location.weight[0]).log_softmax(0)
            scored = [slot for slot, symbols in enumerate(wanted) if symbols is not None]
            location = location - weight[row] * sum(log_location[slot] for slot in scored) / len(scored)
    total, parts = head.loss(head(states), tgt, rolled, weight)
    assert total.item() == pytest.approx((content + location).item(), rel=1e-4)
    assert parts["content"].item() == pytest.approx(content.item(), rel=1e-4)
    assert ("location" in parts) == (termination == "sequence")
    variables = [states, *head.parameters()]
    expected_gradients = torch.autograd.grad(content + location, variables)
    gradients = torch.autograd.grad(total, variables)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("termination", ["slot", "sequence"])
@pytest.mark.parametrize("eos_penalty", [0.0, 1.5])
def test_the_best_symbol_of_each_slot(termination, eos_penalty, monkeypatch):
    monkeypatch.setattr("models.slots.MAX_LOGITS", 2 * VOCAB)  # several chunks
    head = head_of(termination)
    slots = torch.randn(3, 5, 8)
    real = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True] + [False] * 4])
    slots[0, 0] = 4 * head.output.weight[EOS] / head.output.weight[EOS].norm()  # one slot that ends for sure
    with torch.no_grad():
        ids, log_probs = head.best(slots, real, eos_penalty)
        for row, count in enumerate((5, 2, 1)):
            of_slots = head.output(slots[row, :count]).log_softmax(-1)
            location = [0.0] * count
            if termination == "sequence":
                location = (slots[row, :count] @ head.location.weight[0]).log_softmax(0).tolist()
            for slot in range(count):
                values = of_slots[slot].clone()
                values[EOS] -= eos_penalty
                best = int(values.argmax())
                assert ids[row, slot] == best
                expected = float(of_slots[slot, best]) + location[slot]
                assert float(log_probs[row, slot]) == pytest.approx(expected, abs=1e-5)
            assert ids[row, count:].tolist() == [PAD] * (5 - count)
    assert (ids == EOS).any()
    assert ((ids != EOS) & real).any()


def test_an_eos_penalty_turns_ends_into_tokens():
    head = head_of()
    slots = torch.randn(1, 200, 8)
    real = torch.ones(1, 200, dtype=torch.bool)
    ends = [int((head.best(slots, real, penalty)[0] == EOS).sum()) for penalty in (0.0, 1.0, 1e9)]
    assert ends[0] > ends[1] > ends[2] == 0


@given(st.lists(st.dictionaries(st.integers(0, 5), st.integers(A, C)), min_size=1, max_size=4), st.data())
def test_insertion_equals_inserting_one_by_one(choices, data):
    lengths = [data.draw(st.integers(2, 7)) for _ in choices]
    choices = [{s: token for s, token in c.items() if s < n - 1} for c, n in zip(choices, lengths, strict=True)]
    rows = [[BOS, *range(20, 18 + n), EOS] for n in lengths]
    width = 8
    chosen = torch.tensor([[s in c for s in range(width - 1)] for c in choices])
    ids = torch.tensor([[c.get(s, EOS) for s in range(width - 1)] for c in choices])
    tokens = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    canvas = insert(Canvas(tokens, torch.tensor(lengths), tokens.float()), chosen, ids, ids.float())
    expected = [oracle.inserted(row, c) for row, c in zip(rows, choices, strict=True)]
    longest = max(map(len, expected))
    assert canvas.lengths.tolist() == [len(row) for row in expected]
    assert canvas.tokens.tolist() == [row + [PAD] * (longest - len(row)) for row in expected]
    assert canvas.scores.tolist() == canvas.tokens.tolist()  # scores move with their tokens; padding is 0


def decode(network, n, limit=100, **options):
    return insert_until_done(network, torch.ones(n, dtype=torch.long), limit, InsertionSettings(**options))


def outputs(decoded):
    return [row[:n].tolist() for row, n in zip(decoded.tokens, decoded.lengths, strict=True)]


def test_inserting_centres_takes_floor_log2_n_plus_one_rounds_and_one_to_see_the_end():
    goals = [list(range(100, 100 + n)) for n in range(65)]
    network = oracle.CentreInserter(goals)
    decoded = decode(network, len(goals))
    assert outputs(decoded) == goals
    rounds = [0] + [math.floor(math.log2(n)) + 1 for n in range(1, 65)]
    assert decoded.iterations.tolist() == [r + 1 for r in rounds]
    assert network.passes == max(rounds) + 1
    assert (decoded.tokens == PAD).sum() == 64 * 65 - sum(map(len, goals))
    for n in (1, 7, 8, 64):  # alone, and where the limit ends the sentence, no pass looks for the end
        goal = list(range(100, 100 + n))
        assert decode(oracle.CentreInserter([goal]), 1).iterations.tolist() == [rounds[n] + 1]
        assert decode(oracle.CentreInserter([goal]), 1, limit=n).iterations.tolist() == [rounds[n]]
        assert outputs(decode(oracle.CentreInserter([goal]), 1, iterations=rounds[n])) == [goal]
        if n > 1:
            assert outputs(decode(oracle.CentreInserter([goal]), 1, iterations=rounds[n] - 1)) != [goal]


def test_serial_decoding_inserts_one_token_a_round_the_surest_first():
    goals = [list(range(100, 100 + n)) for n in (0, 1, 4, 9)]
    decoded = decode(oracle.CentreInserter(goals), len(goals), mode="serial")
    assert outputs(decoded) == goals
    assert decoded.iterations.tolist() == [len(goal) + 1 for goal in goals]
    for passes, expected in ((1, [11]), (2, [10, 11]), (3, [10, 11, 12])):
        # Spans: [10 11 12 13]; then [10] and [12 13], of which the shorter is surer; then [12 13].
        network = oracle.CentreInserter([[10, 11, 12, 13]])
        assert outputs(decode(network, 1, mode="serial", iterations=passes)) == [expected]


def test_the_limit_keeps_the_most_probable_insertions():
    # Round 1 gives 12; round 2 has the spans [10 11] and [13 14 15], and room for one: the shorter is surer.
    decoded = decode(oracle.CentreInserter([[10, 11, 12, 13, 14, 15]]), 1, limit=2)
    assert outputs(decoded) == [[10, 12]]  # the left one of two centres
    assert decoded.iterations.tolist() == [2]
    assert decoded.scores.tolist() == [-6 - 2]
    assert outputs(decode(oracle.CentreInserter([[10, 11, 12, 13, 14, 15]]), 1, limit=0)) == [[]]


def test_scores_count_insertions_and_the_ends_that_stop_the_sentence():
    decoded = decode(oracle.CentreInserter([[10, 11, 12], [], [10]]), 3)
    assert decoded.scores.tolist() == [-3 - 1 - 1 + 4 * -0.5, -0.5, -1 + 2 * -0.5]
    assert decode(oracle.CentreInserter([[10, 11, 12]]), 1, iterations=1).scores.tolist() == [-3]
    cut = decode(oracle.CentreInserter([[10, 11, 12, 13]]), 1, iterations=3)  # ends were seen, but did not stop it
    assert outputs(cut) == [[10, 11, 12, 13]]
    assert cut.scores.tolist() == [-4 - 1 - 2 - 1]
    assert decode(oracle.CentreInserter([[10, 11]]), 1, mode="serial").scores.tolist() == [-2 - 1 + 3 * -0.5]


class Whole:
    """A network with sequence finalisation: any slot of its complete canvas may say so, surer than others insert."""

    termination = "sequence"
    inner: oracle.CentreInserter

    def __init__(self, goals):
        self.inner = oracle.CentreInserter(goals)

    def propose(self, canvas, eos_penalty):
        ids, log_probs = self.inner.propose(canvas, 0.0)
        complete = ((ids == EOS) | log_probs.isnan()).all(1)
        # Slots that are empty too early would repeat a token, less likely than what is missing elsewhere.
        empty = (ids == EOS) & ~complete[:, None]
        ids = ids.masked_fill(empty, 99)
        log_probs = log_probs.masked_fill(empty, -50.0)
        last = complete & (canvas.lengths > 2)
        ids[last, 0] = 98  # a token in the first slot of a complete canvas costs 1.5, the end 0.5
        log_probs[last, 0] = -1.5
        return ids, log_probs

    def select(self, rows):
        self.inner.select(rows)


def test_sequence_finalisation_stops_when_the_end_is_the_best_insertion():
    goals = [[], [10], [10, 11, 12]]
    decoded = decode(Whole(goals), 3)
    assert outputs(decoded) == goals
    assert decoded.iterations.tolist() == [1, 2, 4]
    assert decoded.scores.tolist() == [-0.5, -1 - 0.5, -3 - 1 - 1 - 0.5]
    penalised = decode(Whole([[10]]), 1, limit=2, eos_penalty=1.1)  # -1.6 for the end: the token wins
    assert outputs(penalised) == [[98, 10]]
    assert outputs(decode(Whole([[10]]), 1, limit=2, eos_penalty=0.9)) == [[10]]


def test_parallel_decoding_is_refused_where_no_slot_learned_to_end():
    with pytest.raises(ValueError, match="termination 'slot'"):
        decode(Whole([[10]]), 1, mode="parallel")
    assert InsertionSettings().is_serial("sequence")
    assert not InsertionSettings().is_serial("slot")


def test_no_sentence_at_all():
    decoded = decode(oracle.CentreInserter([]), 0)
    assert decoded.tokens.shape[0] == decoded.scores.shape[0] == 0
