import math
from functools import partial

import pytest
import torch

from models.decoding.autoregressive import greedy, sample
from models.decoding.beam import beam_search, extensions, largest, length_penalty
from models.decoding.noise import gumbel_noise, row_seeds
from models.interface import EOS, NUM_SPECIAL, PAD
from tests.oracles.search import best_output

SYMBOLS = list(range(NUM_SPECIAL, NUM_SPECIAL + 3))  # with eos a vocabulary of 4
V = NUM_SPECIAL + 3


class Table:
    """A stepper whose next-token distribution is a random function of the sentence and the whole prefix.

    Its state is the prefix, so a search that forgets to reorder the state reads the wrong distribution.
    """

    def __init__(self, sentences, beam=1):
        self.sentence = [s for s in sentences for _ in range(beam)]
        self.prefix = [() for _ in self.sentence]
        self.started = False
        self.calls = 0

    @staticmethod
    def logits(sentence, prefix):
        seed = hash((sentence, prefix)) % (2**31)
        row = torch.full((V,), float("-inf"))
        row[[EOS, *SYMBOLS]] = 1.5 * torch.randn(4, generator=torch.Generator().manual_seed(seed))
        return row

    @classmethod
    def log_prob(cls, sentence, prefix, symbol):
        return cls.logits(sentence, prefix).log_softmax(0)[symbol].item()

    def step(self, tokens):
        self.calls += 1
        if self.started:
            self.prefix = [(*p, t) for p, t in zip(self.prefix, tokens.tolist(), strict=True)]
        self.started = True
        return torch.stack([self.logits(s, p) for s, p in zip(self.sentence, self.prefix, strict=True)])

    def select(self, rows, sentences):
        rows = rows.tolist()
        self.sentence = [self.sentence[i] for i in rows]
        self.prefix = [self.prefix[i] for i in rows]


def outputs(decoded):
    return [tuple(row[:n]) for row, n in zip(decoded.tokens.tolist(), decoded.lengths.tolist(), strict=True)]


@pytest.mark.parametrize("kind", ["gnmt", "power"])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("stopping", ["exact", "first_k"])
def test_full_width_beam_equals_exhaustive_search(kind, alpha, stopping):
    sentences, limit = [1, 2, 3, 4], 4
    width = 3**4 + 1  # every live prefix fits; with first_k the limit ends the search, not the count
    got = beam_search(Table(sentences, width), torch.full((4,), limit), width, kind, alpha, stopping)
    for sentence, output, score in zip(sentences, outputs(got), got.scores.tolist(), strict=True):
        best, value = best_output(
            lambda prefix, symbol, s=sentence: Table.log_prob(s, prefix, symbol),
            SYMBOLS, EOS, limit, lambda n: length_penalty(n, kind, alpha),
        )  # fmt: skip
        assert output == best
        assert score == pytest.approx(value, abs=1e-4)


def test_exact_stopping_ends_early_and_loses_nothing_against_never_stopping():
    sentences, limits = list(range(40)), torch.full((40,), 6)
    exact = beam_search(Table(sentences, 4), limits, 4, "gnmt", 0.6, "exact")
    assert exact.iterations.min() < 7  # some sentence ended before its limit
    never = torch.full((40,), float("-inf"))
    # A beam that never stops early is the same search with alpha so that no bound is ever reached: replay it by hand.
    for i in sentences:
        live, best = [((), 0.0)], float("-inf")
        for position in range(7):
            grown = []
            for prefix, total in live:
                row = Table.logits(i, prefix).log_softmax(0)
                best = max(best, (total + row[EOS].item()) / length_penalty(position + 1.0, "gnmt", 0.6))
                grown += [((*prefix, s), total + row[s].item()) for s in SYMBOLS]
            live = sorted(grown, key=lambda h: -h[1])[:4]
        never[i] = best
    torch.testing.assert_close(exact.scores, never, atol=1e-4, rtol=0)


def test_first_k_stops_no_later_than_exact_finds_at_most_its_score():
    sentences, limits = list(range(40)), torch.full((40,), 6)
    exact = beam_search(Table(sentences, 4), limits, 4, stopping="exact")
    first = beam_search(Table(sentences, 4), limits, 4, stopping="first_k")
    assert (first.scores <= exact.scores + 1e-5).all()
    assert (first.scores < exact.scores - 1e-5).any() or (first.iterations < exact.iterations).any()


def test_greedy_equals_beam_one_without_normalisation():
    # Beam 1 goes on behind an eos that ranks second, so they are the same search only if the first eos ends it.
    sentences = list(range(30))
    limits = torch.full((30,), 6)
    got = greedy(Table(sentences), limits)
    for sentence, output, score in zip(sentences, outputs(got), got.scores.tolist(), strict=True):
        prefix, total = (), 0.0
        while True:
            row = Table.logits(sentence, prefix).log_softmax(0)
            symbol = EOS if len(prefix) == 6 else int(row.argmax())
            total += row[symbol].item()
            if symbol == EOS:
                break
            prefix += (symbol,)
        assert output == prefix
        assert score == pytest.approx(total, abs=1e-4)


def test_results_do_not_depend_on_the_batch_or_on_others_limits():
    sentences = list(range(20))
    limits = torch.tensor([1 + i % 5 for i in sentences])
    for beam in (1, 3):
        decode = greedy if beam == 1 else partial(beam_search, beam=beam)
        together = decode(Table(sentences, beam), limits)
        for i in sentences:
            alone = decode(Table([i], beam), limits[i : i + 1])
            assert outputs(alone)[0] == outputs(together)[i]
            assert alone.iterations.item() == together.iterations[i].item()
        assert (together.lengths <= limits).all()
        assert ((together.tokens == PAD).sum(1) == together.tokens.shape[1] - together.lengths).all()


def test_finished_sentences_leave_the_batch():
    table = Table(list(range(16)))
    rows = []
    step = table.step

    def counted(tokens):
        rows.append(len(tokens))
        return step(tokens)

    table.step = counted
    decoded = greedy(table, torch.full((16,), 8))
    assert rows == [int((decoded.iterations > i).sum()) for i in range(len(rows))]
    assert rows[-1] < rows[0]


def test_length_penalties():
    assert length_penalty(1.0, "gnmt", 0.6) == 1.0  # (5+1)/6
    assert length_penalty(7.0, "gnmt", 1.0) == 2.0  # (5+7)/6
    assert length_penalty(4.0, "power", 0.5) == 2.0
    with pytest.raises(ValueError, match="'gnmt' or 'power', not 'wu'"):
        length_penalty(1.0, "wu", 1.0)


def test_samples_follow_the_distribution_and_ignore_the_batch():
    class Fixed(Table):
        @staticmethod
        def logits(sentence, prefix):
            row = torch.full((V,), float("-inf"))
            row[SYMBOLS] = torch.tensor([0.5, 0.3, 0.2]).log()
            return row

    n = 4000
    seeds = row_seeds(torch.arange(n)[:, None], torch.ones(n, dtype=torch.long), seed=5)
    one = torch.ones(n, dtype=torch.long)
    drawn = sample(Fixed(range(n)), one, seeds).tokens[:, 0]
    shares = [(drawn == s).float().mean().item() for s in SYMBOLS]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.03)  # four standard errors
    again = sample(Fixed(range(10)), one[:10], seeds[:10]).tokens[:, 0]
    assert again.tolist() == drawn[:10].tolist()
    top = sample(Fixed(range(n)), one, seeds, top_k=2).tokens[:, 0]
    assert set(top.tolist()) == set(SYMBOLS[:2])
    nucleus = sample(Fixed(range(n)), one, seeds, top_p=0.4).tokens[:, 0]
    assert set(nucleus.tolist()) == {SYMBOLS[0]}
    cold = sample(Fixed(range(n)), one, seeds, temperature=0.05).tokens[:, 0]
    assert (cold == SYMBOLS[0]).float().mean() > 0.99


def test_noise_is_gumbel_and_differs_by_seed_position_and_column():
    noise = gumbel_noise(torch.arange(200), 3, 500)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)  # Euler's constant
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.05)
    assert len(noise.unique()) > 0.99 * noise.numel()
    assert not torch.equal(noise, gumbel_noise(torch.arange(200), 4, 500))


def test_row_seeds_ignore_padding_and_see_order():
    src = torch.tensor([[7, 8, PAD], [7, 8, 9], [8, 7, PAD]])
    seeds = row_seeds(src, torch.tensor([2, 2, 2]), 1)
    assert seeds[0] == seeds[1]
    assert seeds[0] != seeds[2]
    assert row_seeds(src, torch.tensor([2, 2, 2]), 2)[0] != seeds[0]


def test_an_eos_that_ranks_below_the_beam_does_not_finish_a_hypothesis():
    class LongWinded(Table):
        @staticmethod
        def logits(sentence, prefix):
            row = torch.full((V,), float("-inf"))
            first = {SYMBOLS[0]: 0.5, SYMBOLS[1]: 0.4, EOS: 0.1}
            later = {SYMBOLS[0]: 0.48, SYMBOLS[1]: 0.42, EOS: 0.1}
            for symbol, probability in (later if prefix else first).items():
                row[symbol] = math.log(probability)
            return row

    # The empty output has probability 0.1, more than any other (at most 0.5 * 0.1); but eos is third of three, so a
    # beam of two never takes it. At the limit everything ends, and the best live hypothesis wins.
    narrow = beam_search(LongWinded([0], 2), torch.tensor([3]), 2, alpha=0.0, stopping="exact")
    assert outputs(narrow) == [(SYMBOLS[0],) * 3]
    assert narrow.scores.item() == pytest.approx(math.log(0.5 * 0.48 * 0.48 * 0.1))
    wide = beam_search(LongWinded([0], 3), torch.tensor([3]), 3, alpha=0.0, stopping="exact")
    assert outputs(wide) == [()]


@pytest.mark.parametrize(("v", "count"), [(9, 3), (2047, 5), (2048, 5), (4007, 1), (4007, 8), (2100, 40)])
def test_the_largest_values_are_found_in_stretches(v, count):
    values = torch.randn(30, v, generator=torch.Generator().manual_seed(v))
    values[:, ::3] = float("-inf")
    values[0] = values[0].sort().values  # all in the last stretch, and in what fills none
    values[1] = values[1].sort(descending=True).values
    found, at = largest(values, count)
    expected = values.topk(count, dim=1)
    assert torch.equal(found, expected.values)
    assert torch.equal(values.gather(1, at), found)
    assert all(len(set(row)) == count for row in at.tolist())


@pytest.mark.parametrize("v", [6, 3000])
def test_extensions_have_the_probabilities_of_all_symbols(v):
    logits = 3 * torch.randn(20, v, generator=torch.Generator().manual_seed(1))
    logits[1, EOS] = 100.0
    logits[2, EOS] = float("-inf")
    logits[3], logits[3, EOS] = float("-inf"), 0.5  # nothing but eos is left
    exact = logits.double().log_softmax(1)
    symbols, log_probs, ends = extensions(logits.clone(), 4)
    assert symbols.shape == log_probs.shape == (20, 4)
    torch.testing.assert_close(ends, exact[:, EOS].float())
    torch.testing.assert_close(log_probs, exact.gather(1, symbols).float())
    exact[:, EOS] = float("-inf")
    torch.testing.assert_close(log_probs, exact.topk(4, dim=1).values.float())
    assert not (symbols[:3] == EOS).any()
