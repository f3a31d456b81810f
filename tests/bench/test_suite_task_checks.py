"""Tasks with recipes and systems of their own, inits, and what does not fit between tasks and systems."""

from dataclasses import replace

import pytest

from bench.suite import Filled, SuiteError
from bench.tasks import registry as tasks
from models import registry
from models.interface import Family, Model, Role
from tests.bench import made_up
from tests.bench.made_up import AR, NAR, Config, Dates, NarSettings, Speech, load


class AlignedConfig(Config):
    """Needs a CTC model for speech alone."""

    def needs(self, modality="text"):
        return frozenset({"ctc"} if modality == "speech" else ())


ALIGNED = Family(
    "aligned", AlignedConfig, NarSettings, Model, autoregressive=False, title="Aligned",
    roles=(Role("ctc", "aligns", families=("ctc",)),),
)  # fmt: skip

SUITE = """\
name: quick
tasks:
  - dates
  - task: morse
    train: {budget: {minutes: 2}, learning_rate: 1e-3, init: ctc}
    systems: [base, ctc]
train: {budget: {target_tokens: 600_000}, seeds: [1, 2], warmup: 0.2}
systems:
  - {name: base, family: transformer, train: {learning_rate: 5e-3}}
  - {name: ctc, family: ctc, teacher: base, data: [raw, distilled]}
  - {name: other, family: ctc, teacher: base}
"""


@pytest.fixture(autouse=True)
def _made_up(monkeypatch, tmp_path):
    families = {"aligned": ALIGNED, "ctc": NAR, "text_only": replace(NAR, name="text_only", modalities=("text",)),
                "transformer": AR}  # fmt: skip
    made_up.register(monkeypatch)
    monkeypatch.setattr(registry, "built_in_families", lambda: families)
    monkeypatch.setattr(tasks, "built_in_tasks", lambda: {"dates": Dates, "morse": Speech})
    monkeypatch.chdir(tmp_path)


def changed(old, new):
    assert old in SUITE
    return SUITE.replace(old, new)


def models(task, suite=SUITE):
    return {(m.system, m.data): m for m in load(suite).models() if m.task.name == task and m.seed == 1}


def test_a_task_has_only_its_systems():
    suite = load(SUITE)
    assert list(models("dates")) == [("base", "raw"), ("ctc", "raw"), ("ctc", "distilled"), ("other", "distilled")]
    assert list(models("morse")) == [("base", "raw"), ("ctc", "raw"), ("ctc", "distilled")]
    assert {c.model.system for c in suite.cells() if c.model.task.name == "morse"} == {"base", "ctc"}


def test_the_recipe_of_a_task_departs_from_the_suite_s_and_that_of_a_system_from_both():
    text, speech = models("dates"), models("morse")
    assert text["base", "raw"].train.budget.target_tokens == 600_000
    for model in speech.values():
        assert model.train.budget.minutes == 2
        assert model.train.budget.target_tokens is None
        assert model.train.warmup == 0.2
        assert model.train.seeds == (1, 2)
    assert (text["ctc", "raw"].train.learning_rate, speech["ctc", "raw"].train.learning_rate) == (2e-3, 1e-3)
    assert (text["base", "raw"].train.learning_rate, speech["base", "raw"].train.learning_rate) == (5e-3, 5e-3)


def test_all_encoders_but_its_own_start_from_the_named_system_trained_on_raw_data():
    assert {model.init for model in models("dates").values()} == {None}
    inits = {key: model.init for key, model in models("morse").items()}
    assert inits == {
        ("base", "raw"): Filled("init", "ctc", "raw"),
        ("ctc", "raw"): None,
        ("ctc", "distilled"): None,
    }


def test_a_selection_keeps_the_system_that_encoders_start_from():
    suite = load(SUITE).select(["base"])
    kept = {(m.task.name, m.system, m.data) for m in suite.models()}
    assert kept == {("dates", "base", "raw"), ("morse", "base", "raw"), ("morse", "ctc", "raw")}
    assert {c.model.system for c in suite.cells()} == {"base"}


def test_an_override_reaches_the_recipe_of_a_task():
    suite = load(SUITE, ["tasks.morse.train.budget.target_tokens=5000"])
    assert {m.train.budget.target_tokens for m in suite.models() if m.task.name == "morse"} == {5000}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "learning_rate: 1e-3, init",
            "learning_rat: 1e-3, init",
            r"s.yaml:5: tasks\[1\].train.learning_rat: unkn",
        ),
        ("{minutes: 2}", "{minutes: -2}", r"s.yaml:5: tasks\[1\].train.budget.minutes: -2 is out of range"),
        ("init: ctc", "init: cct", r"tasks\[1\]: train.init: unknown system 'cct'; did you mean 'ctc'"),
        ("init: ctc", "seeds: [3]", r"tasks\[1\].train.seeds: seeds are the same for all tasks"),
        ("[base, ctc]", "[base, cct]", r"tasks\[1\].systems: unknown system 'cct'"),
        ("[base, ctc]", "[ctc]", r"tasks\[1\]: 'ctc' uses 'base' as teacher, which systems leaves out"),
        ("[base, ctc]", "[base]", r"tasks\[1\]: 'base' uses 'ctc' as init, which systems leaves out"),
        (
            "    systems: [base, ctc]\n",
            "",
            None,
        ),
        (
            "name: other, family: ctc, teacher: base}",
            "name: other, family: text_only, teacher: base}",
            None,
        ),
    ],
    ids=["unknown-key", "bad-value", "unknown-init", "seeds", "unknown-system", "no-teacher", "no-init", "all", "fits"],
)
def test_what_does_not_fit_is_refused(old, new, message):
    text = changed(old, new)
    if message is None:
        load(text)
        return
    with pytest.raises(SuiteError, match=message):
        load(text)


def test_a_family_that_cannot_read_a_task_is_refused_there():
    text = changed("[base, ctc]", "[base, ctc, other]").replace(
        "name: other, family: ctc", "name: other, family: text_only"
    )
    with pytest.raises(SuiteError, match=r"'morse' is speech, and 'other' of family text_only reads text: leave"):
        load(text)


def test_settings_that_cannot_read_a_task_are_refused_there(monkeypatch):
    monkeypatch.setattr(NarSettings, "unfit", lambda self, modality: None if modality == "text" else "it reads text")
    with pytest.raises(SuiteError, match=r"'morse' is speech, and in settings of 'ctc' it reads text"):
        load(SUITE)


def test_roles_that_only_speech_needs():
    without = changed("[base, ctc]", "[base, ctc, other]").replace("family: ctc, teacher: base}\n", "X", 0)
    without = without.replace("name: other, family: ctc", "name: other, family: aligned")
    with pytest.raises(SuiteError, match="needs another system as ctc"):
        load(without)
    text = without.replace("family: aligned,", "family: aligned, companions: {ctc: ctc},")
    assert models("dates", text)["other", "distilled"].companions == ()
    assert models("morse", text)["other", "distilled"].companions == (Filled("ctc", "ctc", "distilled"),)
    text_only = without.replace("systems: [base, ctc, other]", "systems: [base, ctc]")
    assert models("dates", text_only)["other", "distilled"].companions == ()


def test_an_init_that_waits_for_whom_it_starts_is_a_circle():
    """ctc is trained on distilled data alone, so its teacher would wait for it."""
    with pytest.raises(SuiteError, match="waits for itself"):
        load(
            changed(
                "name: ctc, family: ctc, teacher: base, data: [raw, distilled]", "name: ctc, family: ctc, teacher: base"
            )
        )


def raw_alone(systems, ctc="teacher: base, data: [raw, distilled]"):
    return changed("[base, ctc]", f"{systems}\n    data: raw").replace("teacher: base, data: [raw, distilled]", ctc)


def test_a_task_may_leave_out_distilled_data():
    text = raw_alone("[base, ctc]")
    assert list(models("morse", text)) == [("base", "raw"), ("ctc", "raw")]
    assert ("ctc", "distilled") in models("dates", text)
    # A circle that only distilled data would close is none.
    assert models("morse", text)["base", "raw"].init == Filled("init", "ctc", "raw")


def test_companions_are_those_on_the_data_that_a_task_has():
    """Elsewhere the companion would be the model on distilled data, like the system itself."""
    text = raw_alone("[base, ctc, other]").replace(
        "name: other, family: ctc, teacher: base}",
        "name: other, family: aligned, teacher: base, data: [raw, distilled], companions: {ctc: ctc}}",
    )
    assert models("morse", text)["other", "raw"].companions == (Filled("ctc", "ctc", "raw"),)
    assert ("other", "distilled") not in models("morse", text)


@pytest.mark.parametrize(
    ("systems", "other", "message"),
    [
        ("[base, ctc, other]", "", r"'other' is trained on distilled data, which data: raw leaves out; leave it out"),
        (
            "[base, ctc, other]",
            "data: [raw], companions: {ctc: {system: ctc, data: distilled}}, ",
            r"'other' uses 'ctc' on distilled data as ctc, which data: raw leaves out",
        ),
    ],
    ids=["system", "companion"],
)
def test_what_only_distilled_data_gives_is_refused_without_it(systems, other, message):
    text = raw_alone(systems)
    if other:
        text = text.replace("name: other, family: ctc, teacher: base", f"name: other, {other}family: aligned")
    with pytest.raises(SuiteError, match=message):
        load(text)


def test_a_task_cannot_leave_out_raw_data():
    with pytest.raises(SuiteError, match=r'tasks\[1\].data: "distilled" is not one of the choices; allowed: raw'):
        load(changed("[base, ctc]", "[base, ctc]\n    data: distilled"))


def test_an_init_must_be_trained_with_the_seeds_of_those_that_start_from_it():
    text = changed(
        "name: ctc, family: ctc, teacher: base, data: [raw, distilled]", "name: ctc, family: ctc, train: {seeds: [1]}"
    )
    with pytest.raises(SuiteError, match="'base' cannot start from 'ctc', which is not trained with seed 2"):
        load(text)


def test_a_system_that_no_task_has_is_refused():
    text = changed("  - dates\n", "  - {task: dates, systems: [base, ctc]}\n")
    with pytest.raises(SuiteError, match=r"s.yaml:11: systems\[2\]: no task has 'other': add it to"):
        load(text)


def test_problems_are_told_where_the_task_stands():
    """Though the task before has problems of its own, or bears the name of another."""
    broken = changed("  - dates\n", "  - {task: dates, stiles: 2}\n")
    broken = broken.replace("learning_rate: 1e-3, init", "learning_rat: 1e-3, init")
    with pytest.raises(SuiteError, match=r"tasks\[1\].train.learning_rat"):
        load(broken)
    named = changed("  - dates\n", "  - {task: dates, name: morse}\n").replace(
        "  - task: morse\n", "  - task: morse\n    name: other\n"
    )
    with pytest.raises(SuiteError, match=r"tasks\[1\].systems: unknown system 'nope'"):
        load(named.replace("[base, ctc]", "[base, ctc, nope]"))
