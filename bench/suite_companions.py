"""Companions: other systems of a suite that a system uses, to train (Imputer: a CTC model) or to decode (rescoring)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.suite_file import CompanionSection
from bench.suite_problems import Problems, unknown
from models.interface import Role

if TYPE_CHECKING:
    from bench.suite_systems import Draft

TEACHER = "teacher"


@dataclass(frozen=True)
class Companion:
    """Who fills a role of a system."""

    role: str
    system: str
    data: str | None
    """What the companion was trained on; None: the same as the system itself if there is such a model, else raw."""

    def data_for(self, own: str, available: Iterable[str]) -> str:
        """Return the data of the companion's model for a system trained on `own`; `available` is what there is."""
        there = tuple(available)
        return self.data or (own if own in there else "raw")


def read_companions(
    draft: Draft, systems: Mapping[str, Draft], modalities: Iterable[str], problems: Problems
) -> tuple[Companion, ...]:
    """Return the companions of a system after checking that they exist, fit their roles and fill all that is needed.

    The role `teacher` goes to the system's teacher unless it is given to another one. `modalities` are those of the
    tasks that the system is trained on.
    """
    family, section = draft.family, draft.section
    if family is None:
        return ()
    roles = {role.name: role for role in family.roles}
    companions = []
    for name, given in (section.get("companions") or {}).items():
        path = (*draft.path, "companions", name)
        if name not in roles:
            problems.add(path, unknown("role", name, roles) + f" for family {section['family']}", of_key=True)
            continue
        companion = _companion(name, given)
        other = systems.get(companion.system)
        if companion.system == draft.name:
            problems.add(path, f"{companion.system!r} cannot be its own companion")
        elif other is None:
            problems.add(path, unknown("system", companion.system, systems))
        else:
            for message in _misfits(roles[name], companion, other, draft):
                problems.add(path, message)
            companions.append(companion)
    filled = {companion.role for companion in companions} | set(section.get("companions") or {})
    teacher = section.get("teacher")
    if TEACHER in roles and TEACHER not in filled and isinstance(teacher, str) and teacher in systems:
        companions.append(Companion(TEACHER, teacher, "raw"))
        filled.add(TEACHER)
    _check_needs(draft, filled, modalities, problems)
    return tuple(companions)


def _companion(role: str, given: str | CompanionSection | dict[str, Any]) -> Companion:
    match given:
        case str():
            return Companion(role, given, None)
        case CompanionSection():
            return Companion(role, given.system, given.data)
        case _:  # as written, for something else in the section is not right
            return Companion(role, str(given.get("system")), given.get("data"))


def _misfits(role: Role, companion: Companion, other: Draft, draft: Draft) -> list[str]:
    """Return what keeps `other` from filling `role`."""
    found = []
    family = other.family
    if family is not None:
        name = other.section["family"]
        if role.autoregressive is not None and family.autoregressive != role.autoregressive:
            kind = "autoregressive" if role.autoregressive else "non-autoregressive"
            found.append(f"the {role.name} must be {kind}, and {companion.system!r} is of family {name}")
        if role.families and name not in role.families:
            allowed = " or ".join(role.families)
            found.append(f"the {role.name} must be of family {allowed}, and {companion.system!r} is of family {name}")
    there = other.data or ("raw",)
    missing = [data for data in draft.data or () if companion.data is None and data not in there and "raw" not in there]
    if missing:
        found.append(
            f"{companion.system!r} is not trained on {missing[0]} data; add raw to its data, or say which model is "
            f"meant: {{system: {companion.system}, data: {there[0]}}}"
        )
    if companion.data is not None and other.data is not None and companion.data not in other.data:
        found.append(f"{companion.system!r} is not trained on {companion.data} data")
    if draft.config is not None and other.config is not None:
        reason = draft.config.refuses(role.name, other.config)
        if reason is not None:
            found.append(f"{companion.system!r} does not fit as {role.name}: {reason}")
    if seeds := draft.seeds_missing_in(other):
        found.append(f"{companion.system!r} is not trained with seed {seeds}")
    return found


def _check_needs(draft: Draft, filled: set[str], modalities: Iterable[str], problems: Problems) -> None:
    wanted: list[tuple[Any, Any]] = [(draft.config, (*draft.path, "config"))]
    wanted += [(settings, (*draft.path, "settings", i)) for i, settings in enumerate(draft.settings)]
    for options, path in wanted:
        if options is None:
            continue
        for role in sorted(frozenset().union(*(options.needs(modality) for modality in modalities)) - filled):
            hint = f"add companions: {{{role}: SYSTEM}}" + (" or a teacher" if role == TEACHER else "")
            problems.add(path, f"needs another system as {role}: {hint}")
