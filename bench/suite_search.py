"""Checks the search for hyper-parameters of a suite: fields, values, and that there are enough combinations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bench.configs import SearchConfig, TrainConfig
from bench.errors import reason_of
from bench.search import trials_of
from bench.suite_problems import Problems, unknown
from bench.suite_systems import Draft
from bench.suite_tasks import TaskEntry
from models.interface import DataSpec, Options
from models.layers import BackboneConfig

FIXED = ("budget", "seeds", "init", "threads", "checkpoint_seconds")
"""Fields of the training recipe that are no hyper-parameters."""
SHAPE = tuple(name for name in BackboneConfig.model_fields if name != "dropout")
"""Fields of a Config that say what network it is."""


def check_search(
    search: SearchConfig | None, drafts: Sequence[Draft], tasks: Sequence[TaskEntry], problems: Problems
) -> None:
    """Note what is wrong with `search`; systems that have problems of their own are left out."""
    if search is None:
        return
    whole = [draft for draft in drafts if draft.family and draft.config and draft.train]
    found = _check_train(search, whole, problems)
    found |= _check_config(search, whole, tasks, problems)
    if found or len(whole) < len(drafts):
        return
    for draft in whole:
        assert draft.config is not None
        assert draft.train is not None
        if draft.train.budget.none:
            continue
        there = len(trials_of(search, draft.train, draft.config.model_dump(mode="json")))
        if there < search.trials:
            problems.add(
                ("search", "trials"),
                f"{search.trials} trials need as many combinations, and {draft.name!r} has {there}, its own recipe "
                "included; add values or fields that its family has",
            )


def _check_train(search: SearchConfig, drafts: Sequence[Draft], problems: Problems) -> bool:
    """Return whether anything is wrong with the values of the training recipe."""
    known = [name for name in TrainConfig.model_fields if name not in FIXED]
    wrong = False
    for name, values in search.train.items():
        path = ("search", "train", name)
        if name not in known:
            problems.add(path, unknown("key", name, known), of_key=True)
            wrong = True
            continue
        for index, value in enumerate(values):
            for draft in drafts:
                assert draft.train is not None
                whole = {**draft.train.model_dump(mode="json"), name: value}
                if problems.check(TrainConfig, whole, ("search", "train"), {name: (*path, index)}) is None:
                    wrong = True
                    break
    return wrong


def _check_config(
    search: SearchConfig, drafts: Sequence[Draft], tasks: Sequence[TaskEntry], problems: Problems
) -> bool:
    """Return whether anything is wrong with the values of families' Configs."""
    configs = [draft.config for draft in drafts if draft.config is not None]
    known = sorted({name for config in configs for name in type(config).model_fields if name not in SHAPE})
    wrong = False
    for name, values in search.config.items():
        path = ("search", "config", name)
        if name not in known:
            shape = any(name in type(config).model_fields for config in configs)
            message = unknown("key", name, known) + " (no system has it)"
            if shape:
                message = f"says what network it is, which a search leaves alone; there are: {', '.join(known)}"
            problems.add(path, message, of_key=True)
            wrong = True
            continue
        for index, value in enumerate(values):
            for draft in drafts:
                if draft.config is None or name not in type(draft.config).model_fields:
                    continue
                whole = {**draft.config.model_dump(mode="json"), name: value}
                changed = problems.check(type(draft.config), whole, ("search", "config"), {name: (*path, index)})
                if changed is not None and (unlike := _unlike(draft, draft.config, changed, tasks)):
                    problems.add((*path, index), unlike)
                    changed = None
                if changed is None:
                    wrong = True
                    break
    return wrong


def _unlike(draft: Draft, own: Options, other: Options, tasks: Sequence[TaskEntry]) -> str | None:
    """Return what a model of `other` has that one of the system's `own` Config has not, if anything."""
    assert draft.family is not None
    for modality in {task.modality: None for task in tasks if task.has(draft.name)}:
        data = DataSpec(64, 64, 64) if modality == "text" else DataSpec(64, 64, 64, "speech", 16)
        try:
            shapes = [_shapes(draft.family.model, config, data) for config in (own, other)]
        except Exception as error:  # a family of the user's may raise anything
            return f"a model of {draft.name!r} cannot be built with it: {reason_of(error)}"
        if shapes[0] != shapes[1]:
            return f"changes the network of {draft.name!r}, which a search leaves alone"
    return None


def _shapes(model: Any, config: Options, data: DataSpec) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in model(config, data).named_parameters()}
