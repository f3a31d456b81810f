"""Example outputs: a few sentences from easy to hard, and what each system makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from bench.errors import UserError
from bench.figures.style import literal
from bench.report.marking import Piece, by_words, error_share, marked
from bench.results import Cell, TaskResults
from bench.sides import CellKey, Sentence, Side

QUANTILES = (0.1, 0.4, 0.7, 0.95)
"""Sentences that are shown, by how much of them systems get wrong on the average."""
MAX_COUNTED = 400
"""Sentences among which they are chosen."""


@dataclass(frozen=True)
class Answer:
    """What a system made of a sentence."""

    cell: Cell
    pieces: list[Piece]
    spaced: bool
    """Whether there are spaces between the pieces."""
    right: bool
    """Whether it is one of the references."""


@dataclass(frozen=True)
class Example:
    """A sentence with its references and the answers."""

    sentence: Sentence
    source: str
    references: list[str]
    answers: list[Answer]

    def of(self, family: str) -> Example:
        """Return the same with the answers of one family alone."""
        return replace(self, answers=[answer for answer in self.answers if answer.cell.family == family])


def find_examples(side: Side, task: TaskResults) -> tuple[list[Example], list[str]]:
    """Return sentences of `task`, easy ones first, with the outputs of each model in its best settings.

    There are none if the sentences were not kept with the results. What is damaged is left out, and said beside them.
    """
    cells = task.best_settings
    outputs: dict[int, Mapping[str, str]] = {}
    damaged: list[str] = []
    for i, cell in enumerate(cells):
        try:
            found = side.outputs(_key(task, cell))
        except UserError as error:
            damaged.append(f"Left out of the examples: {error}")
        else:
            if found is not None:
                outputs[i] = found
    if not outputs:
        return [], list(dict.fromkeys(damaged))
    sentences = side.sentences(task.name)
    return [_example(each, cells, outputs) for each in _spread(sentences, list(outputs.values()))], damaged


def _key(task: TaskResults, cell: Cell) -> CellKey:
    return (task.name, cell.system, cell.data, cell.settings, cell.seeds[0] if cell.seeds else None)


def _spread(sentences: Sequence[Sentence], outputs: Sequence[Mapping[str, str]]) -> list[Sentence]:
    """Return sentences at the quantiles of the average share of errors; each once."""
    counted = list(sentences[:MAX_COUNTED])
    shares = {s.id: fmean(error_share(texts[s.id], s.references) for texts in outputs) for s in counted}
    ranked = sorted(counted, key=lambda sentence: shares[sentence.id])
    chosen = [ranked[round(q * (len(ranked) - 1))] for q in QUANTILES]
    return list({sentence.id: sentence for sentence in chosen}.values())


def _example(sentence: Sentence, cells: Sequence[Cell], outputs: Mapping[int, Mapping[str, str]]) -> Example:
    references = sentence.references
    answers = []
    for i, texts in outputs.items():
        text = texts[sentence.id]
        answers.append(Answer(cells[i], marked(text, references), by_words(text, references), text in references))
    return Example(sentence, literal(sentence.source), [literal(r) for r in references], answers)
