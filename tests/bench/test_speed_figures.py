"""Figures of speed alone: speed-up over batch sizes, latency by length, the parts of the time, the roofline."""

from dataclasses import replace

import numpy as np
import pytest

from bench.figures.latency import Sample, read_latencies
from bench.figures.length import by_length
from tests.bench.figure_checks import CROWD, draw, overlaps, shown
from tests.bench.synthetic import NINE, failed, records, write_run

SHARES = {"encoder": 20.0, "decoder": 50.0, "output": 25.0, "other": 5.0}


def with_costs(rows, sizes=(1, 32)):
    """Add a breakdown and a share of the roofline to each cell, larger batches nearer to the roof."""
    made = list(rows)
    for row in rows:
        if row.metric == "tokens_per_second" and row.batch_size in sizes:
            plain = replace(row, unit="%", ci_low=None, ci_high=None)
            made += [replace(plain, metric="time_share", value=share, part=part) for part, share in SHARES.items()]
            value = 40.0 + row.batch_size
            made.append(replace(plain, metric="roofline_fraction", value=value, ci_low=value - 3, ci_high=value + 2))
    return made


def test_speedup_is_over_the_first_reference_at_each_batch_size():
    figure = draw("speedup", records(NINE[:3]))
    (ax,) = figure.axes
    lines = {tuple(np.round(line.get_ydata(), 3)) for line in ax.lines if len(line.get_xdata()) == 3}
    greedy, beam, _ = ([1000 / c.ms * c.batching ** (0.2 * k) for k in (0, 3, 5)] for c in NINE[:3])
    assert (1.0, 1.0, 1.0) in lines
    assert tuple(np.round(np.array(beam) / greedy, 3)) in lines
    assert ax.get_ylabel() == "Speed-up over transformer [beam=1] (×, log scale)"


def test_speedup_needs_a_reference_and_two_batch_sizes():
    assert draw("speedup", records(references=())) is None
    assert draw("speedup", records(batch_sizes=(1,))) is None


def test_groups_of_lengths_have_their_own_medians():
    tokens = np.repeat([4, 8, 16], 40)
    times = tokens * 2.0 + np.tile([-1.0, 0.0, 0.0, 1.0], 30)
    assert by_length(Sample(times, tokens, 120)) == [(4, 8), (8, 16), (16, 32)]


def test_lengths_that_are_rare_join_others_and_empty_outputs_have_no_length():
    tokens = np.array([0] * 50 + [5] * 30 + [9] * 3)
    assert by_length(Sample(np.ones(83), tokens, 83)) == [(pytest.approx((150 + 27) / 33), 1)]
    assert by_length(Sample(np.ones(4), np.zeros(4, dtype=int), 4)) == []


def test_latency_is_drawn_by_length(tmp_path):
    folder = write_run(tmp_path, records(), NINE)
    figure = draw("latency-length", records(), read_latencies(folder / "latencies.csv"))
    (ax,) = figure.axes
    by_cell = {tuple(line.get_ydata()): line for line in ax.lines if len(line.get_xdata()) > 2}
    rises = [line.get_ydata()[-1] / line.get_ydata()[0] for line in by_cell.values()]
    # Times of the AR cells are proportional to the length, 5 to 17 tokens; the others' do not depend on it.
    assert len(rises) == 9
    assert sum(rise > 2 for rise in rises) == 6
    assert sum(0.9 < rise < 1.1 for rise in rises) == 3


def test_latency_by_length_needs_lengths(tmp_path):
    assert draw("latency-length", records()) is None
    path = write_run(tmp_path, records(), NINE) / "latencies.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *(line.rsplit(",", 1)[0] + ",7" for line in lines[1:])]) + "\n")
    assert draw("latency-length", records(), read_latencies(path)) is None


def test_bars_of_the_parts_add_up_to_the_time_of_a_sentence():
    figure = draw("breakdown", with_costs(records(NINE[:2])))
    first, last = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Batch size 1", "Batch size 32"]
    widths = [bar.get_width() for bar in first.patches]
    assert len(widths) == 2 * len(SHARES)
    assert sum(widths) == pytest.approx(NINE[0].ms + NINE[1].ms)
    assert widths[:4] == pytest.approx([NINE[0].ms * share / 100 for share in SHARES.values()])
    assert sum(bar.get_width() for bar in last.patches) < sum(widths)
    assert {"encoder", "decoder layers", "output layer", "everything else"} <= set(shown(figure))


def test_the_roofline_has_a_mark_for_each_batch_size():
    figure = draw("roofline", with_costs(records(NINE[:2])))
    (ax,) = figure.axes
    marks = sorted(float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() not in ("None", None, ""))
    assert marks == [41.0, 41.0, 72.0, 72.0]
    assert {"batch size 1", "batch size 32"} <= set(shown(figure))


@pytest.mark.parametrize("kind", ["breakdown", "roofline"])
def test_cells_without_costs_are_named(kind):
    rows = with_costs(records(NINE[:1])) + records(NINE[1:2]) + [failed(NINE[6])]
    rows = [row for row in rows if row.metric != "speedup"]
    words = " ".join(" ".join(shown(draw(kind, rows))).split())
    assert "Not shown: transformer [beam=5]" in words
    assert "loss is NaN" in words
    assert draw(kind, records()) is None


@pytest.mark.parametrize("kind", ["breakdown", "roofline", "speedup"])
def test_nothing_overlaps(kind):
    assert overlaps(draw(kind, with_costs(records()))) == []


@pytest.mark.parametrize("kind", ["breakdown", "roofline"])
def test_a_crowd_fits(kind):
    assert overlaps(draw(kind, with_costs(records(CROWD)))) == []
