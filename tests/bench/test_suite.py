"""Suite files: what they expand to, how systems are chosen, and how arguments override them."""

import json

import pytest

from bench.errors import UserError
from bench.settings_labels import settings_labels
from bench.suite import SuiteError
from tests.bench import made_up
from tests.bench.made_up import SUITE, Settings, changed, load


@pytest.fixture(autouse=True)
def _made_up(monkeypatch, tmp_path):
    made_up.register(monkeypatch)
    monkeypatch.chdir(tmp_path)


def test_cells_and_models():
    suite = load()
    cells = suite.cells()
    assert [(c.model.system, c.model.data, c.model.teacher, c.model.seed, c.settings_label) for c in cells] == [
        ("transformer", "raw", None, 1, "beam=1"),
        ("transformer", "raw", None, 1, "beam=5"),
        ("ctc", "raw", None, 1, ""),
        ("ctc", "distilled", "transformer", 1, ""),
    ]
    assert cells[1].settings == {"beam": 5, "alpha": 0.6, "penalty": "gnmt", "stop": False}
    assert [(m.system, m.data) for m in suite.models()] == [
        ("transformer", "raw"),
        ("ctc", "raw"),
        ("ctc", "distilled"),
    ]
    # Own config over backbone over defaults.
    assert suite.models()[0].config == {"encoder_layers": 2, "model_dim": 128, "num_heads": 4, "dropout": 0.1}
    assert suite.models()[1].config == {
        "encoder_layers": 6, "model_dim": 128, "num_heads": 4, "dropout": 0.1, "upsampling": 2,
    }  # fmt: skip
    assert suite.train.budget.target_tokens == 600_000
    assert suite.train.learning_rate == 0.001
    assert suite.measure.speed.batch_sizes == (1, 8)
    assert [(r.system, r.settings_label) for r in suite.references] == [
        ("transformer", "beam=1"),
        ("transformer", "beam=5"),
    ]


def test_tasks_and_seeds_multiply():
    text = changed("  - dates\n", "  - dates\n  - {task: dates, target_language: fr, snr_db: [0, 20.0]}\n")
    suite = load(changed("  learning_rate", "  seeds: [3, 1]\n  learning_rate", text))
    assert [(t.name, t.task) for t in suite.tasks] == [("dates", "dates"), ("dates-fr-0-20-0", "dates")]
    assert suite.tasks[1].config == {"target_language": "fr", "folder": None, "snr_db": [0.0, 20.0]}
    assert len(suite.models()) == 2 * 3 * 2  # tasks x (system, data) x seeds
    assert [m.seed for m in suite.models()[:2]] == [3, 1]
    json.dumps([m.config for m in suite.models()])  # plain JSON values


def test_a_task_keeps_its_plain_name_while_it_is_alone_and_any_name_it_is_given():
    alone = load(changed("  - dates\n", "  - {task: dates, target_language: fr}\n"))
    assert alone.tasks[0].name == "dates"
    named = load(changed("  - dates\n", "  - {task: dates, name: datums, target_language: nl}\n  - dates\n"))
    assert [t.name for t in named.tasks] == ["datums", "dates"]


def test_a_path_in_a_task_stays_as_it_was_given():
    suite = load(changed("  - dates\n", "  - {task: dates, folder: ~/x/../y}\n"))
    assert suite.tasks[0].config["folder"] == "~/x/../y"


@pytest.mark.parametrize(
    ("keys", "data"),
    [
        ("teacher: transformer", ["distilled"]),
        ("teacher: transformer\n    data: distilled", ["distilled"]),
        ("data: raw", ["raw"]),
        ("train: {}", ["raw"]),
    ],
)
def test_data_follows_from_the_teacher_unless_it_is_given(keys, data):
    suite = load(changed("teacher: transformer\n    data: [raw, distilled]", keys))
    assert [m.data for m in suite.models() if m.system == "ctc"] == data


def test_a_system_departs_from_the_recipe():
    suite = load(changed("    config:\n", "    train: {budget: {minutes: 3}, clip_norm: 2}\n    config:\n"))
    own = suite.models()[-1].train
    assert own.budget.minutes == 3
    assert own.budget.target_tokens is None  # a budget is replaced as a whole
    assert own.clip_norm == 2
    assert own.learning_rate == 0.001
    assert suite.models()[0].train == suite.train


def test_anchors_merge_keys_and_x_keys():
    text = changed("backbone:", "x-shared: &shared {encoder_layers: 3, dropout: 0}\nbackbone:")
    suite = load(changed("config: {encoder_layers: 2}", "config: {<<: *shared, dropout: 0.5}", text))
    assert suite.models()[0].config["encoder_layers"] == 3
    assert suite.models()[0].config["dropout"] == 0.5


def test_references_can_be_chosen():
    suite = load(SUITE + "references: [{system: transformer, settings: {beam: 5, alpha: 0.6}}]\n")
    assert [(r.system, r.settings["beam"], r.settings_label) for r in suite.references] == [
        ("transformer", 5, "beam=5")
    ]
    without = changed("  - name: transformer\n    family: transformer", "  - name: transformer\n    family: ctc")
    without = changed("settings: [{beam: 1}, {beam: 5}]", "settings: [{}]", without)
    without = changed("    teacher: transformer\n    data: [raw, distilled]\n", "", without)
    assert load(without).references == ()


@pytest.mark.parametrize(
    ("entries", "labels"),
    [
        ([{}], [""]),
        ([{"beam": 1}], ["beam=1"]),  # set, though it is the default
        ([{"alpha": 0.6, "beam": 5}], ["beam=5 alpha=0.6"]),  # in the order of the fields
        ([{}, {"beam": 5}, {"beam": 5, "stop": True}], ["beam=1 stop=false", "beam=5", "beam=5 stop=true"]),
        ([{"alpha": 1.0}, {"alpha": 1.0000001}], ["alpha=1", "alpha=1.0000001"]),
        ([{"penalty": "power"}, {}], ["penalty=power", "penalty=gnmt"]),
    ],
)
def test_labels(entries, labels):
    assert settings_labels([Settings(**entry) for entry in entries]) == labels


def test_settings_for_all_systems_reach_those_that_have_the_field():
    shared = changed("train:\n", "decoding: {alpha: 0.9}\ntrain:\n")
    own = changed("settings: [{beam: 1}, {beam: 5}]", "settings: [{beam: 1}, {beam: 5, alpha: 0.6}]", shared)
    suite = load(own + "references: [{system: transformer, settings: {beam: 1}}]\n")
    first, second, *others = suite.cells()
    assert (first.settings["alpha"], first.settings_label) == (0.9, "beam=1 alpha=0.9")
    assert (second.settings["alpha"], second.settings_label) == (0.6, "beam=5 alpha=0.6")
    assert all("alpha" not in cell.settings for cell in others), "the family has no such field"
    assert suite.references[0].settings == first.settings


def test_labels_leave_out_what_tables_say_for_all():
    entries = [Settings(beam=1, alpha=0.9), Settings(beam=5, alpha=0.9), Settings(beam=5, alpha=0.6)]
    assert settings_labels(entries, {"alpha": 0.9}) == ["beam=1", "beam=5", "beam=5 alpha=0.6"]


def test_settings_for_all_systems_are_checked():
    with pytest.raises(SuiteError, match=r"decoding\.alpa: unknown key 'alpa'; did you mean 'alpha'\?"):
        load(changed("train:\n", "decoding: {alpa: 0.9}\ntrain:\n"))
    with pytest.raises(SuiteError, match=r"s\.yaml:5: decoding\.alpha: must be a number, got \"high\""):
        load(changed("train:\n", "decoding: {alpha: high}\ntrain:\n"))


def test_select_keeps_the_teacher_as_a_model_only():
    text = changed("  learning_rate", "  seeds: [1, 2]\n  learning_rate")
    suite = load(changed("    config:\n", "    train: {seeds: [2]}\n    config:\n", text)).select(["ctc"])
    assert [(m.system, m.data, m.seed) for m in suite.models()] == [
        ("transformer", "raw", 2),
        ("ctc", "raw", 2),
        ("ctc", "distilled", 2),
    ]
    assert {c.model.system for c in suite.cells()} == {"ctc"}
    assert suite.references == ()


def test_select_by_name():
    suite = load()
    assert [m.system for m in suite.select(["transformer"]).models()] == ["transformer"]
    assert suite.select(["ctc", "transformer"]) == suite
    assert suite.select(["transformer"]).references == suite.references
    with pytest.raises(
        SuiteError, match=r"--only: unknown system 'ctx'; did you mean 'ctc'\? there are: transformer, ctc"
    ):
        suite.select(["ctx"])
    with pytest.raises(UserError, match="names no system"):
        suite.select([])


def test_overrides():
    suite = load(
        overrides=[
            "train.budget.minutes=1.5",
            "systems.ctc.config.model_dim=64",
            "systems.0.settings=[{beam: 2}]",
            "systems.transformer.settings.0.alpha=1e0",
            "tasks.dates.target_language=no",
            "measure.speed=null",
            "distill.beam=3",
        ]
    )
    assert suite.train.budget.minutes == 1.5
    assert suite.train.budget.target_tokens is None
    assert [m.config["model_dim"] for m in suite.models()] == [128, 64, 64]
    assert suite.cells()[0].settings_label == "beam=2 alpha=1"
    assert suite.tasks[0].config["target_language"] == "no"
    assert suite.measure.speed is None
    assert suite.distill.beam == 3


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        (
            "trian.threads=2",
            "--set trian.threads=2: trian: unknown key; did you mean 'train'? allowed: backbone, decoding,",
        ),
        ("train.seed=2", "--set train.seed=2: train.seed: unknown key; did you mean 'seeds'? allowed: adam_beta2,"),
        ("train.threads=two", '--set train.threads=two: train.threads: must be an integer, got "two"'),
        ("systems.ctx.data=raw", "--set systems.ctx.data=raw: unknown system 'ctx'; did you mean 'ctc'? there are:"),
        ("tasks.datas.folder=x", "--set tasks.datas.folder=x: unknown task 'datas'; did you mean 'dates'? there are:"),
        (
            "systems.ctc.config.model_dim=63",
            "s.yaml:17: systems[1].config: model_dim 63 is not divisible by num_heads 4 "
            "(with --set systems.ctc.config.model_dim=63)",
        ),
        (
            "measure.speed.batch_sizes.2=4",
            "--set measure.speed.batch_sizes.2=4: measure.speed.batch_sizes has no item '2'",
        ),
        ("name.x=4", "--set name.x=4: name is neither a mapping nor a list"),
        ("name", "--set name: must look like key.path=value"),
        ("a..b=1", "--set a..b=1: must look like key.path=value"),
        ("name=[", "--set name=[: not valid YAML"),
        ("backbone={dropout: 0, dropout: 0}", "--set backbone={dropout: 0, dropout: 0}: duplicate key"),
    ],
)
def test_an_override_is_refused_like_the_file(override, answer):
    with pytest.raises(SuiteError) as caught:
        load(overrides=[override])
    (problem,) = caught.value.problems
    assert problem.startswith(answer)
