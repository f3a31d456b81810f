"""Every mistake in a suite file is answered with one line that says where and what."""

import copy
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.suite import SuiteError, load_suite
from tests.bench import made_up
from tests.bench.made_up import SUITE, changed, load


@pytest.fixture(autouse=True)
def _made_up(monkeypatch, tmp_path):
    made_up.register(monkeypatch)
    monkeypatch.chdir(tmp_path)


def refused(old="", new="", text=SUITE, overrides=()):
    """The lines with which a suite is refused after `old` has become `new`."""
    with pytest.raises(SuiteError) as caught:
        load(changed(old, new, text) if old else text, overrides)
    assert str(caught.value).splitlines() == list(caught.value.problems)  # a problem is one line
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("old", "new", "answer"),
    [
        # misspelt keys at every level
        ("measure:", "mesure:", "19: mesure: unknown key; did you mean 'measure'? allowed: backbone, decoding,"),
        (
            "- dates",
            "- {task: dates,\n     folde: x}",
            "4: tasks[0].folde: unknown key; did you mean 'folder'? allowed: folder,",
        ),
        (
            "learning_rate:",
            "lerning_rate:",
            "7: train.lerning_rate: unknown key; did you mean 'learning_rate'? allowed:",
        ),
        (
            "{target_tokens:",
            "{target_token: 1, minutes:",
            "6: train.budget.target_token: unknown key; did you mean 'target_tokens'?",
        ),
        (
            "    config:\n",
            "    confg:\n",
            "17: systems[1].confg: unknown key; did you mean 'config'? allowed: companions, config, data,",
        ),
        ("upsampling: 2", "upsamplin: 2", "18: systems[1].config.upsamplin: unknown key; did you mean 'upsampling'?"),
        (
            "{beam: 5}",
            "{beem: 5}",
            "12: systems[0].settings[1].beem: unknown key; did you mean 'beam'? allowed: alpha, beam, penalty, stop",
        ),
        ("batch_sizes:", "batch_size:", "20: measure.speed.batch_size: unknown key; did you mean 'batch_sizes'?"),
        (
            "num_heads: 4",
            "num_head: 4",
            "4: backbone.num_head: unknown key 'num_head'; did you mean 'num_heads'? there are:",
        ),
        (
            "    config:\n",
            "    companions: {draft: {system: ctc, dat: raw}}\n    config:\n",
            "17: systems[1].companions.draft.dat: unknown key; did you mean 'data'? allowed: data, system",
        ),
        # unknown names
        ("- dates", "- datse", "3: tasks[0].task: unknown task 'datse'; did you mean 'dates'? there are: dates"),
        (
            "family: ctc",
            "family: ctcc",
            "14: systems[1].family: unknown family 'ctcc'; did you mean 'ctc'? there are: ctc, transformer",
        ),
        (
            "teacher: transformer",
            "teacher: tranformer",
            "15: systems[1].teacher: unknown system 'tranformer'; did you mean 'transformer'?",
        ),
        (
            "data: [raw, distilled]",
            "data: [raw, distiled]",
            "16: systems[1].data[1]: \"distiled\" is not one of the choices; did you mean 'distilled'? allowed: raw,",
        ),
        (
            "data: [raw, distilled]",
            "data: raws",
            "16: systems[1].data: \"raws\" is not one of the choices; did you mean 'raw'? allowed: raw, distilled",
        ),
        # wrong types, without conversion
        ("num_heads: 4", 'num_heads: "4"', '4: backbone.num_heads: must be an integer, got "4"'),
        ("num_heads: 4", "num_heads: true", "4: backbone.num_heads: must be an integer, got true"),
        ("num_heads: 4", "num_heads: 4.0", "4: backbone.num_heads: must be an integer, got 4.0"),
        ("num_heads: 4", "num_heads: [4]", "4: backbone.num_heads: must be an integer, got a list"),
        ("learning_rate: 1e-3", "learning_rate: true", "7: train.learning_rate: must be a number, got true"),
        ("learning_rate: 1e-3", "learning_rate:", "7: train.learning_rate: must be a number, got nothing"),
        ("name: quick", "name: 12", "1: name: must be text, got 12"),
        ("    config: {encoder_layers: 2}", "    config: [2]", "11: systems[0].config: must be a mapping, got a list"),
        ("[{beam: 1}, {beam: 5}]", "{beam: 1}", "12: systems[0].settings: must be a list, got a mapping"),
        ("[{beam: 1}, {beam: 5}]", "[{beam: 1}, 5]", "12: systems[0].settings[1]: must be a mapping, got 5"),
        ("- dates", "- [dates]", "3: tasks[0]: must be a task's name or a mapping, got a list"),
        ("upsampling: 2", "upsampling: 2.5", "18: systems[1].config.upsampling: 2.5 is not one of the choices"),
        ("- dates", "- {task: dates, snr_db: [1, x]}", '3: tasks[0].snr_db[1]: must be a number, got "x"'),
        # out of range
        ("num_heads: 4", "num_heads: 0", "4: backbone.num_heads: 0 is out of range; allowed: >= 1"),
        ("num_heads: 4", "dropout: 1", "4: backbone.dropout: 1 is out of range; allowed: >= 0 and < 1"),
        ("{beam: 5}", "{beam: 0}", "12: systems[0].settings[1].beam: 0 is out of range; allowed: >= 1"),
        ("[1, 8]", "[0, 8]", "20: measure.speed.batch_sizes[0]: 0 is out of range; allowed: >= 1"),
        ("600_000", "-1", "6: train.budget.target_tokens: -1 is out of range; allowed: >= 0"),
        ("name: quick", "name: Quick one", '1: name: "Quick one" is out of range; allowed: matching ^[a-z0-9_-]+$'),
        ("[1, 8]", "[8, 1]", "20: measure.speed.batch_sizes: batch sizes must rise, got 8, 1"),
        ("[1, 8]", "[1, 8], max_batches: [3]", "20: measure.speed: max_batches has 1 numbers for 2 batch_sizes"),
        ("[1, 8]", "[8, 8]", "20: measure.speed.batch_sizes: batch sizes must rise, got 8, 8"),
        ("  learning_rate: 1e-3", "  seeds: [1, 1]", "7: train.seeds: seeds must differ, got 1, 1"),
        # several keys together
        (
            "{target_tokens: 600_000}",
            "{target_tokens: 1, minutes: 1}",
            "6: train.budget: set exactly one of target_tokens and minutes",
        ),
        (
            "config: {encoder_layers: 2}",
            "config: {encoder_layers: 2, model_dim: 30}",
            "11: systems[0].config: model_dim 30 is not divisible by num_heads 4",
        ),
        ("{beam: 5}", "{alpha: 0.6}", "12: systems[0].settings[1]: the same settings as settings[0]"),
        ("[raw, distilled]", "[raw, raw, distilled]", "16: systems[1].data: names the same data twice"),
        (
            "[raw, distilled]",
            "raw",
            "15: systems[1].teacher: a teacher is of no use with data raw; add distilled to data",
        ),
        ("    teacher: transformer\n", "", "15: systems[1].data: distilled data needs a teacher"),
        ("teacher: transformer", "teacher: ctc", "15: systems[1].teacher: 'ctc' cannot be its own teacher"),
        (
            "- dates",
            "- dates\n  - dates",
            "4: tasks[1]: name 'dates' is taken by tasks[0]; give this task a name of its own",
        ),
        (
            "    config:\n",
            "    train: {seeds: [1, 7]}\n    config:\n",
            "15: systems[1].teacher: 'transformer' is not trained with seed 7",
        ),
        (
            "    config:\n",
            "    train: {budget: {hours: 7}}\n    config:\n",
            "17: systems[1].train.budget.hours: unknown key; allowed: minutes, target_tokens",
        ),
        # missing
        ("    family: ctc\n", "", "13: systems[1].family: required key is missing"),
        ("  - dates\n", "  - {folder: x}\n", "3: tasks[0].task: required key is missing"),
        ("  - dates\n", "  []\n", "2: tasks: a list of 0 is out of range; allowed: 1 or more items"),
        ("  budget: {target_tokens: 600_000}\n", "", "5: train.budget: required key is missing"),
        # references
        (
            "measure:",
            "references: [{system: ctc}]\nmeasure:",
            "19: references[0].system: a reference must be autoregressive, and 'ctc' is of family ctc",
        ),
        (
            "measure:",
            "references:\n  - {system: transformer, settings: {beam: 3}}\nmeasure:",
            "20: references[0].settings: not among the settings of 'transformer': beam=1 | beam=5",
        ),
        (
            "measure:",
            "references:\n  - system: transformer\n    settings: {bean: 3}\nmeasure:",
            "21: references[0].settings.bean: unknown key; did you mean 'beam'?",
        ),
        (
            "measure:",
            "references: [{system: trans}]\nmeasure:",
            "19: references[0].system: unknown system 'trans'; did you mean 'transformer'?",
        ),
        (
            "measure:",
            "references: [{system: transformer}, {system: transformer, settings: {beam: 1}}]\nmeasure:",
            "19: references[1]: the same reference twice",
        ),
        # YAML
        ("name: quick", "name: quick\nname: slow", "2: name: duplicate key; first on line 1"),
        ("{beam: 5}", "{beam: 5, beam: 6}", "12: systems[0].settings[1].beam: duplicate key; first on line 12"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(old, new, answer):
    problems = refused(old, new)
    assert problems[0].startswith(f"s.yaml:{answer}")
    assert len(problems) == 1


def test_system_names_differ():
    text = changed("    teacher: transformer\n    data: [raw, distilled]\n", "")
    assert refused("name: ctc", "name: transformer", text=text) == [
        "s.yaml:13: systems[1].name: name 'transformer' is taken; system names must differ"
    ]


@pytest.mark.parametrize("teacher", ["family: ctc", "data: distilled"])
def test_who_can_teach(teacher):
    text = SUITE.replace("    settings: [{beam: 1}, {beam: 5}]\n", "")
    text += "references: []\n"
    if teacher == "family: ctc":
        problems = refused("family: transformer", "family: ctc", text=text)
        assert problems == [
            "s.yaml:14: systems[1].teacher: a teacher must be autoregressive, and 'transformer' is of family ctc"
        ]
    else:
        problems = refused(
            "    config: {encoder_layers: 2}",
            "    data: distilled\n    teacher: ctc",
            text=text,
        )
        assert problems == [
            "s.yaml:12: systems[0].teacher: a teacher must be autoregressive, and 'ctc' is of family ctc",
            "s.yaml:15: systems[1].teacher: a teacher must be trained on raw data, and 'transformer' is not; "
            "add raw to its data",
        ]


def test_all_mistakes_are_told_at_once_and_each_once():
    text = SUITE
    for old, new in [
        ("num_heads: 4", "num_heads: no"),  # inherited by both systems
        ("learning_rate: 1e-3", "learning_rate: 0"),  # inherited by both systems
        ("{encoder_layers: 2}", "{encoder_layers: -2, x: 1}"),
        ("{beam: 5}", "{beam: x}"),
        ("family: ctc", "family: ctc\n    colour: red"),
        ("[1, 8]", "1"),
    ]:
        text = changed(old, new, text)
    assert [problem.split(": ")[:2] for problem in refused(text=text)] == [
        ["s.yaml:4", "backbone.num_heads"],
        ["s.yaml:7", "train.learning_rate"],
        ["s.yaml:11", "systems[0].config.encoder_layers"],
        ["s.yaml:11", "systems[0].config.x"],
        ["s.yaml:12", "systems[0].settings[1].beam"],
        ["s.yaml:15", "systems[1].colour"],
        ["s.yaml:21", "measure.speed.batch_sizes"],
    ]


def places(value, path=()):
    """The paths of all values within `value`."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


# The names as PyYAML's own loader reads them; 1e-3 is text there.
PLAIN = yaml.safe_load(changed("1e-3", "0.001") + "references: [{system: transformer, settings: {beam: 5}}]\n")
NOISE = st.sampled_from(
    [None, True, 0, -1, 2**70, 0.5, "", "ctc", "a.b", "..", "\u2028", [], {}, [[]], [{}], [None], {"x": None}]
)


def outcome(text):
    """The cells of a suite, or the lines with which it is refused."""
    try:
        return load(text).cells(), []
    except SuiteError as error:
        return [], str(error).splitlines()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([path for path in places(PLAIN) if path]), NOISE)
def test_whatever_stands_anywhere_is_taken_or_refused_in_lines(path, noise):
    content = copy.deepcopy(PLAIN)
    parent = content
    for part in path[:-1]:
        parent = parent[part]
    parent[path[-1]] = noise
    cells, problems = outcome(yaml.safe_dump(content))
    assert cells or problems
    assert all(problem.startswith("s.yaml:") for problem in problems)


def test_a_mistake_in_an_anchor_is_told_where_it_stands():
    text = changed("backbone:", "x-shared: &shared {encoder_layer: 3}\nbackbone:")
    problems = refused("config: {encoder_layers: 2}", "config: {<<: *shared}", text=text)
    assert problems[0].startswith(
        "s.yaml:4: systems[0].config.encoder_layer: unknown key; did you mean 'encoder_layers'?"
    )


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (b"", "s.yaml:1: the file is empty"),
        (b"# nothing\n", "s.yaml:1: the file is empty"),
        (b"- a\n", "s.yaml:1: must be a mapping, got a list"),
        (b"name: [quick\n", "s.yaml:2: not valid YAML: "),
        (b"name: qu\xefck\n", "s.yaml:1: not UTF-8 text (byte 0xef)"),
    ],
)
def test_a_file_that_is_no_suite(tmp_path, monkeypatch, content, answer):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_bytes(content)
    with pytest.raises(SuiteError) as caught:
        load_suite(Path("s.yaml"))
    assert str(caught.value).startswith(answer)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(SuiteError, match=r"gone\.yaml: no such file"):
        load_suite(tmp_path / "gone.yaml")


def test_an_external_family(tmp_path, monkeypatch):
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from models.interface import Family, Model, Options\n"
        "class Config(Options):\n    model_dim: int = 4\n"
        "class Settings(Options):\n    pass\n"
        "FAMILY = Family('mine', Config, Settings, Model, False, 'Mine')\n"
    )
    (tmp_path / "house" / "broken.py").write_text("1 / 0\n")
    (tmp_path / "house" / "exits.py").write_text("import sys\nsys.exit('bye')\n")
    (tmp_path / "house" / "exits_silently.py").write_text("raise SystemExit\n")
    (tmp_path / "house" / "other.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    text = changed("    family: ctc", "    family: house.mine", changed("      upsampling: 2", "      {}"))
    assert load(text).models()[-1].config == {"model_dim": 128}
    for module, answer in [
        ("broken", "family 'house.broken' cannot be imported: ZeroDivisionError: division by zero"),
        ("exits", "family 'house.exits' cannot be imported: SystemExit: bye"),
        ("exits_silently", "family 'house.exits_silently' cannot be imported: SystemExit"),
        ("other", "module 'house.other' defines no FAMILY"),
        ("gone", "family 'house.gone' cannot be imported: No module named 'house.gone'"),
    ]:
        with pytest.raises(SuiteError) as caught:
            load(changed("house.mine", f"house.{module}", text))
        assert str(caught.value) == f"s.yaml:14: systems[1].family: {answer}"
    for name in [name for name in sys.modules if name.split(".")[0] == "house"]:
        monkeypatch.delitem(sys.modules, name)
