"""The systems of a suite: which family, how configured, trained on what, decoded how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.configs import TrainConfig
from bench.errors import reason_of
from bench.settings_labels import settings_labels
from bench.suite_companions import TEACHER, Companion, read_companions
from bench.suite_families import contract_problems, label_problems
from bench.suite_file import ReferenceSection, SystemSection
from bench.suite_problems import Problems, unknown
from bench.suite_tasks import TaskEntry
from bench.yaml_lines import KeyPath
from models import registry
from models.interface import MODALITIES, Family, Options

SAID = ("output_length",)
"""Settings that tables state for all systems at once, so that labels need not; see `bench.protocol`."""


@dataclass(frozen=True)
class SettingsEntry:
    """One way to decode with a trained system."""

    values: dict[str, Any]
    """The family's Settings as JSON values, defaults included."""
    label: str
    """Canonical short form, `beam=5 alpha=0.6`; unique within the system."""
    needs: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Roles that decoding with it needs filled, by modality."""


@dataclass(frozen=True)
class SystemEntry:
    """A system of a suite, checked and with all defaults."""

    name: str
    family: str
    autoregressive: bool
    config: dict[str, Any]
    """The family's Config as JSON values, defaults and the suite's backbone included."""
    settings: tuple[SettingsEntry, ...]
    data: tuple[str, ...]
    """raw, distilled or both: a model is trained on each."""
    teacher: str | None
    train: TrainConfig
    companions: tuple[Companion, ...] = ()
    needs: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Roles that training needs filled, by modality."""
    measured: bool = True
    """False for a teacher or companion that a selection of systems needs but does not name."""
    tasks: frozenset[str] | None = None
    """The tasks on which a selection needs it; None: all that have it."""
    recipes: Mapping[str, TrainConfig] = field(default_factory=dict)
    """The recipes of tasks that depart from the suite's, by name."""

    def train_on(self, task: TaskEntry) -> TrainConfig:
        """Return the recipe for `task`; its seeds are those of `train`."""
        return self.recipes.get(task.name, self.train)


@dataclass(frozen=True)
class Reference:
    """What speed-ups compare with."""

    system: str
    settings: dict[str, Any]
    settings_label: str


@dataclass
class Draft:
    """A system as far as it could be read."""

    path: KeyPath
    section: dict[str, Any]
    family: Family | None = None
    config: Options | None = None
    settings: list[Options] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    data: tuple[str, ...] | None = None
    train: TrainConfig | None = None
    companions: tuple[Companion, ...] = ()
    recipes: dict[str, TrainConfig] = field(default_factory=dict)

    @property
    def name(self) -> str | None:
        """Its name, if it could be read."""
        return self.section.get("name")

    def seeds_missing_in(self, other: Draft) -> str:
        """Return its seeds that `other`, on whose models it builds, is not trained with: `3, 4`; nothing if all are."""
        if self.train is None or other.train is None:
            return ""
        return ", ".join(str(seed) for seed in self.train.seeds if seed not in other.train.seeds)

    def entry(self) -> SystemEntry:
        """Return the finished system; only for a draft without problems."""
        assert self.family is not None
        assert self.config is not None
        assert self.data is not None
        assert self.train is not None
        return SystemEntry(
            name=self.section["name"],
            family=self.section["family"],
            autoregressive=self.family.autoregressive,
            config=self.config.model_dump(mode="json"),
            settings=tuple(
                SettingsEntry(settings.model_dump(mode="json"), label, needs_of(settings))
                for settings, label in zip(self.settings, self.labels, strict=True)
            ),
            data=self.data,
            teacher=self.section["teacher"],
            train=self.train,
            companions=self.companions,
            needs=needs_of(self.config),
            recipes=self.recipes,
        )


class SystemReader:
    """Reads the suite's `systems`, and what refers to them."""

    def __init__(
        self,
        items: list[Any],
        shared: Mapping[str, dict[str, Any]],
        train: Any,
        tasks: Sequence[TaskEntry],
        problems: Problems,
    ) -> None:
        """Read `items`; `shared`: values for all families that have the fields, of `backbone` and `decoding`."""
        self.problems = problems
        self.tasks = tasks
        self.shared = shared
        # Without a recipe to depart from, departures are still checked, with any valid budget.
        self.suite_train = train if isinstance(train, dict) else {"budget": {"minutes": 1}}
        self.drafts = [self._draft(item, ("systems", index)) for index, item in enumerate(items)]
        self.by_name: dict[str, Draft] = {}
        for draft in self.drafts:
            if draft.name in self.by_name:
                problems.add((*draft.path, "name"), f"name {draft.name!r} is taken; system names must differ")
            elif draft.name is not None:
                self.by_name[draft.name] = draft
        self._check_shared("backbone", lambda family: family.config)
        self._check_shared("decoding", lambda family: family.settings)
        for draft in self.drafts:
            self._check_teacher(draft)
            modalities = {task.modality for task in tasks if task.has(draft.name)} or {"text"}
            draft.companions = read_companions(draft, self.by_name, modalities, problems)
            if draft.family is not None and draft.config is not None:
                for message in label_problems(draft.family, draft.config, modalities):
                    problems.add((*draft.path, "family"), message)

    def entries(self) -> list[SystemEntry]:
        """Return the systems; only when there are no problems."""
        return [draft.entry() for draft in self.drafts]

    def _draft(self, item: Any, path: KeyPath) -> Draft:
        draft = Draft(path, self.problems.salvage(SystemSection, item, path))
        section = draft.section
        if "data" in section and "teacher" in section:
            data = section["data"] or ("distilled" if section["teacher"] else "raw")
            draft.data = (data,) if isinstance(data, str) else tuple(data)
            if len(set(draft.data)) < len(draft.data):
                self.problems.add((*path, "data"), "names the same data twice")
        if "train" in section:
            own = section["train"]
            merged = {**self.suite_train, **own}
            homes: dict[str, KeyPath] = {
                key: ("train", key) for key in (*merged, *TrainConfig.model_fields) if key not in own
            }
            draft.train = self.problems.check(TrainConfig, merged, (*path, "train"), homes)
            for task in self.tasks:
                if task.train and draft.train is not None and task.has(section.get("name")):
                    self._read_recipe(draft, task, ("tasks", task.index, "train"))
        if "family" in section:
            draft.family = self._find(section["family"], (*path, "family"))
        if draft.family is not None:
            self._read_options(draft, draft.family)
        return draft

    def _read_recipe(self, draft: Draft, task: TaskEntry, path: KeyPath) -> None:
        """Read the recipe of a system on a task that departs from the suite's; the system's own departures win."""
        own = draft.section["train"]
        recipe = self.problems.check(TrainConfig, {**self.suite_train, **task.train, **own}, path)
        if recipe is not None:
            draft.recipes[task.name] = recipe

    def _find(self, name: str, path: KeyPath) -> Family | None:
        known = registry.built_in_families()
        if "." not in name and name not in known:
            self.problems.add(path, unknown("family", name, known))
            return None
        try:
            family = registry.load_family(name)
        except (Exception, SystemExit) as error:  # importing a user's module may raise anything
            reason = f"family {name!r} cannot be imported: {reason_of(error)}"
            self.problems.add(path, str(error) if type(error) is LookupError else reason)
            return None
        found = contract_problems(family)
        for message in found:
            self.problems.add(path, message)
        return None if found else family

    def _read_options(self, draft: Draft, family: Family) -> None:
        if "config" in draft.section:
            draft.config = self._check("backbone", family.config, draft.section["config"], (*draft.path, "config"))
        seen: list[dict[str, Any]] = []
        for index, item in enumerate(draft.section.get("settings", [])):
            path = (*draft.path, "settings", index)
            settings = self._check("decoding", family.settings, item, path)
            if settings is None:
                continue
            if draft.config is not None and (misfit := settings.misfit(draft.config)) is not None:
                self.problems.add(path, misfit)
            values = settings.model_dump(mode="json")
            if values in seen:
                self.problems.add(path, f"the same settings as settings[{seen.index(values)}]")
            seen.append(values)
            draft.settings.append(settings)
        said = {key: value for key, value in self.shared["decoding"].items() if key in SAID}
        draft.labels = settings_labels(draft.settings, said)

    def _check(self, section: str, kind: type[Options], own: Any, path: KeyPath) -> Any:
        """Return `own` as `kind`, together with what the suite's `section` has for all; None after a problem."""
        if not isinstance(own, dict):
            return self.problems.check(kind, own, path)
        given = self.shared[section].items()
        shared = {key: value for key, value in given if key in kind.model_fields and key not in own}
        homes: dict[str, KeyPath] = {key: (section, key) for key in shared}
        return self.problems.check(kind, {**shared, **own}, path, homes)

    def _check_shared(self, section: str, kind: Callable[[Family], type[Options]]) -> None:
        """Refuse keys of `section` that no system has."""
        families = [draft.family for draft in self.drafts if draft.family is not None]
        if len(families) < len(self.drafts):
            return  # an unknown family might have any field
        known = sorted({name for family in families for name in kind(family).model_fields})
        for key in self.shared[section]:
            if key not in known:
                self.problems.add((section, key), unknown("key", key, known) + " (no system has it)", of_key=True)

    def _check_teacher(self, draft: Draft) -> None:
        if draft.data is None:
            return
        name = draft.section["teacher"]
        path = (*draft.path, "teacher")
        if name is None:
            if "distilled" in draft.data:
                self.problems.add((*draft.path, "data"), "distilled data needs a teacher")
            return
        rescores = draft.family is not None and any(role.name == TEACHER for role in draft.family.roles)
        if "distilled" not in draft.data and not rescores:
            self.problems.add(path, f"a teacher is of no use with data {', '.join(draft.data)}; add distilled to data")
        if name == draft.name:
            self.problems.add(path, f"{name!r} cannot be its own teacher")
            return
        teacher = self._autoregressive_on_raw(name, path, "a teacher")
        if teacher is not None and (missing := draft.seeds_missing_in(teacher)):
            self.problems.add(path, f"{name!r} is not trained with seed {missing}; a student's seeds need it")

    def _autoregressive_on_raw(self, name: str, path: KeyPath, role: str) -> Draft | None:
        """Return the system called `name` after checking that it can be a teacher or a reference."""
        draft = self.by_name.get(name)
        if draft is None:
            self.problems.add(path, unknown("system", name, self.by_name))
            return None
        if draft.family is not None and not draft.family.autoregressive:
            self.problems.add(
                path, f"{role} must be autoregressive, and {name!r} is of family {draft.section['family']}"
            )
        if draft.data is not None and "raw" not in draft.data:
            self.problems.add(path, f"{role} must be trained on raw data, and {name!r} is not; add raw to its data")
        return draft

    def references(self, items: list[Any] | None) -> list[Reference]:
        """Return what speed-ups compare with: `items`, or all settings of the first system that qualifies."""
        if items is None:
            for draft in self.drafts:
                if draft.family and draft.family.autoregressive and draft.data and "raw" in draft.data and draft.name:
                    pairs = zip(draft.settings, draft.labels, strict=True)
                    return [Reference(draft.name, each.model_dump(mode="json"), label) for each, label in pairs]
            return []
        references: list[Reference] = []
        for index, item in enumerate(items):
            path = ("references", index)
            reference = self._reference(self.problems.salvage(ReferenceSection, item, path), path)
            if reference in references:
                self.problems.add(path, "the same reference twice")
            elif reference is not None:
                references.append(reference)
        return references

    def _reference(self, section: dict[str, Any], path: KeyPath) -> Reference | None:
        if "system" not in section:
            return None
        draft = self._autoregressive_on_raw(section["system"], (*path, "system"), "a reference")
        if draft is None or draft.family is None or "settings" not in section:
            return None
        wanted = self._check("decoding", draft.family.settings, section["settings"], (*path, "settings"))
        if wanted is None:
            return None
        for settings, label in zip(draft.settings, draft.labels, strict=True):
            if settings.model_dump() == wanted.model_dump():
                return Reference(section["system"], wanted.model_dump(mode="json"), label)
        there = " | ".join(label or "(defaults)" for label in draft.labels)
        self.problems.add((*path, "settings"), f"not among the settings of {section['system']!r}: {there}")
        return None


def needs_of(options: Options) -> dict[str, frozenset[str]]:
    """Return the roles that `options` need filled, by modality."""
    return {modality: options.needs(modality) for modality in MODALITIES}
