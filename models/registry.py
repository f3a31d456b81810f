"""Finds the families: every module of `models` that defines FAMILY, and any importable module named in a suite."""

import importlib
import pkgutil
from functools import cache

import models
from models.interface import Family


@cache
def built_in_families() -> dict[str, Family]:
    """Return the families of this package by name, in alphabetical order."""
    found: dict[str, Family] = {}
    for info in sorted(pkgutil.iter_modules(models.__path__), key=lambda info: info.name):
        if info.ispkg or info.name in ("registry", "interface"):
            continue
        family = getattr(importlib.import_module(f"models.{info.name}"), Family.ATTRIBUTE, None)
        if isinstance(family, Family):
            found[family.name] = family
    return found


def family_module(name: str) -> str:
    """Return the importable module that defines the family `name` (a built-in name or a dotted module)."""
    return name if "." in name else f"models.{name}"


def load_family(name: str) -> Family:
    """Return the family called `name`; a dotted name is imported as an external module.

    Raises:
        LookupError: no such family, with the names there are.
    """
    if "." in name:
        try:
            family = getattr(importlib.import_module(name), Family.ATTRIBUTE, None)
        except ImportError as error:
            raise LookupError(f"family {name!r} cannot be imported: {error}") from error
        if not isinstance(family, Family):
            raise LookupError(f"module {name!r} defines no FAMILY")
        return family
    families = built_in_families()
    if name not in families:
        raise LookupError(f"unknown family {name!r}; there are: {', '.join(families)}")
    return families[name]
