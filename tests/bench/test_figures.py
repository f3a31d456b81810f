"""Figures are there, the same each time, literal and complete; labels do not overlap."""

import math
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from bench.figures import file_name, write_figures
from bench.figures.labels import neighbours, place, spread_out
from bench.figures.latency import read_latencies
from bench.figures.scatter import front
from bench.figures.style import FAMILIES, family_style, text_size, wrap
from tests.bench.figure_checks import CROWD, draw, drawn, overlaps, shown, texts
from tests.bench.synthetic import NINE, REFERENCES, Spec, failed, records, write_run

HEADER = "task,system,data,settings,sentence,milliseconds,tokens\n"
CELL_KINDS = ("quality-speedup", "throughput", "latency")
KINDS = (*CELL_KINDS, "quality-passes", "multimodality")
WHERE_THERE_IS_DATA = ("speedup", "latency-length")
"""Kinds that are left out where there is nothing to show."""


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("nine"), records(), NINE)
    write_figures(folder)
    return folder / "figures"


def test_each_figure_is_there_as_png_and_svg(nine):
    assert {p.name for p in nine.iterdir()} == {
        f"dates-{kind}.{s}" for kind in (*KINDS, *WHERE_THERE_IS_DATA) for s in ("png", "svg")
    }
    for path in nine.glob("*.png"):
        head = path.read_bytes()[:33]
        assert head.startswith(b"\x89PNG")
        assert int.from_bytes(head[16:20], "big") > 1000, "150 dots per inch"


def test_passes_are_labelled_with_the_parallelism_of_each_model(nine):
    words = texts(nine / "dates-quality-passes.svg")
    # 11 tokens in one pass, and only one setting: 11 x 14.0; both settings take one pass: the better one counts.
    assert "ctc: AUP 154" in words
    assert f"ctc (distilled): AUP {11 * 89.5:.0f}" in words
    assert {"Decoder passes per sentence (mean, log scale)", "Tokens per decoder pass (log scale)"} <= set(words)


def test_multimodality_has_a_row_for_each_system_and_settings(nine):
    words = texts(nine / "dates-multimodality.svg")
    rows = [word for word in words if "[" in word]
    assert rows == list(dict.fromkeys(f"{cell.system} [{cell.settings}]" for cell in NINE))
    assert "Mixed-mode rate (%)" in words
    assert "Repetition rate (%)" not in words, "no cell has it"


@pytest.mark.parametrize("kind", CELL_KINDS)
def test_every_cell_is_named_in_the_svg(nine, kind):
    words = " ".join(texts(nine / f"dates-{kind}.svg")).split()
    for cell in NINE:
        name = cell.system + (" (distilled)" if cell.data == "distilled" else "") + f" [{cell.settings}]"
        assert any(words[i : i + len(name.split())] == name.split() for i in range(len(words))), name


def test_axes_have_units(nine):
    assert "Speed-up over transformer [beam=1] (×, log scale)" in texts(nine / "dates-quality-speedup.svg")
    assert "Exact match (%)" in texts(nine / "dates-quality-speedup.svg")
    assert {"Batch size 1", "Batch size 32"} <= set(texts(nine / "dates-quality-speedup.svg"))
    assert "Throughput (target tokens/s, log scale)" in texts(nine / "dates-throughput.svg")
    assert "Latency (ms, log scale)" in texts(nine / "dates-latency.svg")


def test_another_process_writes_the_same_bytes(nine, tmp_path):
    write_run(tmp_path, records(), NINE)
    code = f"from pathlib import Path; from bench.figures import write_figures; write_figures(Path({str(tmp_path)!r}))"
    environment = os.environ | {"PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    for path in nine.iterdir():
        assert path.read_bytes() == (tmp_path / "figures" / path.name).read_bytes(), path.name


def test_every_family_has_a_colour_and_a_marker_of_its_own():
    assert len({colour for colour, _ in FAMILIES.values()}) == len(FAMILIES)
    assert len({marker for _, marker in FAMILIES.values()}) == len(FAMILIES)
    assert family_style("my.own_family") == family_style("my.own_family")
    assert family_style("my.own_family")[0] not in {colour for colour, _ in FAMILIES.values()}
    assert family_style("my.own_family")[1] not in {marker for _, marker in FAMILIES.values()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_family_has_its_colour_in_every_figure(nine, kind):
    colours = set(re.findall(r"#[0-9a-f]{6}", (nine / f"dates-{kind}.svg").read_text(encoding="utf-8")))
    for family in FAMILIES:
        assert (FAMILIES[family][0].lower() in colours) == (family in ("transformer", "ctc")), family


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cells", [NINE[:1], NINE, [*NINE[:1], *CROWD[:24]]], ids=["one", "nine", "many"])
def test_no_text_overlaps_another(kind, cells):
    figure = draw(kind, records(cells, batch_sizes=(1, 32)))
    assert overlaps(figure) == []
    for text, box in drawn(figure):
        inside = figure.bbox.padded(1)
        assert inside.contains(box.x0, box.y0), text
        assert inside.contains(box.x1, box.y1), text


def test_many_cells_are_numbered_with_a_key():
    names = shown(draw("quality-speedup", records([*NINE[:1], *CROWD[:24]], batch_sizes=(1,))))
    key = next(text for text in names if text.startswith("1  transformer [beam=1]\n2  "))
    assert key.count("\n") + 1 >= 25
    assert {"1", "2"} <= {part for text in names for part in text.split("\n")}


def test_names_are_literal_in_svg_and_png(tmp_path):
    hostile = ["$x^2$ <b>&amp;</b>", "_underscore", "50 % \\alpha {x}", "x" * 70]
    cells = [NINE[0], *(replace(NINE[7], system=name, ms=2.0 + i) for i, name in enumerate(hostile))]
    rows = [replace(r, task="a/b $1$ <t>") for r in records(cells, batch_sizes=(1,))]
    paths = write_figures(write_run(tmp_path, rows))
    assert len(paths) == 2 * len(KINDS)
    assert all(path.parent == tmp_path / "figures" for path in paths)
    for path in paths:
        if path.suffix == ".svg":
            text = "".join(texts(path))
            assert "a/b $1$ <t>: " in text
            for name in hostile:
                assert name.replace(" ", "") in text.replace(" ", ""), (path.name, name)


def test_control_characters_cannot_break_an_svg(tmp_path):
    rows = [replace(r, system="a\x00b\x1bc") for r in records(NINE[:1], references=())]
    for path in write_figures(write_run(tmp_path, rows)):
        if path.suffix == ".svg":
            assert path.name.endswith("quality-speedup.svg") or any("a\ufffdb\ufffdc" in t for t in texts(path))


def test_file_names_are_safe_and_distinct():
    assert file_name("dates") == "dates"
    names = [file_name(task) for task in ("a/b", "a\\b", "../a_b", "..", "")]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w-][\w.-]*", name) for name in names)


def test_what_is_missing_is_said():
    oom = {"value": None, "ci_low": None, "ci_high": None, "status": "oom", "reason": "no room"}
    rows = [replace(r, **oom) if r.system == "ctc" and r.batch_size == 32 else r for r in records()]
    rows.append(failed(Spec("broken", "imputer", "k=1"), "timeout", "too slow"))
    for kind in CELL_KINDS[:2]:
        text = " ".join(" ".join(shown(draw(kind, rows))).split())
        assert "Not shown at batch size 32: ctc [search=greedy]: oom at batch 32 (no room)" in text
        assert re.search(r"Not shown at batch size [\d, ]+: broken \[k=1\]: timeout \(too slow\)", text)
    for kind in KINDS[2:]:
        assert "Not shown: broken [k=1]: timeout (too slow)" in " ".join(" ".join(shown(draw(kind, rows))).split())


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_without_any_data_says_so(kind):
    rows = [failed(spec) for spec in NINE]
    words = {
        "quality-speedup": "No quality and no speed-up", "throughput": "No throughput", "latency": "No latencies",
        "quality-passes": "No quality with decoder passes",
        "multimodality": "No repetition or mixed-mode rate",
    }  # fmt: skip
    text = "\n".join(shown(draw(kind, rows)))
    assert f"{words[kind]} in the records." in text
    assert "ctc (distilled) [search=greedy]: failed (loss is NaN at step 120)" in text


def test_references_are_ringed_and_the_first_is_at_one():
    figure = draw("quality-speedup", records(batch_sizes=(1,)))
    rings = [line for line in figure.axes[0].lines if line.get_markersize() == 15]
    # 11 ms against 11 ms, and against 19 ms.
    assert sorted(float(ring.get_xdata()[0]) for ring in rings) == pytest.approx([11 / 19, 1.0], abs=1e-6)
    without = [r for r in records(batch_sizes=(1,)) if not (r.metric == "speedup" and r.settings == "beam=1")]
    rings = [line for line in draw("quality-speedup", without).axes[0].lines if line.get_markersize() == 15]
    assert 1.0 in [float(ring.get_xdata()[0]) for ring in rings], "a reference is as fast as itself, measured or not"


def test_bars_show_the_interval_of_one_seed_and_the_spread_of_several():
    spec = Spec("a", "transformer", "beam=1", exact=50.0)

    def vertical_bar(seeds):
        rows = records([spec], batch_sizes=(1,), seeds=seeds, references=["a [beam=1]"])
        bars = draw("quality-speedup", rows).axes[0].containers[0].lines[2]
        return [float(y) for y in bars[1].get_segments()[0][:, 1]]

    assert vertical_bar((1,)) == pytest.approx([48.6, 51.3])  # the synthetic interval: 1.4 below, 1.3 above
    assert vertical_bar((1, 2, 3)) == pytest.approx([50.0, 52.0])


def test_less_is_better_points_down():
    rows = [replace(r, metric="wer") if r.metric == "exact_match" else r for r in records(batch_sizes=(1,))]
    top_is_less = draw("quality-speedup", rows).axes[0].get_ylim()
    assert top_is_less[0] > top_is_less[1]
    low, high = draw("quality-speedup", records(batch_sizes=(1,))).axes[0].get_ylim()
    assert low < high


def test_the_front_holds_what_nothing_beats():
    points = [(1.0, 97.0), (0.5, 98.0), (0.4, 97.5), (5.0, 88.0), (5.0, 20.0), (2.0, 88.0), (1.0, 97.0)]
    assert front(points) == [(0.5, 98.0), (1.0, 97.0), (5.0, 88.0)]
    assert front(points, lower_is_better=True) == [(5.0, 20.0)]


def test_boxes_show_the_quantiles_of_the_raw_times(tmp_path):
    cell = NINE[0]
    header = "task,system,data,settings,seed,sentence,round,milliseconds,tokens"
    row = "dates,transformer,raw,beam=1,1"
    # 1, 2, ..., 200 ms: 100 sentences, timed twice. Too few for a 95th percentile, so whiskers reach the ends.
    lines = [f"{row},s{i % 100},{i // 100},{i + 1},9" for i in range(200)]
    path = tmp_path / "latencies.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    samples = read_latencies(path)
    assert samples["dates", "transformer", "raw", "beam=1"].num_sentences == 100
    (ax,) = draw("latency", records([cell], references=REFERENCES[:1]), samples).axes
    (box,) = ax.patches
    assert (box.get_x(), box.get_x() + box.get_width()) == pytest.approx((50.75, 150.25))
    ends = [float(x) for lines in ax.collections for x in np.concatenate(lines.get_segments())[:, 0]]
    assert {1.0, 200.0, 100.5} <= set(ends)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a table of latencies"),
        ("task,system\na,b\n", "no column data, settings"),
        (f"{HEADER}a,b,c,d,1,2,7\na,b,c,d,1,x,7\n", ":3: milliseconds is 'x'"),
        (f"{HEADER}a,b,c,d,1,-1,7\n", ":2: milliseconds is '-1'"),
        (f"{HEADER}a,b,c,d,1\n", ":2: milliseconds is"),
        (f"{HEADER}a,b,c,d,1,2,-7\n", ":2: tokens is '-7', no number of tokens"),
    ],
)
def test_damaged_latencies_are_refused(tmp_path, text, message):
    (tmp_path / "latencies.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_latencies(tmp_path / "latencies.csv")


def test_labels_are_placed_beside_their_points():
    (found,) = place([[(100.0, 100.0)]], [(40.0, 10.0)], (0, 0, 300, 300))
    assert found.leader is None
    assert math.dist((100, 100), (max(found.left, min(100, found.right)), max(found.bottom, min(100, found.top)))) < 12
    assert place([[(100.0, 100.0)]], [(400.0, 10.0)], (0, 0, 300, 300)) is None
    assert place([], [], (0, 0, 300, 300)) == []


def test_points_that_all_but_coincide_share_a_label():
    assert neighbours([(15, 0), (100, 0), (0, 0)], 20) == [[2, 0], [1]]
    assert neighbours([(0, 0), (15, 0), (30, 0)], 20) == [[0, 1], [2]], "a chain of points is no spot"


def test_spread_out_labels_keep_their_order_and_do_not_overlap():
    assert spread_out([10, 50], [10, 10], 0, 100) == [10, 50]
    # Three labels of height 10 that all want 50 stand at 40, 50 and 60.
    assert spread_out([50, 50, 50], [10, 10, 10], 0, 100) == [40, 50, 60]
    assert spread_out([1, 2], [10, 10], 0, 100) == [5, 15]
    assert spread_out([99, 98], [10, 10], 0, 100) == [95, 85]


def test_wrapping_loses_nothing():
    name = "one two-three " + "x" * 50
    assert wrap(name, 12).replace("\n", "").replace(" ", "") == name.replace(" ", "")
    assert all(len(line) <= 12 for line in wrap(name, 12).split("\n"))
    assert text_size("ab\nabcd")[0] == text_size("abcd")[0] > text_size("ab")[0]
