"""The figure of token accuracy by position."""

from dataclasses import replace

from matplotlib.text import Text

from bench.names import FREE_RUNNING, TEACHER_FORCED
from tests.bench.figure_checks import draw
from tests.bench.synthetic import NINE, records

DISTILLED = [spec for spec in NINE if spec.data == "distilled"]


def with_positions(specs):
    """Records with accuracies that fall along the sentence: left to right by a fifth more than teacher-forced."""
    rows = records(specs, references=())
    for row in [r for r in rows if r.metric == "exact_match"]:
        left_to_right = row.family == "transformer"
        for tenth in range(10):
            subset = f"position={10 * tenth}..{10 * tenth + 10}"
            plain = replace(row, ci_low=None, ci_high=None, subset=subset)
            rows.append(replace(plain, metric=FREE_RUNNING, value=90.0 - 2 * tenth))
            if left_to_right:
                rows.append(replace(plain, metric=TEACHER_FORCED, value=90.0 - tenth))
    return rows


def texts(figure):
    """All texts of a figure, on one line."""
    found = [text.get_text() for text in figure.findobj(Text)]
    return " ".join(" ".join(found).split())


def lines(ax):
    return {(line.get_linestyle(), tuple(line.get_ydata()), tuple(line.get_xdata())) for line in ax.lines}


def test_left_to_right_has_a_panel_with_both_and_the_rest_one_without():
    figure = draw("positions", with_positions(DISTILLED))
    left, others = figure.axes
    middles = tuple(range(5, 100, 10))
    falling, forced = (tuple(90.0 - slope * tenth for tenth in range(10)) for slope in (2, 1))
    assert texts(figure).index("Left to right") < texts(figure).index("All others")
    assert lines(left) == {("-", falling, middles), (":", forced, middles)}
    assert lines(others) == {("-", falling, middles)}
    assert "teacher-forced" in texts(figure)


def test_each_model_is_shown_once_in_its_best_settings():
    shown = texts(draw("positions", with_positions(NINE)))
    assert "ctc (distilled) [search=prefix_beam beam=8]" in shown
    assert "ctc (distilled) [search=greedy]" not in shown


def test_without_values_there_is_none():
    assert draw("positions", records(NINE)) is None


def test_without_teacher_forcing_there_is_one_panel():
    figure = draw("positions", with_positions([spec for spec in DISTILLED if spec.family == "ctc"]))
    assert len(figure.axes) == 1
    assert "teacher-forced" not in texts(figure)
