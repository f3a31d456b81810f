"""What a suite asks of a family before anything runs: an external one has passed no test of this project."""

from __future__ import annotations

from collections.abc import Iterable

from bench.errors import reason_of
from models.interface import Family, Options

ALIGNER = "ctc"
"""The role of the companion that aligns the training pairs."""


def contract_problems(family: Family) -> list[str]:
    """Return what `family` lacks to be configured, trained and decoded with; each a message of one line."""
    found: list[str] = []
    for part, options in (("Config", family.config), ("Settings", family.settings)):
        if not (isinstance(options, type) and issubclass(options, Options)):
            found.append(f"the family's {part} must be a subclass of models.interface.Options, and is {options!r}")
    if found:
        return found
    try:
        family.settings()
    except Exception as error:  # whatever its validators raise
        found.append(
            "the family's Settings must have a valid default for every field, for the development set is decoded with "
            f"them: {reason_of(error)}"
        )
    fertilities = family.labels == "fertility" and "text" in family.modalities
    if fertilities and "max_fertility" not in family.config.model_fields:
        found.append("the family's labels are fertilities, and its Config has no field max_fertility to bound them")
    if family.labels == "ctc_alignment" and ALIGNER not in {role.name for role in family.roles}:
        found.append(f"the family's labels are alignments, and it has no role {ALIGNER!r} for the model that aligns")
    return found


def label_problems(family: Family, config: Options, modalities: Iterable[str]) -> list[str]:
    """Return for which kinds of sources a model of `config` has labels, and nobody that makes them."""
    return [
        f"the family's labels for {modality} are made by the companion {ALIGNER!r}, and needs() of its Config does not "
        "name it"
        for modality in sorted(modalities)
        if family.labels == "ctc_alignment" or (family.labels == "fertility" and modality == "speech")
        if ALIGNER not in config.needs(modality)
    ]
