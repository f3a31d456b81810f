"""Two real processes take turns, on checkouts whose decoders take as long as they are told."""

import random
import sys
from pathlib import Path

import pytest

from bench.gate.config import GateConfig
from bench.gate.session import Session, TimedPoint
from bench.gate.turns import Checkout, Died
from bench.gate.verdicts import Verdict
from tests.bench.gate.fake_checkout import write_checkout

CONFIG = GateConfig(milliseconds=8.0, pairs=(12,))


def description(*cells, families=None, settings=None):
    return {
        "cells": [
            {"id": cell, "family": (families or {}).get(cell, "works"), "companions": {},
             "config": {"values": {"name": cell}, "defaults": {}},
             "settings": (settings or {}).get(cell, {"values": {"beam": 1}, "defaults": {"beam": 1}})}
            for cell in cells
        ],
        "parents": {"data": "data", **{f"model{i}": "model" for i in range(len(cells))}},
        "batch_sizes": [1, 4], "sentences": 8, "threads": 1, "split": "test", "device": "cpu", "dtype": "float32",
    }  # fmt: skip


@pytest.fixture
def timed(tmp_path):
    """Time cells at both batch sizes, on a baseline and a candidate that differ as told."""

    def run(cells, baseline=(), candidate=(), first=0, **options):
        checkouts = [
            Checkout(write_checkout(tmp_path / name, **dict(changes)), Path(sys.executable))
            for name, changes in (("baseline", baseline), ("candidate", candidate))
        ]
        points = [TimedPoint(cell, size) for cell in cells for size in (1, 4)]
        session = Session(CONFIG, random.Random(1))
        return session.run(checkouts, description(*cells, **options), points, tmp_path / "log", first)

    return run


@pytest.mark.parametrize("first", [0, 1])
def test_the_side_that_is_slower_is_the_one_that_regressed(timed, first):
    found = timed(["a", "b"], candidate={"DELAYS": {"a": 0.003}}, first=first)
    verdicts = {point: judgement.verdict for point, (judgement, _) in found.judged.items()}
    assert verdicts == {
        TimedPoint("a", 1): Verdict.REGRESSED, TimedPoint("a", 4): Verdict.REGRESSED,
        TimedPoint("b", 1): Verdict.OK, TimedPoint("b", 4): Verdict.OK,
    }  # fmt: skip
    assert found.judged[TimedPoint("a", 1)][0].ratio == pytest.approx(2 / 3, rel=0.1)
    assert found.failures == ({}, {})


def test_short_batches_are_joined_and_sentences_counted(timed):
    found = timed(["a"])
    one, four = (found.judged[TimedPoint("a", size)][1] for size in (1, 4))
    # 8 ms take at least four batches of 2 ms, and there are no more than two batches of four.
    assert {pair.sentences for pair in one} <= {4, 5}
    assert {pair.sentences for pair in four} == {8}
    assert all(pair.same for pair in one + four)


def test_outputs_that_differ_are_seen(timed):
    found = timed(["a"], candidate={"OFFSET": 1})
    assert not any(pair.same for _, pairs in found.judged.values() for pair in pairs)


@pytest.mark.parametrize(
    ("side", "do", "reason"),
    [(1, "raise", "ValueError: no such luck"), (1, "die", "ended with code 7"), (0, "die", "7")],
)
def test_what_fails_on_a_side_is_told_and_the_others_go_on(timed, side, do, reason):
    changes = {"DELAYS": {"a": do}}
    found = timed(["a", "b"], **{("baseline", "candidate")[side]: changes})
    assert list(found.failures[side]) == [("a", 1), ("a", 4)]
    assert reason in found.failures[side]["a", 1].reason
    assert found.failures[1 - side] == {}
    assert list(found.judged) == [TimedPoint("b", 1), TimedPoint("b", 4)]


def test_what_fails_at_one_batch_size_is_timed_at_the_other(timed):
    found = timed(["a"], candidate={"DELAYS": {"a": "raise at 4"}})
    assert list(found.failures[1]) == [("a", 4)]
    assert list(found.judged) == [TimedPoint("a", 1)]


def test_what_neither_side_can_is_known_of_both(timed):
    both = {"DELAYS": {"a": "raise"}}
    found = timed(["a", "b"], baseline=both, candidate=both)
    assert all(list(failures) == [("a", 1), ("a", 4)] for failures in found.failures)


def test_outputs_of_another_length_do_not_compare(timed):
    found = timed(["a"], candidate={"LOST": 1, "DELAYS": {"a": 0.0005}})
    judgement = found.judged[TimedPoint("a", 4)][0]
    assert judgement.verdict is Verdict.DISJOINT
    assert "other work" in judgement.note


def test_an_option_that_a_side_lacks_matters_only_if_it_is_used(timed):
    extra = {"EXTRA": {"new": None}}
    defaults = {"beam": 1, "new": 0}
    settings = {
        "a": {"values": {"beam": 4, "new": 0}, "defaults": defaults},
        "b": {"values": {"beam": 1, "new": 7}, "defaults": defaults},
    }
    found = timed(["a", "b"], candidate=extra, settings=settings)
    assert found.failures[0]["b", None].unknown
    assert "no option new" in found.failures[0]["b", None].reason
    assert list(found.judged) == [TimedPoint("a", 1), TimedPoint("a", 4)]


def test_an_older_side_does_not_know_a_family(timed):
    found = timed(["a", "b"], candidate={"KNOWN": ("works", "new")}, families={"a": "new"})
    assert found.failures[0]["a", None].unknown
    assert found.failures[1] == {}


def test_a_checkout_that_does_not_start_says_which_side_and_why(tmp_path):
    good, bad = write_checkout(tmp_path / "good"), write_checkout(tmp_path / "bad")
    (bad / "bench" / "checkpoint.py").write_text("")
    checkouts = [Checkout(root, Path(sys.executable)) for root in (good, bad)]
    with pytest.raises(Died, match=r"ended with code 1: .*inference") as caught:
        Session(CONFIG, random.Random(1)).run(checkouts, description("a"), [TimedPoint("a", 1)], tmp_path / "log")
    assert caught.value.side == 1
