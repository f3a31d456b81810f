import math
import subprocess
import sys

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from bench.metrics import MEASURES
from bench.names import FREE_RUNNING, TEACHER_FORCED
from bench.quality import METRICS, perplexity, score, selection_value
from bench.tasks.base import Example

SACREBLEU = {"bleu": BLEU, "chrf": CHRF, "ter": TER}
WORDS = ["Der", "Hund", "läuft", "schnell", ",", "und", "die", "Katze", "schläft.", "12", "Uhr"]
SENTENCE = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
CORPUS = st.lists(st.tuples(SENTENCE, st.lists(SENTENCE, min_size=1, max_size=3)), min_size=1, max_size=6)


def examples_of(*references: tuple[str, ...]) -> list[Example]:
    return [Example(f"{i}", "", texts[0], texts) for i, texts in enumerate(references)]


def value(metric: str, hypotheses: list[str], *references: tuple[str, ...]) -> float | None:
    (result,) = score([metric], hypotheses, examples_of(*references), bootstrap_samples=0)
    return result.value


def streams(references: list[tuple[str, ...]]) -> list[list[str | None]]:
    """Return references as sacreBLEU takes them: a list per rank, None where a sentence has no more."""
    width = max(map(len, references))
    return [[texts[rank] if rank < len(texts) else None for texts in references] for rank in range(width)]


def corpus(n: int) -> tuple[list[str], list[tuple[str, ...]]]:
    rng = np.random.default_rng(7)
    hypotheses = [" ".join(rng.choice(WORDS, size=rng.integers(4, 12))) for _ in range(n)]
    references = [
        tuple(" ".join([*h.split()[: rng.integers(2, 9)], *rng.choice(WORDS, size=3)]) for _ in range(1 + i % 3))
        for i, h in enumerate(hypotheses)
    ]
    return hypotheses, references


@pytest.mark.parametrize("metric", SACREBLEU)
@settings(max_examples=40)
@given(corpus=CORPUS)
def test_sacrebleu_metrics_equal_corpus_score(metric, corpus):
    hypotheses, references = [h for h, _ in corpus], [tuple(r) for _, r in corpus]
    public = SACREBLEU[metric]()
    expected = public.corpus_score(hypotheses, streams(references)).score
    (result,) = score([metric], hypotheses, examples_of(*references), bootstrap_samples=0)
    if metric == "ter":  # its mean reference lengths are fractions, whose sum depends on the order
        assert result.value == pytest.approx(expected, rel=1e-12)
    else:
        assert result.value == expected
    assert result.signature == str(public.get_signature())


def test_bleu_by_hand_with_one_and_two_references():
    # Sentence 1 (two references) matches all of its n-grams between them: "a b c d" is in one, "b c d e" in the other.
    # Sentence 2 (one reference) has its first four words right of six.
    # n-grams right/all: 5+4 / 5+6, 4+3 / 4+5, 3+2 / 3+4, 2+1 / 2+3. Lengths: closest are 5 (of 5 and 7) and 6: no
    # brevity penalty.
    result = value("bleu", ["a b c d e", "k l m n o p"], ("a b c d x", "y b c d e z z"), ("k l m n q r",))
    assert result == pytest.approx(100 * (9 / 11 * 7 / 9 * 5 / 7 * 3 / 5) ** 0.25)


def test_bleu_signature_names_tokeniser_references_and_version():
    hypotheses, references = corpus(3)
    (result,) = score(["bleu"], hypotheses, examples_of(*references))
    assert result.signature == f"nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    (single,) = score(["bleu"], hypotheses, examples_of(*[texts[:1] for texts in references]))
    assert single.signature.startswith("nrefs:1|")


@pytest.mark.parametrize("metric", SACREBLEU)
def test_intervals_resample_sentences_and_score_the_corpus_again(metric):
    hypotheses, references = corpus(12)
    (result,) = score([metric], hypotheses, examples_of(*references), bootstrap_samples=30, seed=4)
    values = [
        SACREBLEU[metric]().corpus_score([hypotheses[i] for i in draw], streams([references[i] for i in draw])).score
        for draw in np.random.default_rng(4).integers(12, size=(30, 12))
    ]
    assert (result.ci_low, result.ci_high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), rel=1e-9)
    assert result.ci_low < result.value < result.ci_high
    assert result.n == 12


def test_share_interval_is_near_the_binomial_one():
    # 40 of 100 right: 40 ± 1.96 * sqrt(0.4 * 0.6 / 100) = 40 ± 9.6 %.
    (result,) = score(["exact_match"], ["x"] * 40 + ["y"] * 60, examples_of(*[("x",)] * 100), bootstrap_samples=4000)
    assert result.value == 40
    assert (result.ci_low, result.ci_high) == pytest.approx((30.4, 49.6), abs=1.1)


def test_no_interval_without_resampling_or_for_one_sentence():
    for results in (
        score(["wer"], ["a", "b"], examples_of(("a",), ("c",)), bootstrap_samples=0),
        score(["wer"], ["a"], examples_of(("b",))),
    ):
        assert (results[0].ci_low, results[0].ci_high) == (None, None)


def test_same_seed_same_scores():
    hypotheses, references = corpus(20)
    first, again, other = (
        score(["bleu", "wer"], hypotheses, examples_of(*references), bootstrap_samples=50, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first[0].ci_low != other[0].ci_low


def test_exact_match_takes_any_reference_and_ignores_outer_space_only():
    references = ("13. August", "August 13")
    assert value("exact_match", [" August 13\n", "13.  August", "august 13"], *[references] * 3) == pytest.approx(
        100 / 3
    )


def test_error_rates_divide_summed_edits_by_summed_length():
    # One substitution in 4 + 1 words; the mean of the two rates would be 50 %. In characters: 1 in 7 + 1.
    hypotheses, references = ["a b c d", "y"], [("a b c d",), ("x",)]
    assert value("wer", hypotheses, *references) == pytest.approx(100 / 5)
    assert value("cer", hypotheses, *references) == pytest.approx(100 / 8)
    assert value("ser", hypotheses, *references) == pytest.approx(100 / 2)


def test_error_rates_count_every_kind_of_edit():
    # "a b c d" -> "b X d e": a deleted, c substituted, e inserted.
    assert value("wer", ["b X d e"], ("a b c d",)) == pytest.approx(100 * 3 / 4)
    # "abcd" -> "bXde", likewise.
    assert value("cer", ["bXde"], ("abcd",)) == pytest.approx(100 * 3 / 4)


@pytest.mark.parametrize(("metric", "unit_length"), [("wer", 2), ("cer", 3)])
def test_empty_references_add_edits_but_no_length(metric, unit_length):
    # "a b" is two words or three characters.
    assert value(metric, ["a b", "a b"], ("",), ("a b",)) == 100 * unit_length / unit_length
    assert value(metric, ["", "a b"], ("",), ("a b",)) == 0
    assert value(metric, ["", ""], ("",), ("",)) == 0
    assert value(metric, ["a b", ""], ("",), ("",)) == 100
    assert value(metric, ["", ""], ("a b",), ("a b",)) == 100


def test_error_rates_take_the_nearest_reference():
    # One edit against the second, two against the first; then one against both, of which the longer one counts.
    assert value("wer", ["a b c"], ("x y c", "a b x")) == pytest.approx(100 / 3)
    assert value("wer", ["a b c"], ("a b", "a b c d")) == pytest.approx(100 / 4)
    assert value("ser", ["a b", "a b"], ("x", "a  b"), ("x", "a c")) == 50


KINDS = ("substitutions", "deletions", "insertions")


def test_kinds_of_edits_by_hand():
    # Words: "a b c d" -> "X c d e f": a is replaced, b deleted, e and f inserted, over 4 words and those of "g".
    hypotheses, references = ["X c d e f", "g"], [("a b c d",), ("g",)]
    found = [value(f"wer_{kind}", hypotheses, *references) for kind in KINDS]
    assert found == pytest.approx([100 / 5, 100 / 5, 200 / 5])
    # Characters: "abcdef" -> "Xbcd" has one replaced and two deleted of 6.
    found = [value(f"cer_{kind}", ["Xbcd"], ("abcdef",)) for kind in KINDS]
    assert found == pytest.approx([100 / 6, 200 / 6, 0])


def test_kinds_of_edits_are_against_the_reference_that_counts():
    # One insertion against the first; one deletion against the second, which is longer and so the one that counts.
    found = [value(f"wer_{kind}", ["a b c"], ("a b", "a b c d")) for kind in KINDS]
    assert found == pytest.approx([0, 100 / 4, 0])


@pytest.mark.parametrize("rate", ["cer", "wer"])
@settings(max_examples=40)
@given(corpus=CORPUS)
def test_kinds_of_edits_add_up_to_the_rate(rate, corpus):
    hypotheses, examples = [h for h, _ in corpus], examples_of(*[tuple(r) for _, r in corpus])
    whole, *kinds = (
        np.asarray(MEASURES[name](hypotheses, examples).rows) for name in (rate, *(f"{rate}_{kind}" for kind in KINDS))
    )
    assert (sum(rows[:, 0] for rows in kinds) == whole[:, 0]).all(), "sentence by sentence, as whole numbers"
    assert all((rows[:, 1] == whole[:, 1]).all() for rows in kinds)
    scores = score([rate, *(f"{rate}_{kind}" for kind in KINDS)], hypotheses, examples, bootstrap_samples=0)
    assert sum(result.value for result in scores[1:]) == pytest.approx(scores[0].value, rel=1e-12)


def test_all_that_is_said_where_nothing_was_is_inserted():
    assert [value(f"wer_{kind}", ["a", ""], ("",), ("",)) for kind in KINDS] == [0, 0, 100]


def test_scores_of_a_subset_are_marked():
    (marked,) = score(["wer"], ["a", "b"], examples_of(("a",), ("c",)), subset="snr_db=0..5")
    (whole,) = score(["wer"], ["a", "b"], examples_of(("a",), ("c",)))
    assert (marked.subset, whole.subset) == ("snr_db=0..5", "")
    assert (marked.value, marked.ci_low, marked.ci_high) == (whole.value, whole.ci_low, whole.ci_high)


def test_repetition_rate_is_a_share_of_all_words():
    # "very" and "," repeat: 2 of 6 words (a b , are three more tokens of which none repeats).
    assert value("repetition_rate", ["very very a,, b"], ("",)) == pytest.approx(100 * 2 / 6)
    assert value("repetition_rate", ["a b a b", "c c"], ("",), ("",)) == pytest.approx(100 / 6)
    assert value("repetition_rate", [""], ("a",)) == 0


def test_length_ratio_takes_the_closest_reference():
    # 3 words: 2 and 4 are equally close, and the shorter counts; 1 word: 2 is closer than 5.
    assert value("length_ratio", ["a b c", "a"], ("a b c d", "a b"), ("a b c d e", "a b")) == pytest.approx(4 / 4)
    assert value("length_ratio", ["a b c"], ("a b c d", "a")) == pytest.approx(3 / 4)


def test_length_ratio_is_undefined_without_reference_words():
    (result,) = score(["length_ratio"], ["a", ""], examples_of(("",), ("",)))
    assert (result.value, result.ci_low, result.ci_high) == (None, None, None)


def test_empty_rate():
    assert value("empty_rate", ["", " \n", "a", "."], *[("a",)] * 4) == 50


def test_mixed_mode_rate_sees_splices_and_nothing_else():
    references = ("Sonntag, 13. August 2023, 10:06 Uhr", "13. August 2023 um 10:06", "13.08.23, 10:06")
    outputs = [
        references[1],
        "Sonntag, 13. August 2023",  # truncated
        "Sonntag, 13. August 2023 um 10:06",  # spliced
        "13.08. August 2023, 10:06 Uhr",  # mixed by position
        "Sonntag, 14. August 2023, 10:06 Uhr",  # wrong
    ]
    assert value("mixed_mode_rate", outputs, *[references] * 5) == 100 * 2 / 5
    assert value("mixed_mode_rate", outputs, *[references[:1]] * 5) == 0


@pytest.mark.parametrize("metric", MEASURES)
def test_selection_value_is_the_score_with_more_being_better(metric):
    hypotheses, references = corpus(6)
    higher_is_better = METRICS[metric].higher_is_better
    if higher_is_better is None:
        with pytest.raises(ValueError, match="direction"):
            selection_value(metric, hypotheses, examples_of(*references))
    else:
        sign = 1 if higher_is_better else -1
        chosen = selection_value(metric, hypotheses, examples_of(*references))
        assert chosen == sign * value(metric, hypotheses, *references)


@pytest.mark.parametrize(
    "metric", [m for m, info in METRICS.items() if m in MEASURES and info.higher_is_better is not None]
)
def test_a_good_output_is_preferred(metric):
    """A perfect corpus is at least as good by every metric, and better by those that look at the reference."""
    hypotheses, references = corpus(6)
    right = [texts[0] for texts in references]
    good = selection_value(metric, right, examples_of(*references))
    assert good >= selection_value(metric, hypotheses, examples_of(*references))
    if metric not in ("mixed_mode_rate", "repetition_rate", "empty_rate"):
        assert good == pytest.approx(100 if METRICS[metric].higher_is_better else 0)


def test_every_metric_is_described_and_scores_in_the_order_asked():
    others = {"perplexity", FREE_RUNNING, TEACHER_FORCED}  # what takes more than texts
    assert {*MEASURES, *others} == set(METRICS)
    hypotheses, references = corpus(4)
    results = score(list(MEASURES)[::-1], hypotheses, examples_of(*references), bootstrap_samples=20)
    assert [r.metric for r in results] == list(MEASURES)[::-1]
    assert all(r.unit == METRICS[r.metric].unit and r.n == 4 for r in results)


def test_bad_input_is_refused():
    one = examples_of(("a",))
    with pytest.raises(ValueError, match="no hypotheses"):
        score(["bleu"], [], [])
    with pytest.raises(ValueError, match="2 hypotheses for 1 examples"):
        selection_value("bleu", ["a", "b"], one)
    with pytest.raises(ValueError, match="'7' has no reference"):
        score(["bleu"], ["a"], [Example("7", "", "", ())])
    with pytest.raises(ValueError, match="did you mean 'bleu'"):
        score(["blue"], ["a"], one)
    with pytest.raises(ValueError, match="unknown metric 'perplexity'"):
        selection_value("perplexity", ["a"], one)


def test_perplexity_of_a_uniform_model_is_its_vocabulary():
    # Every token and every end of sentence costs log 4 nats, so each resample has perplexity 4 as well.
    lengths = np.array([3, 0, 9])
    result = perplexity(-(lengths + 1) * math.log(4), lengths)
    assert (result.value, result.ci_low, result.ci_high) == pytest.approx((4, 4, 4))
    assert (result.metric, result.n) == ("perplexity", 3)


def test_perplexity_is_of_the_corpus_not_a_mean():
    # 2 + 6 nats over (1 + 1) + (5 + 1) symbols.
    assert perplexity([-2.0, -6.0], [1, 5]).value == pytest.approx(math.exp(8 / 8))
    result = perplexity([-2.0, -12.0], [1, 5])
    # Resamples are (1, 1), (1, 2), (2, 1), (2, 2): e^1, e^(14/8) and e^2; their central 95 % are the extremes.
    assert (result.ci_low, result.value, result.ci_high) == pytest.approx((math.e, math.exp(14 / 8), math.e**2))


def test_perplexity_without_probability_is_infinite():
    result = perplexity([-2.0, -math.inf], [1, 5])
    assert (result.value, result.ci_low, result.ci_high) == (math.inf, None, None)
    assert perplexity([-5000.0, -5000.0], [1, 1]).value == math.inf  # past the largest float


@pytest.mark.parametrize(
    ("log_likelihoods", "num_tokens"),
    [([], []), ([-1.0], [1, 2]), ([math.nan], [1]), ([math.inf], [1]), ([-1.0], [-1]), ([[-1.0]], [[1]])],
)
def test_perplexity_refuses_bad_input(log_likelihoods, num_tokens):
    with pytest.raises(ValueError):
        perplexity(log_likelihoods, num_tokens)


def test_import_is_light():
    heavy = "{'torch', 'sacrebleu', 'jiwer', 'pandas', 'scipy'}"
    program = f"import sys, bench.quality; sys.exit(', '.join({heavy} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
