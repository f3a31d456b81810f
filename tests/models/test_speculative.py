import itertools
import math

import pytest
import torch
from pydantic import ValidationError

from bench.batching import pad
from bench.passes import counted_passes
from models.decoding.autoregressive import sample
from models.decoding.speculative import ContinuingDraft, Prefix, Sampler, WholeDraft, drafter_from, speculative
from models.interface import BOS, EOS, NUM_SPECIAL, PAD, Decoded, Model
from models.transformer import FAMILY, Settings
from tests.models.families import SPEC, build, pairs

A, B, C, D, E, U, V, W, X, Z = range(NUM_SPECIAL, NUM_SPECIAL + 10)
DRAFTS = ["itself", "transformer", "shallow", "ctc", "nothing"]


def sources(n=32):
    made = [p.source for p in pairs(n - 2, seed=1)]
    return pad([*made, [], [NUM_SPECIAL] * SPEC.max_source_length])


class Silent(Model):
    """A draft that has nothing to say; its family is the FAMILY of this module."""

    def loss(self, batch, rng):
        raise NotImplementedError

    def decode(self, src, src_len, settings):
        assert settings == Settings()
        return Decoded(src[:, :0], torch.zeros_like(src_len), torch.zeros(len(src)), torch.zeros_like(src_len))


def target_with(draft):
    model = build("transformer", decoder_layers=2)
    other = {
        "itself": lambda: model,
        "transformer": lambda: build("transformer", seed=8, decoder_layers=3),
        "shallow": lambda: build("transformer", seed=9),
        "ctc": lambda: build("ctc", seed=8, upsampling=2),
        "nothing": Silent,
    }[draft]()
    for parameter in {*model.parameters(), *other.parameters()}:  # far from uniform outputs, which end at once
        parameter.data.mul_(1.5)
    model.companions = {"draft": other}
    return model


def decode(model, src, src_len, **settings):
    with torch.inference_mode():
        return model.decode(src, src_len, Settings(**settings))


def outputs(decoded):
    return [tuple(row[:n]) for row, n in zip(decoded.tokens.tolist(), decoded.lengths.tolist(), strict=True)]


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("count", [1, 3, 100])
def test_any_draft_gives_the_greedy_output_in_no_more_passes(draft, count):
    model = target_with(draft)
    src, src_len = sources()
    expected = decode(model, src, src_len)
    got = decode(model, src, src_len, draft_tokens=count)
    assert outputs(got) == outputs(expected)
    assert (got.tokens[torch.arange(got.tokens.shape[1]) >= got.lengths[:, None]] == PAD).all()
    torch.testing.assert_close(got.scores, expected.scores, atol=1e-4, rtol=1e-5)
    assert (got.iterations <= expected.iterations).all()
    assert expected.lengths.unique().numel() > 3, "sentences must leave the batch at different times"
    for i in range(len(src)):  # alone: the same, and no more passes than in company
        n = max(int(src_len[i]), 1)
        alone = decode(model, src[i : i + 1, :n], src_len[i : i + 1], draft_tokens=count)
        assert outputs(alone) == [outputs(expected)[i]]
        assert alone.iterations[0] == got.iterations[i]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 100])
def test_a_perfect_draft_leaves_the_fewest_passes(count):
    model = target_with("itself")
    src, src_len = sources()
    got = decode(model, src, src_len, draft_tokens=count)
    fewest = [math.ceil((n + 1) / (count + 1)) for n in got.lengths.tolist()]  # tokens and eos, count + 1 a pass
    assert got.iterations.tolist() == fewest
    limits = (src_len * 2 + 10).clamp(max=SPEC.max_target_length)
    size = 2 * SPEC.max_target_length + 1
    with torch.inference_mode():
        whole = WholeDraft(got.tokens, got.lengths)
        again = speculative(model.stepper(src, src_len, size), whole, limits, count, torch.zeros(len(src)).long())
    assert outputs(again) == outputs(got)
    # A pass over the whole draft of a sentence ends it, so the width of the draft is as good as any larger count.
    assert again.iterations.tolist() == fewest


def test_passes_are_those_of_the_model_and_the_draft_counts_apart():
    model = target_with("shallow")
    src, src_len = sources()
    with counted_passes(model) as counts:
        got = decode(model, src, src_len, draft_tokens=3)
    rounds = int(got.iterations.max())
    assert counts["encoder"] == 1
    assert counts["decoder"] == rounds
    # The encoder once, 3 proposals a round; fewer only where no sentence has room for 3, so in the last 3 rounds.
    assert 1 + 3 * (rounds - 3) <= counts["companion"] <= 1 + 3 * rounds
    model = target_with("ctc")
    with counted_passes(model) as counts:
        got = decode(model, src, src_len, draft_tokens=3)
    assert counts == {"encoder": 1, "decoder": int(got.iterations.max()), "companion": 2}


@pytest.mark.parametrize(
    ("draft", "rounds"),
    [
        # Each round: the tokens of the round before (accepted ones and the model's own), the next two proposals.
        ([A, B, C, D, E], [([], [A, B]), ([A, B, C], [D, E]), ([D, E, U], [PAD, PAD])]),
        # Right but for one token, in whose place the model has its own: behind it.
        ([A, B, X, D, E], [([], [A, B]), ([A, B, C], [D, E])]),
        # A token too many, refused: behind the same token further on.
        ([A, X, B, C, D], [([], [A, X]), ([A, B], [C, D])]),
        # A token too few: first as if it were another one, then back to where the draft was last confirmed.
        ([A, C, D, E, U], [([], [A, C]), ([A, B], [D, E]), ([C], [D, E])]),
        # Two tokens that agree go before a nearer one that does.
        ([U, Z, W, Z, U, W, V], [([], [U, Z]), ([U, W], [V, PAD])]),
        ([X, W, Z, W, V], [([], [X, W]), ([W], [Z, W])]),  # else the nearer
        # What was confirmed is not looked at again.
        ([W, Z, A, W, B], [([], [W, Z]), ([W, Z, W], [B, PAD])]),
        # Behind a skipped token the floor stays where the draft was last confirmed, and bos stands before the first.
        ([A, B, C, D], [([], [A, B]), ([C], [D, PAD]), ([A], [B, C]), ([B], [C, D])]),
        # Nothing agrees: the draft goes on in its place, and ends.
        ([A, B, C], [([], [A, B]), ([X], [B, C]), ([Z], [C, PAD]), ([Z], [PAD, PAD]), ([Z], [PAD, PAD])]),
        ([], [([], []), ([X], []), ([X], [])]),
    ],
)
def test_a_whole_draft_is_taken_up_again_where_it_fits(draft, rounds):
    drafter = WholeDraft(torch.tensor([draft], dtype=torch.long).view(1, -1), torch.tensor([len(draft)]))
    said = [BOS, BOS]
    for new, expected in rounds:
        said += new
        length = len(said) - 2
        prefix = Prefix(torch.tensor([said[-2:]]), torch.tensor([length]), length, torch.zeros(1).long())
        assert drafter.propose(prefix, 2)[0].tolist() == [expected]


class Tree:
    """A model over symbols U, V and eos whose next-symbol distribution is a random function of the whole prefix."""

    SYMBOLS = (U, V)
    SIZE = 12

    def __init__(self, seed, n):
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.full((4**4, V + 1), float("-inf"))
        self.table[:, [EOS, U, V]] = 1.5 * torch.randn(4**4, 3, generator=generator)
        self.symbols = torch.zeros(n, self.SIZE, dtype=torch.long)

    @staticmethod
    def digits(tokens):
        return torch.where(tokens == U, 1, torch.where(tokens == V, 2, 0))

    def step_block(self, tokens, starts, end):
        positions = starts[:, None] + torch.arange(tokens.shape[1])
        assert int(positions.max()) < end <= self.SIZE
        self.symbols.scatter_(1, positions, self.digits(tokens))
        powers = torch.tensor([0, 1, 4, 16, *[0] * (self.SIZE - 4)])
        codes = (self.symbols * powers).cumsum(1).gather(1, positions)
        return self.table[codes + 64 * positions.clamp(max=3)]

    def select(self, rows, sentences):
        self.symbols = self.symbols[rows]

    def chance(self, output, limit, sampler):
        """The probability of an output of at most 3 tokens."""
        total, code, power = 1.0, 0, 1
        for position, symbol in enumerate([*output, EOS]):
            if position < limit:
                total *= sampler(self.table[code + 64 * position][None])[0, symbol].item()
            code, power = code + power * int(self.digits(torch.tensor(symbol))), power * 4
        return total


SAMPLERS = [Sampler(), Sampler(temperature=0.7), Sampler(temperature=1.4, top_k=2), Sampler(top_p=0.8)]


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("draft", ["continuing", "whole"])
def test_sampling_has_the_distribution_of_the_model_whatever_the_draft(draft, sampler, count):
    n, limit = 40_000, 3
    seeds = torch.randint(2**62, (n,), generator=torch.Generator().manual_seed(0))
    target = Tree(1, n)
    if draft == "whole":
        drafter = WholeDraft(torch.tensor([[V, U, U]]).expand(n, 3), torch.full((n,), 3))
    else:
        drafter = ContinuingDraft(Tree(2, n), sampler)
    got = speculative(target, drafter, torch.full((n,), limit), count, seeds, sampler)
    seen = {}
    for output in outputs(got):
        seen[output] = seen.get(output, 0) + 1
    every = [o for length in range(limit + 1) for o in itertools.product(Tree.SYMBOLS, repeat=length)]
    chances = {o: target.chance(o, limit, sampler) for o in every}
    assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
    assert seen.keys() <= {o for o, p in chances.items() if p > 0}
    expected = {o: n * p for o, p in chances.items() if p > 0}
    statistic = sum((seen.get(o, 0) - e) ** 2 / e for o, e in expected.items())
    freedom = len(expected) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom) + 4  # beyond the 0.9999 quantile
    assert got.iterations.float().mean() < (got.lengths + 1).float().mean() - 0.1  # and proposals were accepted


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_k": 5}, {"temperature": 1.3, "top_p": 0.9}])
def test_sampling_with_itself_as_draft_draws_the_same_as_sampling_alone(options):
    model = target_with("itself")
    src, src_len = sources()
    alone = decode(model, src, src_len, sample=True, **options)
    drafted = decode(model, src, src_len, sample=True, draft_tokens=3, **options)
    assert outputs(drafted) == outputs(alone)
    torch.testing.assert_close(drafted.scores, alone.scores, atol=1e-4, rtol=1e-5)
    assert drafted.iterations.tolist() == [math.ceil((n + 1) / 4) for n in alone.lengths.tolist()]


@pytest.mark.parametrize("draft", ["shallow", "ctc", "nothing"])
def test_a_sample_does_not_depend_on_batch_mates(draft):
    model = target_with(draft)
    src, src_len = sources()
    options = {"sample": True, "draft_tokens": 4, "temperature": 0.7}
    together = decode(model, src, src_len, **options)
    for i in range(len(src)):
        n = max(int(src_len[i]), 1)
        alone = decode(model, src[i : i + 1, :n], src_len[i : i + 1], **options)
        assert outputs(alone) == [outputs(together)[i]]
        assert alone.iterations[0] == together.iterations[i]
    if draft == "nothing":  # then nothing but plain sampling is left
        assert outputs(together) == outputs(decode(model, src, src_len, sample=True, temperature=0.7))
    else:
        assert outputs(together) != outputs(decode(model, src, src_len, seed=2, **options))
    assert all(t >= NUM_SPECIAL for o in outputs(together) for t in o)


def test_a_draft_that_cannot_go_on_from_a_prefix_decodes_once():
    src, src_len = sources()
    with torch.inference_mode():
        assert isinstance(drafter_from(build("transformer"), src, src_len, 41, None), ContinuingDraft)
        assert isinstance(drafter_from(build("ctc"), src, src_len, 41, None), WholeDraft)


def test_limits_hold_and_an_empty_batch_decodes():
    model = target_with("itself")
    src, src_len = sources()
    for options in ({"length_extra": 0, "length_ratio": 0.3}, {"length_extra": 0, "length_ratio": 1.0}):
        expected = decode(model, src, src_len, **options)
        got = decode(model, src, src_len, draft_tokens=4, **options)
        assert outputs(got) == outputs(expected)
        assert (got.lengths <= (src_len * options["length_ratio"]).long()).all()
    none = speculative(Tree(1, 0), ContinuingDraft(Tree(2, 0), None), torch.zeros(0).long(), 3, torch.zeros(0).long())
    assert none.tokens.shape == (0, 0)


def test_settings_ask_for_a_draft_and_refuse_a_beam():
    assert Settings().needs() == frozenset()
    assert Settings(draft_tokens=2).needs() == {"draft"}
    assert [role.name for role in FAMILY.roles] == ["draft"]
    with pytest.raises(ValidationError, match="draft_tokens 2 needs beam 1, not 4"):
        Settings(draft_tokens=2, beam=4)
    model = target_with("itself")
    model.companions = {}
    with pytest.raises(ValueError, match="needs a companion as 'draft'"):
        decode(model, *sources(4), draft_tokens=2)
    model.companions = {"draft": type("Stray", (Silent,), {"__module__": "builtins"})()}
    with pytest.raises(ValueError, match="Stray cannot draft: its module defines no FAMILY"):
        decode(model, *sources(4), draft_tokens=2)


def test_a_sample_without_proposals_is_that_of_plain_sampling():
    n, limit = 200, 3
    seeds = torch.randint(2**62, (n,), generator=torch.Generator().manual_seed(0))

    class Stepwise(Tree):
        position = 0

        def step(self, tokens):
            self.position += 1
            starts = torch.full_like(tokens, self.position - 1)
            return self.step_block(tokens[:, None], starts, self.position)[:, 0]

    plain = sample(Stepwise(1, n), torch.full((n,), limit), seeds)
    empty = WholeDraft(torch.zeros(n, 0).long(), torch.zeros(n).long())
    drafted = speculative(Tree(1, n), empty, torch.full((n,), limit), 3, seeds, Sampler())
    assert outputs(plain) == outputs(drafted)
