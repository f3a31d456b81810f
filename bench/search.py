"""A search for hyper-parameters: what is tried for each model, and the step that chooses the best trial.

Every model has as many trials, each as long, whatever its family: a baseline is as well tuned as what it is compared
with. The first trial is the model's own recipe; the others are drawn at random from the combinations of the values
given, the same draws for every model, without what its family does not have. Trials that are as long as the training
itself are not followed by another one: the best is the training.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.configs import SearchConfig, TrainConfig
from bench.steps import Progress, write_json

CHOICE = "choice.json"
Departures = dict[str, dict[str, Any]]
"""What a trial has otherwise: values by `train` and `config`, and by field."""


def run(spec: dict[str, Any], folder: Path, parents: dict[str, Path], progress: Progress) -> None:
    """Choose the trial with the best score on the development set, the first among equals; write `choice.json`.

    spec: under `trials` what each has otherwise; parents: `trial0` and so on, their trainings. One that failed has no
    score; if all failed, the first is chosen, whose full training will say why.
    """
    scores = [
        json.loads((parents[f"trial{i}"] / "training.json").read_text(encoding="utf-8"))["selection"]["score"]
        for i in range(len(spec["trials"]))
    ]
    best = max(range(len(scores)), key=lambda i: -math.inf if scores[i] is None else scores[i])
    trials = [{**trial, "score": score} for trial, score in zip(spec["trials"], scores, strict=True)]
    write_json(folder / CHOICE, {"chosen": best, "trials": trials})


def chosen(folder: Path | None) -> Departures:
    """Return what the best trial of a choice has otherwise; nothing without a search."""
    if folder is None:
        return {"train": {}, "config": {}}
    choice = json.loads((folder / CHOICE).read_text(encoding="utf-8"))
    best = choice["trials"][choice["chosen"]]
    return {"train": best["train"], "config": best["config"]}


def best_trial(folder: Path) -> str:
    """Return the role of the best trial among the parents of a choice."""
    number: int = json.loads((folder / CHOICE).read_text(encoding="utf-8"))["chosen"]
    return f"trial{number}"


def described(choice: Departures) -> str:
    """Return the values of `choice` in short: `learning_rate=0.003 dropout=0.2`."""
    return " ".join(
        f"{name}={json.dumps(value)}" for part in ("train", "config") for name, value in choice[part].items()
    )


def trials_of(search: SearchConfig, train: TrainConfig, config: Mapping[str, Any]) -> list[Departures]:
    """Return what each trial of a model has otherwise; fewer than `search.trials` if there are no more combinations.

    train, config: the model's own recipe and Config, the latter as JSON values.
    """
    own: Departures = {"train": train.model_dump(mode="json"), "config": dict(config)}
    trials: list[Departures] = [{"train": {}, "config": {}}]
    seen = [{(part, name): own[part][name] for part, name in _fields(search) if name in own[part]}]
    for values in _draws(search):
        combination = {field: value for field, value in values.items() if field in seen[0]}
        if len(trials) == search.trials:
            break
        if combination not in seen:
            seen.append(combination)
            departures: Departures = {"train": {}, "config": {}}
            for (part, name), value in combination.items():
                if value != own[part][name]:
                    departures[part][name] = value
            trials.append(departures)
    return trials


def _fields(search: SearchConfig) -> list[tuple[str, str]]:
    return [("train", name) for name in search.train] + [("config", name) for name in search.config]


def _draws(search: SearchConfig) -> Iterator[dict[tuple[str, str], Any]]:
    """Yield every combination of the values, in an order that follows from the seed alone."""
    fields = _fields(search)
    combinations = list(itertools.product(*(getattr(search, part)[name] for part, name in fields)))
    random.Random(search.seed).shuffle(combinations)
    for values in combinations:
        yield dict(zip(fields, values, strict=True))
