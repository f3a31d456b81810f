"""Learning curves: what the file says is what is drawn."""

import pytest

from bench.figures import draw, write_figures
from bench.figures.learning import read_curves
from bench.records import write_records
from bench.results import by_task
from tests.bench.synthetic import NINE, records

HEADER = "task,system,data,seed,metric,step,tokens,seconds,loss,score\n"


def curves_file(folder, rows):
    path = folder / "curves.csv"
    path.write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return path


def rows_for(task, systems, metric="bleu", sign=1):
    return [
        f"{task},{system},{data},1,{metric},{step},{step * 1000},{60 * step},2.5,{sign * (10 * step + i)}"
        for i, (system, data) in enumerate(systems)
        for step in (1, 2, 3)
    ]


def test_each_model_has_a_line_over_tokens_and_over_minutes(tmp_path):
    (task,) = by_task(records(NINE))
    systems = [(model.system, model.data) for model in task.models]
    figure = draw("learning", task, curves=read_curves(curves_file(tmp_path, rows_for(task.name, systems))))
    tokens, minutes = figure.axes
    assert len(tokens.lines) == len(minutes.lines) == len(systems)
    assert list(tokens.lines[1].get_xdata()) == [0.001, 0.002, 0.003]
    assert list(minutes.lines[1].get_xdata()) == [1, 2, 3]
    assert list(minutes.lines[1].get_ydata()) == [11, 21, 31]
    assert minutes.get_ylabel() == "BLEU of the development set"


def test_rates_of_errors_are_shown_as_people_know_them(tmp_path):
    (task,) = by_task(records(NINE))
    model = task.models[0]
    rows = rows_for(task.name, [(model.system, model.data)], "cer", -1)
    figure = draw("learning", task, curves=read_curves(curves_file(tmp_path, rows)))
    assert list(figure.axes[0].lines[0].get_ydata()) == [10, 20, 30]


def test_without_curves_there_is_no_figure(tmp_path):
    (task,) = by_task(records(NINE))
    assert draw("learning", task) is None
    other = read_curves(curves_file(tmp_path, rows_for("elsewhere", [("a", "raw")])))
    assert draw("learning", task, curves=other) is None


def test_the_figure_is_written_from_the_file(tmp_path):
    write_records(tmp_path / "records.csv", records(NINE))
    (task,) = by_task(records(NINE))
    curves_file(tmp_path, rows_for(task.name, [(m.system, m.data) for m in task.models]))
    names = {path.name for path in write_figures(tmp_path)}
    assert {f"{task.name}-learning.png", f"{task.name}-learning.svg"} <= names
    (tmp_path / "curves.csv").unlink()
    write_figures(tmp_path)
    assert not (tmp_path / "figures" / f"{task.name}-learning.png").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task,system\n", "no column data, seed"),
        (HEADER + "t,s,raw,1,bleu,1,many,1,1,1\n", "curves.csv:2: tokens is 'many', no number"),
        (HEADER + "t,s,raw,1,bleu,1,1,1,1,\n", "curves.csv:2: score is '', no number"),
    ],
    ids=["columns", "number", "empty"],
)
def test_damaged_curves_are_refused(tmp_path, text, message):
    (tmp_path / "curves.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_curves(tmp_path / "curves.csv")
