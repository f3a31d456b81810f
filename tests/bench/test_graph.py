"""From a suite to its steps: which there are, what they depend on, what their keys depend on."""

from collections import Counter
from dataclasses import replace

import pytest

from bench import step_keys
from bench.cell_steps import Conditions
from bench.errors import DataError, UserError
from bench.graph import build_graph
from bench.names import slug
from bench.suite import load_suite
from models import registry
from models.interface import Family, Model, Options, Role

SUITE = """
name: small
tasks:
  - {{task: parallel_text, name: text, vocab_size: 400, {files}}}
train: {{budget: {{target_tokens: 4_000_000}}, seeds: [1, 2]}}
systems:
  - {{name: base, family: transformer, settings: [{{beam: 1}}, {{beam: 5, alpha: 0.6}}]}}
  - {{name: nat, family: ctc, teacher: base, data: [raw, distilled], settings: [{{beam: 1}}]}}
"""
CPU = Conditions("cpu", "float32", 4, "this machine")


@pytest.fixture(autouse=True)
def named_code(monkeypatch):
    """Let the fingerprint of code be the names of its modules."""
    monkeypatch.setattr(step_keys, "code_fingerprint", " ".join)


@pytest.fixture
def suite_path(tmp_path):
    files = []
    for split in ("train", "dev", "test"):
        for language in ("source", "target"):
            path = tmp_path / f"{split}.{language}"
            path.write_text("a b\nb c\n")
            files.append(f"{split}_{language}: {path}")
    path = tmp_path / "small.yaml"
    path.write_text(SUITE.format(files=", ".join(files)))
    return path


@pytest.fixture
def small(suite_path):
    """Return a function from overrides to the graph; its `path` is the suite's file."""

    def build(*overrides, conditions=CPU):
        return build_graph(load_suite(suite_path, overrides), conditions)

    build.path = suite_path
    return build


def ids(steps):
    return {step.label: step.id for step in steps}


def test_every_model_and_cell_has_its_steps_once(small):
    graph = small()
    assert [step.label for step in graph.prepares] == ["prepare text"]
    # 2 seeds x (base raw, nat raw, nat distilled), 2 teachers' outputs, 2 seeds x (2 base settings, 2 nat data).
    assert Counter(step.kind for step in graph.work) == {"train": 6, "distill": 2, "evaluate": 8}
    assert [c.id for c in graph.cells[:4]] == [
        "base-raw-s1-beam=1",
        "base-raw-s1-beam=5-alpha=0.6",
        "base-raw-s2-beam=1",
        "base-raw-s2-beam=5-alpha=0.6",
    ]
    assert len({step.id for step in graph.work}) == 16


def test_a_student_depends_on_its_teacher_of_the_same_seed(small):
    graph = small()
    steps = {step.label: step for step in graph.work}
    student = steps["train nat (distilled, seed 2) on text"]
    distill = steps["distill base (raw, seed 2) on text"]
    teacher = steps["train base (raw, seed 2) on text"]
    assert student.parents == {"data": graph.prepares[0].id, "targets": distill.id}
    assert distill.parents == {"data": graph.prepares[0].id, "model": teacher.id}
    evaluation = steps["evaluate nat [beam=1] (distilled, seed 2) on text"]
    assert evaluation.parents == {"data": graph.prepares[0].id, "model": student.id}


def test_companions_are_parents_of_the_steps_that_need_them(small, monkeypatch):
    class Needy(Options):
        def needs(self, modality="text"):
            return frozenset({"ctc"})

    class Rescored(Options):
        def needs(self, modality="text"):
            return frozenset({"teacher"})

    roles = (Role("ctc", ""), Role("teacher", ""))
    aligned = Family("aligned", Needy, Rescored, Model, False, "A", roles=roles, labels="ctc_alignment")
    known = registry.built_in_families()
    monkeypatch.setattr(registry, "built_in_families", lambda: {**known, "aligned": aligned})
    system = "  - {name: one, family: aligned, teacher: base, companions: {ctc: nat}}\n"
    graph = build_graph(load_suite(extended(small.path, system)), CPU)
    steps = {step.label: step for step in graph.work}
    teacher, ctc = steps["train base (raw, seed 2) on text"], steps["train nat (distilled, seed 2) on text"]
    targets = steps["distill base (raw, seed 2) on text"]
    label = steps["label (ctc_alignment) for one (distilled, seed 2) on text"]
    train = steps["train one (distilled, seed 2) on text"]
    data = graph.prepares[0].id
    assert label.parents == {"data": data, "targets": targets.id, "companion_ctc": ctc.id}
    assert train.parents == label.parents | {"labels": label.id}
    assert train.spec["companions"] == {"ctc": {"family": "ctc", "config": ctc.spec["config"]}}
    evaluation = steps["evaluate one (distilled, seed 2) on text"]
    assert evaluation.parents == {"data": data, "model": train.id, "companion_teacher": teacher.id}
    measure = graph.measures()["text"]
    index = [cell["id"] for cell in measure.spec["cells"]].index("one-distilled-s2")
    assert measure.parents[f"companion{index}_teacher"] == teacher.id
    assert measure.spec["cells"][index]["companions"] == {"teacher": evaluation.spec["companions"]["teacher"]}


def extended(path, lines):
    """The suite file with lines at its end."""
    path.write_text(path.read_text() + lines)
    return path


def test_specs_say_what_the_steps_need(small):
    graph = small()
    steps = {step.label: step for step in graph.work}
    train = steps["train nat (raw, seed 2) on text"].spec
    assert (train["family"], train["seed"], train["task"], train["device"]) == ("ctc", 2, "parallel_text", "cpu")
    assert train["train"]["budget"] == {"target_tokens": 4_000_000, "minutes": None}
    assert steps["distill base (raw, seed 1) on text"].spec["distill"]["beam"] == 5
    evaluation = steps["evaluate base [beam=5 alpha=0.6] (raw, seed 1) on text"].spec
    assert evaluation["settings"]["beam"] == 5
    assert evaluation["quality"]["split"] == "test"


def test_the_measurement_covers_the_cells_that_made_it(small):
    graph = small()
    measure = graph.measures()["text"]
    assert measure.alone
    assert measure.threads == measure.spec["speed"]["threads"] == 4
    assert len(measure.spec["cells"]) == 8
    assert measure.spec["references"] == [
        "base-raw-s1-beam=1",
        "base-raw-s1-beam=5-alpha=0.6",
        "base-raw-s2-beam=1",
        "base-raw-s2-beam=5-alpha=0.6",
    ]
    labels = [cell["label"] for cell in measure.spec["cells"]]
    assert labels[4:6] == ["nat [beam=1]", "nat [beam=1]"]
    assert labels[6:] == ["nat (distilled) [beam=1]", "nat (distilled) [beam=1]"]
    lost = graph.cells[0].evaluation
    without = graph.measures(lambda step: step.id != lost.id)["text"]
    assert [cell["id"] for cell in without.spec["cells"]] == [cell["id"] for cell in measure.spec["cells"]][1:]
    assert without.parents["model0"] == graph.cells[1].model.id
    assert without.parents["hypotheses0"] == graph.cells[1].evaluation.id
    assert without.key != measure.key
    assert graph.measures(lambda step: False) == {}
    assert small("measure.speed=null").measures() == {}


def test_keys_do_not_change_from_visit_to_visit(small):
    assert ids(small().work) == ids(small().work)
    assert small().measures()["text"].id == small().measures()["text"].id


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("train.seeds=[1, 2, 3]", set()),
        ("measure.speed.min_seconds=9", set()),
        ("train.learning_rate=0.1", {"train", "distill", "evaluate"}),
        ("train.init=base", {"train nat", "evaluate nat"}),
        ("distill.beam=4", {"train distilled", "distill", "evaluate distilled"}),
        ("measure.quality.split=dev", {"evaluate"}),
        ("systems.nat.config.model_dim=256", {"train nat", "evaluate nat"}),
        ("tasks.text.vocab_size=401", {"prepare", "train", "distill", "evaluate"}),
    ],
)
def test_a_change_touches_the_steps_that_depend_on_it(small, override, changed):
    before, after = small(), small(override)
    old = ids([*before.prepares, *before.work])
    new = ids([*after.prepares, *after.work])
    differ = {label for label in old if new[label] != old[label]}
    expected = {label for label in old if any(all(word in label for word in words.split()) for words in changed)}
    assert differ == expected


def test_keys_depend_on_code_libraries_device_and_input_files(small, monkeypatch, tmp_path):
    before = ids(small().work)

    def all_differ(graph) -> bool:
        return not set(before.values()) & set(ids(graph.work).values())

    assert all_differ(small(conditions=replace(CPU, device="cuda")))
    assert all_differ(small(conditions=replace(CPU, dtype="bfloat16")))
    with monkeypatch.context() as patch:
        patch.setattr(step_keys, "code_fingerprint", lambda modules: " ".join(modules) + "changed")
        assert all_differ(small())
    with monkeypatch.context() as patch:
        patch.setattr(step_keys, "version", lambda name: "0.0")
        assert all_differ(small())
    (tmp_path / "train.source").write_text("a b\nb d\n")
    assert all_differ(small())


def test_the_code_of_a_step_is_its_own_the_family_and_the_task(small, monkeypatch):
    seen = []
    monkeypatch.setattr(step_keys, "code_fingerprint", lambda modules: seen.append(modules) or "")
    small().measures()
    assert ["bench.preparation", "bench.tasks.parallel_text"] in seen
    assert ["bench.tasks.parallel_text", "bench.training", "models.ctc"] in seen
    assert ["bench.speed", "models.ctc", "models.transformer"] in seen


def test_times_of_another_machine_are_not_reused(small):
    other = small(conditions=replace(CPU, machine="another"))
    assert other.measures()["text"].key != small().measures()["text"].key
    assert ids(other.work) == ids(small().work)


def test_a_shared_teacher_is_trained_once(small):
    graph = small()
    distills = {step.id for step in graph.work if step.kind == "distill"}
    teachers = {step.parents["model"] for step in graph.work if step.kind == "distill"}
    assert len(distills) == len(teachers) == 2
    assert teachers <= {c.model.id for c in graph.cells}


def test_estimates_follow_the_budget(small):
    assert {s.seconds for s in small().work if s.kind == "train"} == {400.0}  # 4 M tokens at 10,000 a second
    timed = small("train.budget.minutes=3")
    assert {s.seconds for s in timed.work if s.kind == "train"} == {180.0}
    assert all(step.time_limit > step.seconds for step in timed.work)
    measure = small("measure.speed.batch_sizes=[1, 8]").measures()["text"]
    assert measure.seconds == pytest.approx(8 * 2 * 8 * 160 * 0.003)  # cells x batch sizes x rounds x sentences


def test_a_missing_input_file_is_told_before_anything_runs(suite_path, tmp_path):
    (tmp_path / "dev.target").unlink()
    with pytest.raises(DataError, match=r"dev\.target"):
        build_graph(load_suite(suite_path), CPU)


def test_slugs_are_fit_for_file_names():
    assert slug("beam=5 alpha=0.6") == "beam=5-alpha=0.6"
    assert slug("path/../to: {a,b}") == "path-..-to-a-b"
    assert slug("") == ""


def test_what_settings_load_by_name_is_part_of_decoding_and_not_of_training(small, monkeypatch):
    plain = ids(small().work)
    settings = type(registry.load_family("ctc").settings())
    monkeypatch.setattr(settings, "modules", lambda self: ("bench.made_up_engine",))
    monkeypatch.setattr(settings, "packages", lambda self: ("numpy",))
    other = ids(small().work)
    assert {label for label in plain if plain[label] != other[label]} == {
        label for label in plain if label.startswith("evaluate nat")
    }


def test_a_package_that_is_missing_is_told_before_anything_runs(small, monkeypatch):
    monkeypatch.setattr(type(registry.load_family("ctc").settings()), "packages", lambda self: ("no_such_engine",))
    with pytest.raises(UserError, match=r"nat \[.*\] needs the package no_such_engine, which is not installed: pip"):
        small()


SEARCH = "search={trials: 2, budget: {target_tokens: 10_000}, train: {learning_rate: [0.001, 0.004]}}"


def test_a_search_precedes_every_training(small):
    """Trials have the first seed, so that both seeds of a model share them and what was chosen."""
    graph = small(SEARCH)
    kinds = Counter(step.kind for step in graph.work)
    assert kinds == {"train": 6 + 3 * 2, "choose": 3, "distill": 2, "evaluate": 8}
    by_id = {step.id: step for step in graph.work}
    steps = {step.label: step for step in graph.work}
    for seed in (1, 2):
        choice = by_id[steps[f"train nat (distilled, seed {seed}) on text"].parents["choice"]]
        assert choice.label == "choose hyper-parameters of nat (distilled, seed 1) on text"
        trials = [by_id[choice.parents[f"trial{i}"]] for i in range(2)]
        assert [trial.label for trial in trials] == [
            f"trial {i} of 2 for nat (distilled, seed 1) on text" for i in (1, 2)
        ]
        assert [trial.spec["train"]["learning_rate"] for trial in trials] == [
            2e-3,
            trials[1].spec["train"]["learning_rate"],
        ]
        assert {trial.spec["train"]["budget"]["target_tokens"] for trial in trials} == {10_000}
        assert all("choice" not in trial.parents and trial.spec["trial"] for trial in trials)
        teacher = by_id[trials[0].parents["targets"]]
        assert by_id[teacher.parents["model"]].parents.keys() >= {"choice"}, "targets are those of the searched teacher"


def test_a_trial_as_long_as_the_training_may_become_it(small):
    """That of the same seed; a model's other seeds are trained."""
    budget = small().suite.models()[0].train.budget
    graph = small(SEARCH.replace("10_000", str(budget.target_tokens)))
    steps = {step.label: step for step in graph.work}
    choice = steps["choose hyper-parameters of nat (distilled, seed 1) on text"]
    first, second = (steps[f"train nat (distilled, seed {seed}) on text"] for seed in (1, 2))
    assert first.parents.items() >= choice.parents.items()
    assert first.seconds == 0
    assert not second.parents.keys() & {"trial0", "trial1"}
    assert "trial0" not in {step.label: step for step in small(SEARCH).work}[first.label].parents


def test_keys_of_trainings_follow_from_the_search(small):
    def key(*overrides):
        return ids(small(*overrides).work)["train base (raw, seed 1) on text"]

    longer = SEARCH.replace("10_000", "20_000")
    assert len({key(), key(SEARCH), key(longer), key(SEARCH.replace("0.004", "0.008"))}) == 4
    assert "trial" not in {step.label: step for step in small().work}["train base (raw, seed 1) on text"].spec
