"""The figures of speech: there for speech alone, at the values of the records, without overlaps."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from bench.figures import KINDS, write_figures
from bench.figures.errors import KINDS as ERROR_KINDS
from bench.figures.scatter import front
from bench.figures.style import FAMILIES
from tests.bench.figure_checks import CROWD, draw, drawn, overlaps, shown, texts
from tests.bench.synthetic import NINE, NOISE, Spec, failed, records, speech_records, write_run

SPEECH = ("quality-rtf", "subsets", "errors")
CTC = Spec("ctc", "ctc", "beam=1", "raw", 90.0, 10.0, passes=1.0)
RNN = Spec("rnn", "rnn", "beam=1", "raw", 96.0, 30.0, passes=11.0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run on speech and on text, drawn where a former run has left figures, and what is not natbench's."""
    rows = [*speech_records([CTC, RNN], references=()), *records([CTC], references=())]
    folder = write_run(tmp_path_factory.mktemp("speech"), rows)
    (folder / "figures").mkdir()
    for name in ("dates-subsets.png", "gone-errors.svg", "gone-latency.png", "own.png", "dates-notes.svg"):
        (folder / "figures" / name).write_text("old")
    write_figures(folder)
    return folder / "figures"


def test_figures_that_do_not_apply_are_not_there_and_stale_ones_are_gone(written):
    # There are no curves, references, raw times, costs and tokens by position.
    missing = ("learning", "speedup", "latency-length", "breakdown", "roofline", "positions")
    text = [kind for kind in KINDS if kind not in (*SPEECH, *missing)]
    assert {path.name for path in written.iterdir()} == {
        *(f"morse-{kind}.{suffix}" for kind in (*text, *SPEECH) for suffix in ("png", "svg")),
        *(f"dates-{kind}.{suffix}" for kind in text for suffix in ("png", "svg")),
        *("own.png", "dates-notes.svg"),
    }


@pytest.mark.parametrize("kind", SPEECH)
def test_text_has_none(kind):
    assert draw(kind, records([CTC])) is None
    assert draw(kind, [failed(CTC)]) is None


def test_another_process_writes_the_same_bytes(written, tmp_path):
    rows = speech_records([CTC, RNN], references=())
    write_run(tmp_path, rows)
    code = (
        "from pathlib import Path; from bench.figures import draw; from bench.figures.style import save, styled\n"
        "from bench.records import read_records; from bench.results import by_task\n"
        f"folder = Path({str(tmp_path)!r}); (task,) = by_task(read_records(folder / 'records.csv'))\n"
        f"for kind in {SPEECH!r}:\n"
        "    with styled(): save(draw(kind, task), folder / f'morse-{kind}')\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    for kind in SPEECH:
        for suffix in ("png", "svg"):
            name = f"morse-{kind}.{suffix}"
            assert (written / name).read_bytes() == (tmp_path / name).read_bytes(), name


@pytest.mark.parametrize("kind", SPEECH)
@pytest.mark.parametrize("cells", [NINE[:1], NINE, [*NINE[:1], *CROWD[:24]]], ids=["one", "nine", "many"])
def test_no_text_overlaps_another(kind, cells):
    figure = draw(kind, speech_records(cells, batch_sizes=(1, 32)))
    assert overlaps(figure) == []
    for text, box in drawn(figure):
        inside = figure.bbox.padded(1)
        assert inside.contains(box.x0, box.y0), text
        assert inside.contains(box.x1, box.y1), text


@pytest.mark.parametrize("kind", SPEECH)
def test_every_cell_is_named(kind):
    words = " ".join(" ".join(shown(draw(kind, speech_records(NINE, batch_sizes=(1,))))).split())
    for cell in NINE:
        name = cell.system + (" (distilled)" if cell.data == "distilled" else "") + f" [{cell.settings}]"
        assert name in words


@pytest.mark.parametrize("kind", SPEECH)
def test_what_is_missing_is_said(kind):
    broken = failed(Spec("broken", "imputer", "k=1"), "timeout", "too slow", task="morse")
    text = " ".join(" ".join(shown(draw(kind, [*speech_records([CTC]), broken]))).split())
    assert re.search(r"Not shown(?: at batch size 1)?: broken \[k=1\]: timeout \(too slow\)", text)


@pytest.mark.parametrize("kind", SPEECH)
def test_a_figure_without_any_value_says_so(kind):
    lost = {"value": None, "ci_low": None, "ci_high": None, "status": "failed", "reason": "no luck"}
    rows = [replace(r, **lost) for r in speech_records([CTC])]
    words = {"quality-rtf": "No quality", "subsets": "No quality of subsets", "errors": "No errors by position"}
    text = "\n".join(shown(draw(kind, rows)))
    assert f"{words[kind]} in the records." in text
    assert "ctc [beam=1]: failed" in text


@pytest.mark.parametrize("kind", SPEECH)
def test_names_are_literal(kind, tmp_path):
    hostile = ["$x^2$ <b>&amp;</b>", "_underscore", "50 % \\alpha {x}", "x" * 70, "a\x00b"]
    cells = [replace(CTC, system=name, ms=2.0 + i) for i, name in enumerate(hostile)]
    figure = draw(kind, speech_records(cells, batch_sizes=(1,), references=()))
    assert overlaps(figure) == []
    text = "".join(shown(figure)).replace(" ", "").replace("\n", "")
    for name in hostile:
        assert name.replace(" ", "").replace("\x00", "\ufffd") in text, name


# error rate against real-time factor


def test_points_stand_at_the_real_time_factor_of_decoding_at_batch_1():
    (ax,) = draw("quality-rtf", speech_records([CTC, RNN], references=())).axes
    # 10 and 30 ms of 2 s, and CER of 10 and 4 %.
    points = [(float(c.lines[0].get_xdata()[0]), float(c.lines[0].get_ydata()[0])) for c in ax.containers]
    assert points == [pytest.approx((0.005, 10.0)), pytest.approx((0.015, 4.0))]
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert left > right, "faster is to the right"
    assert bottom > top, "better is up"
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "Real-time factor of decoding (log scale)"
    assert ax.get_ylabel() == "CER (%)"


def test_the_front_turns_round_with_the_axis():
    points = [(0.01, 5.0), (0.02, 4.0), (0.03, 4.5), (0.02, 9.0)]
    assert front(points, lower_is_better=True, less_is_faster=True) == [(0.02, 4.0), (0.01, 5.0)]
    steps = next(
        line
        for line in draw("quality-rtf", speech_records([CTC, RNN], references=())).axes[0].lines
        if line.get_color() == "#BBBBBB"
    )
    # From the slow edge at 4 % to the slower system, down to 10 %, and from the faster one to the bottom.
    assert [float(y) for y in steps.get_ydata()[:4]] == pytest.approx([4, 4, 10, 10])
    assert [float(x) for x in steps.get_xdata()[1:4]] == pytest.approx([0.015, 0.015, 0.005])


def test_the_figure_of_speed_ups_stays(written):
    assert "Speed-up" not in " ".join(texts(written / "morse-quality-rtf.svg"))
    assert (written / "morse-quality-speedup.svg").exists()


# subsets


def test_a_line_stands_at_the_middles_of_the_subsets_with_its_intervals():
    (ax,) = draw("subsets", speech_records([CTC], references=())).axes
    (bars,) = ax.containers
    assert [float(x) for x in bars.lines[0].get_xdata()] == [-2.5, 2.5, 7.5, 12.5, 17.5]
    assert [float(y) for y in bars.lines[0].get_ydata()] == pytest.approx([40, 20, 10, 5, 2.5])
    ends = [[float(y) for y in segment[:, 1]] for segment in bars.lines[2][0].get_segments()]
    assert np.array(ends) == pytest.approx(np.array([[0.8 * y, 1.25 * y] for y in (40, 20, 10, 5, 2.5)]))
    assert ax.get_xlabel() == "SNR (dB)"
    assert ax.get_ylabel() == "CER (%, square-root scale)"


def test_lines_stand_side_by_side_within_the_subset():
    (ax,) = draw("subsets", speech_records([CTC, RNN], references=())).axes
    firsts = [float(bars.lines[0].get_xdata()[0]) for bars in ax.containers]
    # Two of them share 60 % of a subset 5 dB wide: half a step of 1.5 to either side of the middle.
    assert firsts == pytest.approx([-2.5 - 0.75, -2.5 + 0.75])


def test_the_headline_is_shown_where_subsets_have_it():
    rows = speech_records([CTC], references=())
    wer = [replace(r, metric="wer", value=3.0) for r in rows if r.subset in NOISE]
    (ax,) = draw("subsets", [*wer, *rows]).axes
    assert ax.get_ylabel().startswith("CER")
    (ax,) = draw("subsets", [*wer, *(r for r in rows if r.subset not in NOISE)]).axes
    assert ax.get_ylabel().startswith("WER")


def test_each_tag_has_a_panel():
    rows = speech_records([CTC], references=())
    wpm = [
        replace(r, subset=f"wpm={10 + 5 * i}..{15 + 5 * i}") for i, r in enumerate(r for r in rows if r.subset in NOISE)
    ]
    figure = draw("subsets", [*rows, *wpm])
    assert [ax.get_xlabel() for ax in figure.axes] == ["SNR (dB)", "Speed (words/min)"]
    assert overlaps(figure) == []


def test_a_metric_that_rises_has_a_plain_scale():
    rows = [replace(r, metric="exact_match") if r.metric == "cer" else r for r in speech_records([CTC], references=())]
    (ax,) = draw("subsets", rows).axes
    assert (ax.get_yscale(), ax.get_ylabel()) == ("linear", "Exact match (%)")


# the error picture


def stacks(ax):
    """The bars of a panel from the bottom up: their colour, and left, base and height of each."""
    return [
        (to_hex(bars[0].get_facecolor()).upper(), [(b.get_x(), b.get_y(), b.get_height()) for b in bars])
        for bars in stacked(ax)
    ]


def stacked(ax):
    """Ten bars of a kind at a time."""
    return [list(ax.patches[start : start + 10]) for start in range(0, len(ax.patches), 10)]


def test_bars_stack_the_kinds_over_the_tenths():
    (ax,) = draw("errors", speech_records([CTC], references=())).axes
    found = stacks(ax)
    assert [colour for colour, _ in found] == [colour for _, colour in ERROR_KINDS.values()]
    # CER 10 %: 5 % substitutions and 3 % deletions everywhere, insertions of 2 % on the mean, rising.
    assert [(base, height) for _, base, height in found[0][1]] == [(0, 5)] * 10
    assert [(base, height) for _, base, height in found[1][1]] == [(5, 3)] * 10
    heights = [height for _, _, height in found[2][1]]
    assert heights == pytest.approx([2 * (i + 1) / 5.5 for i in range(10)])
    assert {base for _, base, _ in found[2][1]} == {8.0}
    assert [left + 4.3 for left, _, _ in found[0][1]] == pytest.approx([5 + 10 * i for i in range(10)])


def test_each_panel_says_whose_errors_and_how_many():
    figure = draw("errors", speech_records([CTC, RNN], references=()))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["ctc [beam=1]\nCER 10.0 %", "rnn [beam=1]\nCER 4.0 %"]
    assert {"substitutions", "deletions", "insertions"} <= set(shown(figure))


def test_a_tenth_without_a_value_has_no_bar():
    rows = [
        replace(r, value=None) if r.subset == "position=30..40" else r for r in speech_records([CTC], references=())
    ]
    (ax,) = draw("errors", rows).axes
    assert len(ax.patches) == 27


def test_kinds_of_errors_have_no_family_s_colour():
    assert not {colour for _, colour in ERROR_KINDS.values()} & {colour for colour, _ in FAMILIES.values()}


# quality against passes


def test_passes_show_what_the_error_rate_leaves():
    lost = Spec("lost", "imputer", "k=1", "raw", -30.0, passes=2.0)  # a CER of 130 %
    figure = draw("quality-passes", speech_records([CTC, RNN, lost], references=()))
    assert [ax.get_ylabel() for ax in figure.axes] == ["Character accuracy (%)"] * 2
    ys = [float(y) for line in figure.axes[0].lines if line.get_linestyle() == "None" for y in line.get_ydata()]
    assert ys == [90.0, 96.0, 0.0]
    text = shown(figure)
    assert {"ctc: AUP 990", "lost: AUP 0"} <= set(text)  # 11 tokens in one pass
    assert any("Character accuracy: 100 − CER, at least 0; the AUP is that of it." in words for words in text)
    assert not any("100 −" in words for words in shown(draw("quality-passes", records([CTC], references=()))))


def test_the_latency_of_speech_says_what_is_not_in_it():
    words = "From features to ids: feature extraction and detokenisation are not in it."
    assert any(words in text for text in shown(draw("latency", speech_records([CTC], references=()))))
    assert not any(words in text for text in shown(draw("latency", records([CTC], references=()))))
