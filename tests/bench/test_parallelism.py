"""Accuracy under parallelism, against values worked out by hand."""

import math

import pytest

from bench.parallelism import accuracy_under_parallelism, frontier, rising, rising_title, sweeps
from bench.results import by_task
from tests.bench.synthetic import Spec, records, speech_records


def test_one_point_is_its_rate_times_its_quality():
    assert accuracy_under_parallelism([(2.0, 80.0)], best=80.0) == 160.0


def test_a_sweep_is_a_rectangle_and_weighted_trapezoids():
    # At the best quality the weight is 1; at 76 of 80 it is exp(-3 x 0.05).
    weighted = 76 * math.exp(-3 * (1 - 76 / 80))
    expected = 1 * 80 + 0.5 * (4 - 1) * (weighted + 80)
    assert accuracy_under_parallelism([(4.0, 76.0), (1.0, 80.0)], best=80.0) == pytest.approx(expected)


def test_the_curve_ends_where_more_than_five_points_are_lost():
    points = [(1.0, 80.0), (2.0, 75.0), (3.0, 74.9), (4.0, 80.0)]
    assert accuracy_under_parallelism(points, 80.0) == accuracy_under_parallelism(points[:2], 80.0)
    assert accuracy_under_parallelism(points[:2], 80.0) > accuracy_under_parallelism(points[:1], 80.0)


def test_of_equal_rates_the_best_counts():
    assert accuracy_under_parallelism([(2.0, 10.0), (2.0, 80.0), (2.0, 50.0)], 80.0) == 160.0


def test_nothing_and_no_quality_are_zero():
    assert accuracy_under_parallelism([], 80.0) == 0.0
    assert accuracy_under_parallelism([(1.0, 0.0)], 0.0) == 0.0


def test_a_sweep_gathers_the_settings_of_one_trained_model_and_is_weighted_by_the_best_of_all():
    cells = [
        Spec("transformer", "transformer", "beam=1", "raw", 100.0, passes=11.0),
        Spec("mp", "mask_predict", "iterations=4", "raw", 90.0, passes=4.0),
        Spec("mp", "mask_predict", "iterations=1", "raw", 60.0, passes=1.0),
        Spec("mp", "mask_predict", "iterations=10", "raw", 94.0, passes=10.0),
        Spec("mp", "mask_predict", "iterations=10", "distilled", 95.0, passes=10.0),
    ]
    (task,) = by_task(records(cells, references=()))
    found = {sweep.name: sweep for sweep in sweeps(task)}
    assert list(found) == ["transformer", "mp", "mp (distilled)"]
    assert [p.quality for p in found["mp"].points] == [94.0, 90.0, 60.0], "by rising tokens per pass"
    # Emitted tokens: 11. The single pass loses more than 5 points and does not count.
    weight = {y: y * math.exp(-3 * (1 - y / 100)) for y in (94.0, 90.0)}
    expected = 1.1 * 94 + 0.5 * (11 / 4 - 1.1) * (weight[94.0] + weight[90.0])
    assert found["mp"].aup == pytest.approx(expected)
    assert found["transformer"].aup == pytest.approx(100.0)


def test_error_rates_count_by_what_they_leave():
    cells = [
        Spec("mp", "mask_predict", "iterations=10", "raw", 94.0, passes=10.0),
        Spec("mp", "mask_predict", "iterations=4", "raw", 90.0, passes=4.0),
        Spec("lost", "ctc", "", "raw", -30.0, passes=1.0),  # a CER of 130 %
    ]
    (task,) = by_task(speech_records(cells, references=()))
    assert task.headline == "cer"
    found = {sweep.name: sweep for sweep in sweeps(task)}
    assert [point.quality for point in found["mp"].points] == [94.0, 90.0]
    # Emitted tokens: 11; 94 is the best of all and has the weight 1.
    expected = 1.1 * 94 + 0.5 * (11 / 4 - 1.1) * (90 * math.exp(-3 * (1 - 90 / 94)) + 94)
    assert found["mp"].aup == pytest.approx(expected)
    assert (found["lost"].points[0].quality, found["lost"].aup) == (0.0, 0.0)


def test_what_rises_is_named():
    assert (rising("bleu", 30.0), rising_title("bleu")) == (30.0, "BLEU")
    assert (rising("wer", 30.0), rising_title("wer")) == (70.0, "word accuracy")
    assert (rising("wer", 130.0), rising_title("cer")) == (0.0, "character accuracy")
    assert rising_title("ter") == "100 − TER"


def test_the_line_through_a_sweep_takes_the_best_at_each_place():
    assert frontier([(2, 1.0), (1, 5.0), (2, 3.0)]) == [(1, 5.0), (2, 3.0)]
