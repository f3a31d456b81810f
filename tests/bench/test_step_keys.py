import pytest

from bench.configs import SpeedConfig
from bench.step_keys import TIMED_SENTENCE_SECONDS, timing_time


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({"min_seconds": 30}, 30.0),  # reached after more rounds than are asked for
        ({"min_seconds": 0}, 8 * 160 * TIMED_SENTENCE_SECONDS),
        ({"min_seconds": 0, "min_runs": 50, "sentences": 10}, 50 * 10 * TIMED_SENTENCE_SECONDS),
    ],
    ids=["seconds", "rounds", "many-rounds-of-few-sentences"],
)
def test_timing_takes_both_its_least_time_and_its_least_rounds(options, seconds):
    assert timing_time(SpeedConfig(**options), 3) == pytest.approx(3 * seconds)
