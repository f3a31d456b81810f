"""Loads a trained model from its artifact, and sets the conditions under which it decodes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from bench.steps import role_key
from models.interface import DataSpec, Model
from models.registry import load_family
from models.weights import fill

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
"""Where a model's Config departs from that of the suite: what a search for hyper-parameters has chosen."""


def load_model(
    family: str, config: dict[str, Any], data_spec: DataSpec, model_folder: Path, device: torch.device | str = "cpu"
) -> Model:
    """Build the model of `family` and fill it from `model_folder`: on `device`, in eval mode, not to be trained.

    config: as the suite has it; what a search has chosen otherwise lies in the folder.

    Raises:
        LookupError: no such family.
        ValueError: the file is damaged or does not fit the model.
        FileNotFoundError: the folder holds no model.
    """
    kind = load_family(family)
    searched = model_folder / CONFIG_FILE
    if searched.exists():
        config = {**config, **json.loads(searched.read_text(encoding="utf-8"))}
    model = kind.model(kind.config(**config), data_spec)
    file = model_folder / MODEL_FILE
    try:
        weights = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); remove its folder and run again") from error
    fill(model, weights)
    return model.to(device).eval().requires_grad_(False)


def load_companions(
    descriptions: dict[str, Any],
    data_spec: DataSpec,
    parents: dict[str, Path],
    device: torch.device | str,
    cell: int | str = "",
) -> dict[str, Model]:
    """Return the companions that a step's spec describes, by role; see `bench.steps`."""
    return {
        role: load_model(d["family"], d["config"], data_spec, parents[role_key(role, cell)], device)
        for role, d in descriptions.items()
    }


@contextmanager
def inference(device: str, dtype: str) -> Iterator[None]:
    """Decode inside: no autograd, and bfloat16 autocast on CUDA if `dtype` is bfloat16.

    Scoring and timing both decode under it, so that both see the same arithmetic.
    """
    lowered = device.startswith("cuda") and dtype == "bfloat16"
    with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16) if lowered else nullcontext():
        yield
