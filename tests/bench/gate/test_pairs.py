"""When pairs of times alarm: simulated machines with drift, disturbances and true slowdowns."""

import math
import random

import pytest

from bench.gate.config import GateConfig
from bench.gate.pairs import Pair, compare_in_turn, judge
from bench.gate.verdicts import Verdict

CONFIG = GateConfig(slowdown=10.0)


class Machine:
    """Times that drift, scatter, and are disturbed now and then by something that lasts."""

    def __init__(self, seed, slower=1.0, scatter=0.03, disturbed=0.1):
        self.rng = random.Random(seed)
        self.slower, self.scatter, self.disturbed = slower, scatter, disturbed
        self.drift = 0.0
        self.timed = 0

    def __call__(self, point, number):
        self.timed += 1
        self.drift += self.rng.gauss(0, 0.02)
        return Pair(self.one(1.0), self.one(self.slower), 8)

    def one(self, factor):
        seconds = 0.03 * factor * math.exp(self.drift + self.rng.gauss(0, self.scatter))
        return seconds * (self.rng.uniform(1.5, 10) if self.rng.random() < self.disturbed else 1)


def run(machine, config=CONFIG, points=("point",)):
    return {point: found[0] for point, found in compare_in_turn(points, machine, config, random.Random(1)).items()}


def verdicts(count, **machine):
    return [run(Machine(seed, **machine))["point"].verdict for seed in range(count)]


def test_equal_code_alarms_hardly_ever():
    found = verdicts(300)
    assert found.count(Verdict.REGRESSED) == 0
    assert found.count(Verdict.OK) > 290


def test_a_fifth_slower_is_caught():
    assert verdicts(100, slower=1.25).count(Verdict.REGRESSED) >= 99


def test_faster_is_an_improvement():
    assert set(verdicts(20, slower=0.7)) == {Verdict.IMPROVED}


def test_a_small_fall_is_none():
    assert Verdict.REGRESSED not in verdicts(100, slower=1.05)


def test_what_is_inconclusive_is_timed_on_and_nothing_else():
    noisy, quiet = Machine(1, scatter=0.5, disturbed=0.3), Machine(2)
    machines = {"noisy": noisy, "quiet": quiet}
    judged = run(lambda point, number: machines[point](point, number), points=("noisy", "quiet"))
    assert (judged["noisy"].verdict, noisy.timed) == (Verdict.INCONCLUSIVE, 80)
    assert (judged["quiet"].verdict, quiet.timed) == (Verdict.OK, 20)


def test_rounds_are_numbered_on_and_in_random_order():
    seen = []

    def time_pair(point, number):
        seen.append((number, point))
        return Pair(1.0, 1.0 if point != "b" else 0.8 + 0.4 * (number % 2), 1)

    run(time_pair, GateConfig(pairs=(5, 9)), points=("a", "b", "c"))
    rounds = [[point for number, point in seen if number == i] for i in range(9)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds[:5])
    assert len({tuple(each) for each in rounds[:5]}) > 1
    assert rounds[5:] == [["b"]] * 4


def test_a_point_that_fails_is_left_out_and_does_not_stop_the_others():
    judged = run(lambda point, number: None if point == "a" and number == 3 else Pair(1.0, 1.0, 1), points=("a", "b"))
    assert list(judged) == ["b"]


def test_the_interval_decides():
    def pairs(*ratios):
        return [Pair(1.0, 1 / ratio, 1) for ratio in ratios * 5]

    assert judge(pairs(0.8, 0.81, 0.82), 10.0).verdict is Verdict.REGRESSED
    assert judge(pairs(0.8, 0.9, 1.0), 10.0).verdict is Verdict.INCONCLUSIVE
    assert judge(pairs(0.91, 0.95, 1.0), 10.0).verdict is Verdict.OK
    assert judge(pairs(0.8, 0.81, 0.82), 25.0).verdict is Verdict.OK
    found = judge(pairs(0.8, 0.81, 0.82), 10.0)
    assert found.ratio == pytest.approx(0.81)
    assert found.low <= found.ratio <= found.high < 0.9
    with pytest.raises(ValueError, match="1 pairs"):
        judge([Pair(1.0, 1.0, 1)], 10.0)
