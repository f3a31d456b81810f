"""What a run shows: texts, plain lines, the live display."""

import time
from io import StringIO

import pytest
from rich.console import Console

from bench import progress
from bench.progress import Line, LiveDisplay, PlainDisplay, duration, make_display
from bench.steps import JsonProgress, Step

STEP = Step("train", "key", {}, label="train ctc [beam=5]")


@pytest.fixture
def clock(monkeypatch):
    """A clock to be set by hand."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def console(terminal: bool) -> Console:
    return Console(file=StringIO(), width=120, force_terminal=terminal, color_system=None)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_time_left_follows_the_pace_since_the_first_report():
    line = Line(began=0.0)
    assert line.seconds_left(5.0) is None
    line.take({"done": 0.5}, 10.0)  # resumed: half of the work was done before
    assert line.seconds_left(10.0) is None
    line.take({"done": 0.6}, 30.0)
    assert line.seconds_left(30.0) == pytest.approx(80.0)  # 0.1 in 20 s, 0.4 to go


def test_a_line_keeps_values_that_a_report_does_not_name():
    line = Line(began=0.0)
    line.take({"done": 0.1, "loss": 2.0, "tokens_per_second": 12345.6}, 1.0)
    line.take({"done": None, "dev": 41.5, "stage": "warming up"}, 2.0)
    assert line.parts(2.0) == ["10 %", "loss 2.000  12,346 tokens/s  dev 41.500  warming up", ""]


def test_plain_lines_come_seldom(clock):
    out = console(terminal=False)
    display = PlainDisplay(out)
    with display:
        display.begin(STEP)
        for second in range(1, 61):
            clock[0] = 100.0 + second
            display.update(STEP, {"done": second / 100})
        display.end(STEP, "ok", "", 61.0)
    texts = [line.split(" ", 1)[1] for line in out.file.getvalue().splitlines()]
    assert texts == [
        "train ctc [beam=5]: started",
        "train ctc [beam=5]: 30 %  1:10 left",
        "train ctc [beam=5]: 60 %  0:40 left",
        "train ctc [beam=5]: done in 1:01",
    ]


@pytest.mark.parametrize(("alone", "draws"), [(False, 20), (True, 3)])
def test_the_live_display_redraws_only_when_told_and_not_too_often(clock, monkeypatch, alone, draws):
    out = console(terminal=True)
    step = Step("measure", "key", {}, label="measure", alone=alone)
    with LiveDisplay(out) as display:
        display.begin(step)
        drawn = []
        monkeypatch.setattr(display, "_draw", lambda: drawn.append(1) or setattr(display, "_drawn", clock[0]))
        for tick in range(1, 101):  # ten seconds of ten reports each
            clock[0] = 100.0 + tick / 10 + 1e-6
            display.update(step, {"done": tick / 100})
        assert not display._live.auto_refresh
    assert len(drawn) == pytest.approx(draws, abs=1)


def test_the_live_display_shows_running_steps_and_what_became_of_others():
    out = console(terminal=True)
    with LiveDisplay(out) as display:
        display.begin(STEP)
        display.update(STEP, {"done": 0.25, "loss": 1.5})
        display._draw()
        shown = out.file.getvalue()
        assert "train ctc [beam=5]" in shown
        assert "25 %" in shown
        display.end(STEP, "failed", "loss is [nan]", 3.0)
    assert "train ctc [beam=5]: failed: loss is [nan]" in out.file.getvalue()


def test_ci_and_files_get_plain_lines(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    assert isinstance(make_display(console(terminal=True)), LiveDisplay)
    assert isinstance(make_display(console(terminal=False)), PlainDisplay)
    monkeypatch.setenv("CI", "true")
    assert isinstance(make_display(console(terminal=True)), PlainDisplay)


def test_steps_report_no_more_often_than_their_interval(clock):
    stream = StringIO()
    report = JsonProgress(stream, interval=5.0)
    for second in range(11):
        clock[0] = 100.0 + second
        report(done=second / 10)
    assert stream.getvalue().splitlines() == ['{"done": 0.0}', '{"done": 0.5}', '{"done": 1.0}']


def test_every_status_has_a_style():
    from bench.records import STATUSES

    assert set(progress.STYLES) == set(STATUSES)
