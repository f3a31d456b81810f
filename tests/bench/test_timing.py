import gc

import pytest

from bench.configs import SpeedConfig
from bench.timing import Point, Timing, due, round_order, share_done, time_each, warm_up

A1, A8, B1, B8 = Point("a", 1), Point("a", 8), Point("b", 1), Point("b", 8)
SECOND = 10**9


def timing(index, point, seconds):
    return Timing(index, point, durations=(int(seconds * SECOND),), tokens=(1,))


def config(**values):
    return SpeedConfig(**({"min_runs": 2, "min_seconds": 0} | values))


def test_each_input_is_timed_between_two_synchronisations():
    events = []
    # The clock is read before and after each of two inputs: 100 -> 130 and 200 -> 207.
    ticks = iter([100, 130, 200, 207])

    def clock():
        events.append("clock")
        return next(ticks)

    def work(item):
        events.append(item)
        return item.upper()

    durations, outputs = time_each(work, ["x", "y"], clock, lambda: events.append("sync"))
    assert durations == [30, 7]
    assert outputs == ["X", "Y"]
    once = ["sync", "clock", None, "sync", "clock"]
    assert events == [e or "x" for e in once] + [e or "y" for e in once]


def test_garbage_collection_is_off_while_timing_and_on_again_after_an_error():
    seen = []

    def work(item):
        seen.append(gc.isenabled())
        raise ValueError(item)

    assert gc.isenabled()
    with pytest.raises(ValueError, match="x"):
        time_each(work, ["x"], lambda: 0, lambda: None)
    assert seen == [False]
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("times", "calls"),
    [
        ([100, 100, 100], 2),  # stable at once
        ([100, 91, 50], 2),  # 9 % faster: stable
        ([100, 90, 50, 49], 4),  # 10 % is not below 10 %
        ([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024], 10),  # never stable: the cap
    ],
)
def test_warm_up_goes_on_until_two_times_agree(times, calls):
    script = iter(times)
    assert warm_up(lambda: next(script)) == times[:calls]


def test_rounds_have_random_but_repeatable_orders():
    points = [Point(cell, size) for cell in "abcd" for size in (1, 8)]
    orders = [round_order(points, index) for index in range(20)]
    assert all(sorted(order) == points for order in orders)
    assert len({tuple(order) for order in orders}) == 20
    assert orders[7] == round_order(points[::-1], 7)


def test_every_point_gets_its_rounds():
    points = [A1, B1]
    first = [timing(0, A1, 5), timing(0, B1, 5)]
    assert due(points, [], config()) == points
    assert due(points, first, config()) == points
    assert due(points, [*first, timing(1, A1, 5), timing(1, B1, 5)], config()) == []


def test_a_batch_size_goes_on_with_all_its_cells_until_the_fastest_has_its_seconds():
    points = [A1, A8, B1, B8]
    timings = [timing(r, p, 0.4 if p == B8 else 2) for r in range(2) for p in points]
    # Only b at batch 8 lacks time (0.8 of 1 s): a at batch 8 is timed with it so that pairs stay complete.
    assert due(points, timings, config(min_seconds=1)) == [A8, B8]
    timings += [timing(2, A8, 2), timing(2, B8, 0.4)]
    assert due(points, timings, config(min_seconds=1)) == []


def test_past_the_limit_only_the_least_number_of_rounds_is_asked():
    limited = config(min_seconds=100, max_seconds=10)
    once = [timing(0, A1, 9), timing(0, B1, 9)]
    assert due([A1, B1], once, limited) == [A1, B1]
    assert due([A1, B1], [*once, timing(1, A1, 9), timing(1, B1, 9)], limited) == []


def test_points_that_failed_are_not_waited_for():
    timings = [timing(r, A1, 1) for r in range(2)] + [timing(0, B1, 1)]
    assert due([A1], timings, config()) == []
    assert due([], timings, config()) == []


def test_the_share_done_is_that_of_rounds_or_seconds_whichever_is_less():
    timings = [timing(0, A1, 3), timing(0, B1, 1)]
    # a: 1 of 4 rounds; b: 1 of 8 seconds is less than 1 of 4 rounds.
    assert share_done([A1, B1], timings, config(min_runs=4, min_seconds=8)) == pytest.approx((1 / 4 + 1 / 8) / 2)
    assert share_done([A1, B1], timings, config(min_runs=2)) == pytest.approx(1 / 2)
    assert share_done([], timings, config()) == 1
