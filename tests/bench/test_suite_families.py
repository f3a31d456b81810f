"""What an external family must have before a suite uses it; each fault is answered where the suite names it."""

import sys
from pathlib import Path

import pytest

from bench.suite import SuiteError
from tests.bench import made_up
from tests.bench.made_up import load

FAMILY = """\
from pydantic import Field
from models.interface import Family, Model, Options, Role

class Config(Options):
    max_fertility: int = 10

    def needs(self, modality="text"):
        return frozenset()

class Settings(Options):
    beam: int = Field(1, ge=1)

FAMILY = Family("mine", Config, Settings, Model, autoregressive=False, title="Mine")
"""
SUITE = """\
name: quick
tasks: [dates]
train: {budget: {target_tokens: 600_000}}
systems:
  - {name: ctc, family: ctc}
  - name: mine
    family: house.mine
"""


@pytest.fixture(autouse=True)
def house(monkeypatch, tmp_path):
    """A folder of the user's own, and nothing of it remembered."""
    made_up.register(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "house").mkdir()
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "house"]:
        del sys.modules[name]


def problems(*changes, suite=SUITE):
    """The lines with which the suite is refused after the family's file was changed."""
    code = FAMILY
    for old, new in changes:
        assert old in code
        code = code.replace(old, new)
    Path("house/mine.py").write_text(code, encoding="utf-8")
    try:
        load(suite)
    except SuiteError as error:
        return list(error.problems)
    return []


def labelled(kind, *more):
    return ('title="Mine"', ", ".join([f'title="Mine", labels="{kind}"', *more]))


NEEDS_CTC = ("return frozenset()", 'return frozenset({"ctc"})')
ROLE = 'roles=(Role("ctc", "aligns"),)'
HERE = "s.yaml:7: systems[1].family: the family's "


def test_a_family_that_keeps_the_contract_is_taken():
    assert problems() == []


def test_labels_with_all_that_they_need_are_taken():
    assert problems(labelled("fertility")) == []
    del sys.modules["house.mine"]
    filled = SUITE + "    companions: {ctc: ctc}\n"
    assert problems(labelled("ctc_alignment", ROLE), NEEDS_CTC, suite=filled) == []


@pytest.mark.parametrize("part", ["Config", "Settings"])
def test_options_must_be_options(part):
    (problem,) = problems((f"class {part}(Options)", f"class {part}"))
    assert problem.startswith(
        f"{HERE}{part} must be a subclass of models.interface.Options, and is <class 'house.mine."
    )


def test_an_instance_is_no_class_of_options():
    (problem,) = problems(('Family("mine", Config, Settings', 'Family("mine", Config, Settings()'))
    assert problem.startswith(f"{HERE}Settings must be a subclass of models.interface.Options")


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("beam: int", "ValidationError: beam: Field required"),
        ("beam: int = Field(0, ge=1)", "ValidationError: beam: Input should be greater than or equal to 1"),
    ],
    ids=["no-default", "bad-default"],
)
def test_settings_must_have_defaults(field, reason):
    (problem,) = problems(("beam: int = Field(1, ge=1)", field))
    assert problem.startswith(f"{HERE}Settings must have a valid default for every field, for the development set is")
    assert problem.endswith(f"decoded with them: {reason}")


def test_fertilities_need_a_bound():
    (problem,) = problems(labelled("fertility"), ("max_fertility", "maximum"))
    assert problem == f"{HERE}labels are fertilities, and its Config has no field max_fertility to bound them"


def test_alignments_need_a_role_for_the_aligner():
    (problem,) = problems(labelled("ctc_alignment"))
    assert problem == f"{HERE}labels are alignments, and it has no role 'ctc' for the model that aligns"


def test_alignments_need_the_aligner():
    (problem,) = problems(labelled("ctc_alignment", ROLE))
    assert (
        problem == f"{HERE}labels for text are made by the companion 'ctc', and needs() of its Config does not name it"
    )


def test_fertilities_of_speech_need_the_aligner(monkeypatch):
    monkeypatch.setattr(made_up.Dates, "modality", "speech")
    (problem,) = problems(labelled("fertility"))
    assert problem.startswith(f"{HERE}labels for speech are made by the companion 'ctc'")
