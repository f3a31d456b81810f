import math
from itertools import count

import numpy as np
import pytest

import bench.stats
from bench.stats import (
    MIN_SAMPLES,
    Interval,
    bootstrap_interval,
    bootstrap_median,
    bootstrap_quantile,
    holm,
    paired_randomisation,
    percentile_supported,
    ratio,
)


def test_ratio_is_undefined_over_nothing():
    np.testing.assert_array_equal(ratio(np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])), [0.75, np.nan, np.nan])


def test_interval_equals_resampling_one_by_one():
    rows = np.random.default_rng(5).integers(1, 9, size=(13, 2)).astype(float)
    interval = bootstrap_interval(rows, ratio, rng=3, samples=200)

    rng = np.random.default_rng(3)
    values = []
    for draw in rng.integers(len(rows), size=(200, len(rows))):
        numerator = sum(rows[i, 0] for i in draw)
        denominator = sum(rows[i, 1] for i in draw)
        values.append(numerator / denominator)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), rel=1e-12)


def test_interval_does_not_depend_on_the_chunks(monkeypatch):
    rows = np.random.default_rng(5).random((7, 2)) + 0.5
    whole = bootstrap_interval(rows, ratio, rng=1, samples=101)
    monkeypatch.setattr(bench.stats, "_CHUNK_ELEMENTS", 30)  # four resamples of seven a chunk, and one left over
    in_chunks = bootstrap_interval(rows, ratio, rng=1, samples=101)
    assert whole is not None
    assert in_chunks is not None
    assert (in_chunks.low, in_chunks.high) == pytest.approx((whole.low, whole.high), rel=1e-12)


def test_interval_covers_the_truth_as_often_as_it_says():
    # 300 samples of 100 draws from N(2, 1). The mean's 95 % interval should miss 15 times; the standard deviation of
    # the number of misses is sqrt(300 * 0.05 * 0.95) = 3.8, and 15 ± 15 is four of those.
    rng = np.random.default_rng(0)
    misses = 0
    for seed in range(300):
        sample = rng.normal(2.0, 1.0, size=100)
        rows = np.stack([sample, np.ones(100)], axis=1)
        interval = bootstrap_interval(rows, ratio, rng=seed, samples=400)
        assert interval is not None
        misses += not interval.low <= 2.0 <= interval.high
    assert 2 <= misses <= 30


def test_generator_and_seed_draw_alike_and_a_generator_moves_on():
    rows = np.random.default_rng(5).random((20, 2)) + 0.5
    rng = np.random.default_rng(9)
    first, second = (bootstrap_interval(rows, ratio, rng=rng, samples=50) for _ in range(2))
    assert first == bootstrap_interval(rows, ratio, rng=9, samples=50)
    assert first != second


def test_no_interval_where_there_is_nothing_to_resample():
    assert bootstrap_interval([[1.0, 2.0], [2.0, 3.0]], ratio, rng=1, samples=0) is None
    assert bootstrap_interval([[1.0, 2.0]], ratio, rng=1) is None
    assert bootstrap_interval([[1.0, 0.0], [2.0, 0.0]], ratio, rng=1) is None  # undefined in every resample
    assert bootstrap_median([4.0], rng=1) is None


def test_undefined_resamples_are_left_out():
    # Two rows: a resample holds (a, a), (a, b), (b, a) or (b, b), and only (b, b) has no denominator. What is defined
    # is 1/1 or (1 + 1)/1, so the interval of all of it runs from 1 to 2.
    assert bootstrap_interval([[1.0, 1.0], [1.0, 0.0]], ratio, rng=1, samples=1000) == Interval(1.0, 2.0)


def test_median_of_two_values():
    # Resamples of {0, 1} have the median 0, 1/2, 1 with probability 1/4, 1/2, 1/4: the central 95 % of the medians run
    # from 0 to 1, the central 40 % are 1/2.
    assert bootstrap_median([0.0, 1.0], rng=1) == Interval(0.0, 1.0)
    assert bootstrap_median([0.0, 1.0], rng=1, confidence=0.4) == Interval(0.5, 0.5)


def test_quantile_interval_holds_the_quantile():
    values = np.random.default_rng(2).permutation(1000) / 999  # evenly spaced on [0, 1]: the q-quantile is q
    interval = bootstrap_quantile(values, 0.9, rng=1)
    assert interval is not None
    # The standard deviation of the 0.9-quantile of 1000 uniform draws is about sqrt(0.9 * 0.1 / 1000) = 0.0095.
    assert interval.low == pytest.approx(0.9 - 1.96 * 0.0095, abs=0.005)
    assert interval.high == pytest.approx(0.9 + 1.96 * 0.0095, abs=0.005)


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap_interval([1.0, 2.0], ratio, rng=1),
        lambda: bootstrap_interval([[1.0, math.inf], [1.0, 1.0]], ratio, rng=1),
        lambda: bootstrap_interval([[1.0, 2.0], [1.0, 2.0]], ratio, rng=1, samples=-1),
        lambda: bootstrap_median([1.0, 2.0], rng=1, confidence=95),
        lambda: bootstrap_median([1.0, math.nan], rng=1),
        lambda: bootstrap_quantile([1.0, 2.0], 50, rng=1),
        lambda: percentile_supported(80, 100),
        lambda: percentile_supported(50, -1),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises(ValueError):
        call()


@pytest.mark.parametrize(("percentile", "needed_above"), [(50, 1), (90, 2), (95, 2), (99, 2)])
def test_sample_sizes_follow_from_the_binomial(percentile, needed_above):
    above = 1 - percentile / 100

    def confidence(n: int) -> float:
        """Return the probability that at least `needed_above` of n measurements lie above the quantile."""
        return 1 - sum(math.comb(n, k) * above**k * (1 - above) ** (n - k) for k in range(needed_above))

    least = next(n for n in count(1) if confidence(n) >= 0.99)
    assert MIN_SAMPLES[percentile] == least
    assert percentile_supported(percentile, least)
    assert not percentile_supported(percentile, least - 1)


def test_exchanges_give_the_p_value_of_sacrebleu():
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.significance import PairedTest

    rng = np.random.default_rng(3)
    words = np.array(["a", "b", "c", "d", "e", "f", "g", "h"])
    references = [" ".join(rng.choice(words, 12)) for _ in range(60)]

    def outputs(share):
        return [
            " ".join(str(rng.choice(words)) if rng.random() < share else w for w in reference.split())
            for reference in references
        ]

    from types import SimpleNamespace

    from bench.metrics import MEASURES

    examples = [SimpleNamespace(references=(reference,)) for reference in references]
    baseline = outputs(0.3)
    for candidate in (outputs(0.3), outputs(0.34), outputs(0.5)):
        old, new = (MEASURES["bleu"](texts, examples) for texts in (baseline, candidate))
        ours = paired_randomisation(old.rows, new.rows, old.statistic, samples=4000)
        test = PairedTest(
            [("old", baseline), ("new", candidate)], {"BLEU": BLEU(references=[references])}, references=None,
            test_type="ar", n_samples=4000,
        )  # fmt: skip
        _, results = test()
        assert ours == pytest.approx(results["BLEU"][1].p_value, abs=0.03)


def test_exchanges_of_all_rows_can_be_counted():
    # Three sentences, each better by 1: of the 8 exchanges only none and all reach the observed difference.
    p = paired_randomisation([[1.0, 1], [2, 1], [3, 1]], [[2.0, 1], [3, 1], [4, 1]], ratio, samples=20_000)
    assert p == pytest.approx(2 / 8, abs=0.01)


def test_what_is_undefined_has_no_p_value():
    with pytest.raises(ValueError, match="undefined for one of the two"):
        paired_randomisation([[1.0, 2]], [[1.0, 0]], ratio, samples=100)


def test_equal_rows_have_no_difference_to_reach():
    assert paired_randomisation([[1.0, 2]], [[1.0, 2]], ratio, samples=100) == 1


@pytest.mark.parametrize(
    ("baseline", "candidate", "samples"), [([[1.0, 1]], [[1.0, 1], [1, 1]], 9), ([], [], 9), ([[1.0]], [[1.0]], 0)]
)
def test_what_does_not_pair_is_refused(baseline, candidate, samples):
    with pytest.raises(ValueError, match=r"do not pair|must be positive"):
        paired_randomisation(baseline, candidate, ratio, samples=samples)


def test_holm_by_hand():
    # 0.01 x 4, 0.02 x 3, 0.03 x 2 = 0.06 again, 0.9 x 1.
    assert holm([0.03, 0.9, 0.01, 0.02]) == pytest.approx([0.06, 0.9, 0.04, 0.06])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]
