"""Companions in suites: who may fill a role, what is refused, and what a selection keeps."""

import pytest

from bench.suite import Filled, SuiteError
from models import registry
from models.interface import Family, Model, Role
from tests.bench import made_up
from tests.bench.made_up import AR, NAR, Config, NarSettings, load


class NeedyConfig(Config):
    """Needs a CTC model to train."""

    def needs(self, modality="text"):
        return frozenset({"ctc"})


class RescoredSettings(NarSettings):
    """Needs a teacher to choose among candidates."""

    candidates: int = 1
    """How many."""

    def needs(self, modality="text"):
        return frozenset({"teacher"} if self.candidates > 1 else ())


ROLES = (
    Role("ctc", "aligns and initialises", autoregressive=False, families=("ctc",)),
    Role("teacher", "rescores", autoregressive=True),
)
NEEDY = Family("needy", NeedyConfig, RescoredSettings, Model, autoregressive=False, title="Needy", roles=ROLES)

SUITE = """\
name: quick
tasks: [dates]
train: {budget: {target_tokens: 600_000}, seeds: [1, 2]}
systems:
  - {name: base, family: transformer, settings: [{beam: 5}]}
  - {name: ctc, family: ctc, teacher: base, data: [raw, distilled]}
  - name: needy
    family: needy
    teacher: base
    data: [raw, distilled]
    companions: {ctc: ctc}
    settings: [{candidates: 1}, {candidates: 10}]
"""


@pytest.fixture(autouse=True)
def _made_up(monkeypatch, tmp_path):
    made_up.register(monkeypatch)
    families = {"ctc": NAR, "needy": NEEDY, "transformer": AR}
    monkeypatch.setattr(registry, "built_in_families", lambda: families)
    monkeypatch.chdir(tmp_path)


def changed(old, new):
    assert old in SUITE
    return SUITE.replace(old, new)


def test_training_gets_the_companion_that_was_trained_on_the_same_data():
    models = {(m.system, m.data, m.seed): m for m in load(SUITE).models()}
    assert models["needy", "raw", 2].companions == (Filled("ctc", "ctc", "raw"),)
    assert models["needy", "distilled", 1].companions == (Filled("ctc", "ctc", "distilled"),)
    assert models["ctc", "distilled", 1].companions == ()


def test_without_such_a_model_the_companion_is_the_one_there_is_unless_data_is_given():
    models = load(changed("teacher: base, data: [raw, distilled]}", "}")).models()
    assert {m.companions for m in models if m.system == "needy"} == {(Filled("ctc", "ctc", "raw"),)}
    models = load(changed("{ctc: ctc}", "{ctc: {system: ctc, data: distilled}}")).models()
    assert {m.companions for m in models if m.system == "needy"} == {(Filled("ctc", "ctc", "distilled"),)}


def test_settings_that_need_a_role_get_the_teacher_on_raw_data():
    cells = {(c.model.system, c.model.data, c.settings_label): c for c in load(SUITE).cells() if c.model.seed == 1}
    assert cells["needy", "distilled", "candidates=10"].companions == (Filled("teacher", "base", "raw"),)
    assert cells["needy", "distilled", "candidates=1"].companions == ()


def test_a_teacher_serves_a_system_on_raw_data_that_has_the_role():
    load(changed("data: [raw, distilled]\n    companions", "data: raw\n    companions"))


def test_a_selection_keeps_companions_and_their_teachers_as_models_only():
    suite = load(SUITE).select(["needy"])
    assert [(m.system, m.data) for m in suite.models() if m.seed == 1] == [
        ("base", "raw"),
        ("ctc", "raw"),
        ("ctc", "distilled"),
        ("needy", "raw"),
        ("needy", "distilled"),
    ]
    assert {c.model.system for c in suite.cells()} == {"needy"}


def test_a_selection_leaves_out_what_nothing_selected_needs():
    text = changed("data: [raw, distilled]\n    companions", "data: raw\n    companions")
    text = text.replace("[{candidates: 1}, {candidates: 10}]", "[{candidates: 1}]")
    assert [(m.system, m.data) for m in load(text).select(["needy"]).models() if m.seed == 1] == [
        ("ctc", "raw"),
        ("needy", "raw"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "answer"),
    [
        (
            "companions: {ctc: ctc}",
            "companions: {}",
            r"systems\[2\].config: needs another system as ctc: add companions",
        ),
        ("{ctc: ctc}", "{ctx: ctc}", r"unknown role 'ctx'; did you mean 'ctc'\? there are: ctc, teacher"),
        ("{ctc: ctc}", "{ctc: ctx}", r"systems\[2\].companions.ctc: unknown system 'ctx'; did you mean 'ctc'\?"),
        ("{ctc: ctc}", "{ctc: needy}", "'needy' cannot be its own companion"),
        ("{ctc: ctc}", "{ctc: base}", "the ctc must be non-autoregressive, and 'base' is of family transformer"),
        ("{ctc: ctc}", "{ctc: ctc, teacher: ctc}", "the teacher must be autoregressive, and 'ctc' is of family ctc"),
        ("{ctc: ctc}", "{ctc: {system: ctc, data: distild}}", '"distild" is not one of the choices'),
        ("{ctc: ctc}", "{ctc: {sytem: ctc}}", "unknown key; did you mean 'system'|required key is missing"),
        ("{ctc: ctc}", "{ctc: {system: base, data: distilled}}", "'base' is not trained on distilled data"),
        (
            "data: [raw, distilled]}",
            "data: raw, teacher: null, train: {seeds: [1]}}",
            "'ctc' is not trained with seed 2",
        ),
        ("    teacher: base\n    data: [raw, distilled]\n", "", r"settings\[1\]: needs another system as teacher"),
    ],
)
def test_what_cannot_be_is_refused(old, new, answer):
    text = changed(old, new) if "seeds: [1]" not in new else changed("teacher: base, " + old, new)
    with pytest.raises(SuiteError, match=answer):
        load(text)


def test_training_that_waits_for_itself_is_refused(monkeypatch):
    class Circular(NeedyConfig):
        pass

    circular = Family("ctc", Circular, NarSettings, Model, autoregressive=False, title="C", roles=ROLES[:1])
    monkeypatch.setattr(registry, "built_in_families", lambda: {"ctc": circular})
    text = """\
name: quick
tasks: [dates]
train: {budget: {target_tokens: 600_000}}
systems:
  - {name: one, family: ctc, companions: {ctc: two}}
  - {name: two, family: ctc, companions: {ctc: one}}
"""
    with pytest.raises(SuiteError, match="the training of 'one' waits for itself"):
        load(text)


def test_settings_that_do_not_fit_the_config_are_refused_before_training(monkeypatch, tmp_path):
    monkeypatch.undo()  # the real families
    monkeypatch.chdir(tmp_path)
    text = """\
name: quick
tasks: [dates]
train: {budget: {target_tokens: 600_000}}
systems:
  - {name: one, family: insertion, config: {termination: sequence}, settings: [{}, {mode: parallel}]}
  - {name: two, family: kermit, settings: [{reverse: true}]}
"""
    with pytest.raises(SuiteError) as error:
        load(text)
    assert [line.split(":", 2)[2].strip()[:42] for line in error.value.problems] == [
        "systems[0].settings[1]: mode 'parallel' ne",
        "systems[1].settings[0]: reverse needs a mo",
    ]


def test_a_companion_of_another_shape_is_refused_before_anything_runs(monkeypatch):
    class Shaped(NeedyConfig):
        def refuses(self, role, other):
            return self.differing(other, ["model_dim", "num_heads", "block_size"])

    needy = Family("needy", Shaped, RescoredSettings, Model, autoregressive=False, title="Needy", roles=ROLES)
    monkeypatch.setattr(registry, "built_in_families", lambda: {"ctc": NAR, "needy": needy, "transformer": AR})
    load(SUITE)
    message = r"s.yaml:12: systems\[2\].companions.ctc: 'ctc' does not fit as ctc: model_dim is 512 there and 64 here"
    with pytest.raises(SuiteError, match=message):
        load(changed("    family: needy\n", "    family: needy\n    config: {model_dim: 64}\n"))
