"""Two results folders side by side, for people: what has changed, by how much, and in which sentences. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.errors import UserError
from bench.metrics import MEASURES
from bench.report.marking import by_words, error_share, marked
from bench.results import DIAGNOSTIC, Cell, Estimate, TaskResults, quality_metric
from bench.sheets import fixed, heading, show, significant
from bench.sides import CellKey, Sentence, Side, name_of
from bench.stats import FloatArray, bootstrap_interval

RATE = "tokens_per_second"
MARKS = {"same": ("", "", ""), "missing": ("[-", "-]", "red"), "extra": ("{+", "+}", "green")}
"""What stands around a piece, and its colour: of the reference alone, or of the output alone."""


@dataclass(frozen=True)
class Change:
    """A cell on both sides."""

    key: CellKey
    first: Cell | None
    second: Cell | None
    difference: Estimate
    """The second value minus the first, over the sentences of both, with the interval of a paired bootstrap."""
    sentences: int
    """How many those are; 0: the outputs were not kept."""
    differing: int
    """How many have other outputs."""


@dataclass(frozen=True)
class Turn:
    """A sentence that one cell decodes otherwise."""

    key: CellKey
    sentence: Sentence
    first: str
    second: str

    @property
    def change(self) -> float:
        """By how much the share of wrong words has risen, -1 to 1."""
        references = self.sentence.references
        return error_share(self.second, references) - error_share(self.first, references)


def metric_of(task: TaskResults, wanted: str | None) -> str:
    """Return the metric to compare `task` by: `wanted`, or the first that ranks systems and can be paired.

    Raises:
        UserError: it has no such metric.
    """
    there = [metric for metric in task.quality if metric in MEASURES]
    if wanted is not None and wanted not in there:
        raise UserError(f"--metric {wanted!r}: {task.name} has {', '.join(there) or 'none that can be compared'}")
    ranking = [metric for metric in there if metric not in DIAGNOSTIC] or there
    if not ranking:
        raise UserError(f"{task.name} has no quality metric that can be compared")
    return wanted or ranking[0]


def changes(first: Side, second: Side, task: str, metric: str) -> list[Change]:
    """Return the cells of `task` on either side, in the order of the first and then of the second."""
    keys = [key for key in dict.fromkeys((*first.cells, *second.cells)) if key[0] == task]
    return [_change(first, second, key, metric) for key in keys]


def turns(first: Side, second: Side, keys: Sequence[CellKey]) -> list[Turn]:
    """Return the sentences whose outputs differ, those first that have become worse or better by most words."""
    found = [
        Turn(key, sentence, old[sentence.id], new[sentence.id])
        for key in keys
        for sentence, old, new in _shared(first, second, key)
        if old[sentence.id] != new[sentence.id]
    ]
    return sorted(found, key=lambda turn: -abs(turn.change))


def print_comparison(first: Side, second: Side, console: Console, metric: str | None, sentences: int) -> None:
    """Print for each task that both have a table of its cells, and the `sentences` that have changed most.

    Raises:
        UserError: they have no task in common, a metric is unknown, or a file is damaged.
    """
    names = [name for name in first.tasks if name in second.tasks]
    if not names:
        raise UserError(f"{first.folder} and {second.folder} have no task in common")
    for name in names:
        chosen = metric_of(first.tasks[name], metric)
        found = changes(first, second, name, chosen)
        sizes = sorted(set(first.tasks[name].batch_sizes) & set(second.tasks[name].batch_sizes))
        console.print(_table(name, found, chosen, sizes[:1] + sizes[1:][-1:]))
        _print_conditions(first, second, name, console)
        ranked = turns(first, second, [change.key for change in found if change.differing])
        _print_turns(ranked[:sentences], len(ranked), console)


def _change(first: Side, second: Side, key: CellKey, metric: str) -> Change:
    shared = list(_shared(first, second, key))
    old_cell, new_cell = first.cells.get(key), second.cells.get(key)
    if not shared:
        return Change(key, old_cell, new_cell, Estimate(), 0, 0)
    examples: Any = [sentence for sentence, _, _ in shared]
    olds, news = [old[s.id] for s, old, _ in shared], [new[s.id] for s, _, new in shared]
    before, after = MEASURES[metric](olds, examples), MEASURES[metric](news, examples)
    width = np.asarray(before.rows).shape[1]

    def difference(sums: FloatArray) -> FloatArray:
        return after.statistic(sums[:, width:]) - before.statistic(sums[:, :width])

    interval = bootstrap_interval(np.hstack([before.rows, after.rows]), difference, rng=1)
    low, high = (None, None) if interval is None else (interval.low, interval.high)
    gap = Estimate(after.value() - before.value(), low, high, n=len(shared))
    return Change(key, old_cell, new_cell, gap, len(shared), sum(o != n for o, n in zip(olds, news, strict=True)))


def _shared(first: Side, second: Side, key: CellKey) -> Iterator[tuple[Sentence, dict[str, str], dict[str, str]]]:
    """Yield the sentences that both sides have decoded with `key`, each with the outputs of both."""
    old, new = first.outputs(key), second.outputs(key)
    if old is None or new is None:
        return
    theirs = {sentence.id: sentence.references for sentence in second.sentences(key[0])}
    for sentence in first.sentences(key[0]):
        if theirs.get(sentence.id) == sentence.references:
            yield sentence, old, new


def _table(task: str, found: Sequence[Change], metric: str, sizes: Sequence[int]) -> Table:
    table = Table(title=Text(task), title_justify="left", show_edge=False)
    table.add_column("Cell", overflow="fold")
    for text in (f"{heading(metric)}\nfirst", "\nsecond", "\ndifference", "Outputs\nthat differ"):
        table.add_column(Text(text), justify="right")
    for size in sizes:
        table.add_column(Text(f"Tokens/s, batch {size}\nfirst → second"), justify="right")
    form = fixed(quality_metric(metric).decimals + 1)
    for change in found:
        cells = (change.first, change.second)
        values = [show(cell.get(metric), form) if cell is not None else "not there" for cell in cells]
        difference = "" if change.difference.value is None else f"{'+' * (change.difference.value > 0)}"
        row = [*values, difference + show(change.difference, form), _count(change)]
        row += [_rates(change, size) for size in sizes]
        table.add_row(Text(name_of(change.key)), *map(Text, row))
    return table


def _count(change: Change) -> str:
    return f"{change.differing} of {change.sentences}" if change.sentences else "not kept"


def _rates(change: Change, size: int) -> str:
    old, new = (None if cell is None else cell.get(RATE, size).value for cell in (change.first, change.second))
    if not old or not new:
        return "–"
    return f"{significant(old)} → {significant(new)} ({100 * (new / old - 1):+.0f} %)"


def _print_conditions(first: Side, second: Side, task: str, console: Console) -> None:
    lines = ["[low, high]: 95 % bootstrap interval; of the difference a paired one, over the sentences of both."]
    machines = [side.fingerprint(task) for side in (first, second)]
    if None not in machines and machines[0] != machines[1]:
        lines.append("Timed on different machines: the times do not compare.")
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def _print_turns(chosen: Sequence[Turn], total: int, console: Console) -> None:
    if not chosen:
        return
    console.print(
        f"\n{total} outputs differ; those that changed most ([-in the nearest reference alone-], "
        "{+in the output alone+}):",
        markup=False,
        soft_wrap=True,
    )
    for turn in chosen:
        references = turn.sentence.references
        change = f"{100 * turn.change:+.0f} % wrong words"
        console.print(Text(f"\n{turn.sentence.id}, {name_of(turn.key)}: {change}", style="bold"), soft_wrap=True)
        lines = [("source", Text(turn.sentence.source))]
        lines += [("reference", Text(reference)) for reference in references[:1]]
        lines += [("first", _text(turn.first, references)), ("second", _text(turn.second, references))]
        for label, text in lines:
            console.print(Text(f"  {label:<10}") + text, soft_wrap=True)


def _text(output: str, references: Sequence[str]) -> Text:
    gap = " " if by_words(output, references) else ""
    pieces = [(piece.text, *MARKS[piece.kind]) for piece in marked(output, references)]
    return Text(gap).join(Text(f"{before}{text}{after}", style=style) for text, before, after, style in pieces)
