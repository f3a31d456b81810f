"""A search tries as much for every model, and what it finds is what the model is trained with."""

import json

import pytest

from bench import search, training
from bench.checkpoint import CONFIG_FILE, load_model
from bench.configs import SearchConfig, TrainConfig
from bench.preparation import PreparedData
from bench.search import CHOICE, chosen, described, trials_of
from bench.steps import StepFailure
from models.transformer import Config
from tests.bench import tiny

RECIPE = TrainConfig(budget={"minutes": 20}, learning_rate=2e-3)
BUDGET = {"target_tokens": 100}


def searching(trials=4, seed=1, **values):
    return SearchConfig(trials=trials, budget=BUDGET, seed=seed, **values)


def test_the_own_recipe_comes_first_and_then_other_combinations_each_once():
    values = searching(20, train={"learning_rate": [1e-3, 2e-3], "warmup": [0.05, 0.1]}, config={"dropout": [0.1, 0.3]})
    trials = trials_of(values, RECIPE, {"dropout": 0.1, "model_dim": 64})
    assert trials[0] == {"train": {}, "config": {}}
    whole = [
        {"learning_rate": 2e-3, "warmup": 0.05, "dropout": 0.1} | trial["train"] | trial["config"] for trial in trials
    ]
    assert len({tuple(sorted(each.items())) for each in whole}) == len(whole) == 8
    assert {each["learning_rate"] for each in whole} == {1e-3, 2e-3}
    assert all(value != 2e-3 for trial in trials for value in trial["train"].values()), "only what departs is named"


def test_as_many_trials_as_asked_for_the_same_for_every_model_and_others_with_another_seed():
    grid = {"learning_rate": [1e-3, 2e-3, 4e-3], "warmup": [0.05, 0.1, 0.2]}
    draws = [
        trials_of(searching(train=grid), RECIPE, config) for config in ({"dropout": 0.1}, {"dropout": 0.5, "a": 1})
    ]
    assert draws[0] == draws[1]
    assert len(draws[0]) == 4
    assert len({json.dumps(trials_of(searching(train=grid, seed=s), RECIPE, {})) for s in range(5)}) > 1


def test_a_family_without_a_field_goes_without():
    values = searching(6, train={"learning_rate": [1e-3, 2e-3]}, config={"canvases": [1, 2, 4]})
    assert len(trials_of(values, RECIPE, {"canvases": 1})) == 6
    without = trials_of(values, RECIPE, {"dropout": 0.1})
    assert without == [{"train": {}, "config": {}}, {"train": {"learning_rate": 1e-3}, "config": {}}]


def test_a_recipe_whose_values_are_not_among_those_given_is_tried_too():
    trials = trials_of(searching(3, train={"learning_rate": [1e-3, 4e-3]}), RECIPE, {})
    assert sorted(trial["train"].get("learning_rate", 2e-3) for trial in trials) == [1e-3, 2e-3, 4e-3]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "name values to try"),
        ({"train": {"warmup": [0.1, 0.2, 0.1]}}, "warmup has the same value twice"),
        ({"train": {name: list(range(50)) for name in "abc"}}, "more than 100000 combinations"),
        ({"train": {"warmup": []}}, "at least 1 item"),
    ],
    ids=str,
)
def test_values_that_make_no_search(values, message):
    with pytest.raises(ValueError, match=message):
        searching(**values)


def choose(folder, scores):
    """Let `choose` decide between trials of other learning rates with these scores."""
    parents, trials = {}, []
    for i, score in enumerate(scores):
        parents[f"trial{i}"] = folder / str(i)
        parents[f"trial{i}"].mkdir(parents=True)
        (parents[f"trial{i}"] / "training.json").write_text(json.dumps({"selection": {"score": score}}))
        trials.append({"train": {"learning_rate": i + 1.0}, "config": {"dropout": 0.5}})
    search.run({"trials": trials}, folder, parents, tiny.silent)
    return chosen(folder)


@pytest.mark.parametrize(
    ("scores", "best"), [([1.0, 3.0, 2.0], 1), ([-5.0, -7.0], 0), ([2.0, 2.0], 0), ([None, -9.0], 1), ([None, None], 0)]
)
def test_the_best_score_on_the_development_set_is_chosen(tmp_path, scores, best):
    choice = choose(tmp_path / "choice", scores)
    assert choice == {"train": {"learning_rate": best + 1.0}, "config": {"dropout": 0.5}}
    assert described(choice) == f"learning_rate={best + 1.0} dropout=0.5"
    kept = json.loads((tmp_path / "choice" / CHOICE).read_text())
    assert [trial["score"] for trial in kept["trials"]] == scores


def test_no_search_chooses_nothing():
    assert chosen(None) == {"train": {}, "config": {}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.prepare(tmp_path_factory.mktemp("data") / "copy")


def train(folder, data, spec, **parents):
    folder.mkdir(parents=True)
    training.run(spec, folder, {"data": data, **parents}, tiny.silent)
    return json.loads((folder / "training.json").read_text())


def test_a_model_is_trained_with_what_was_chosen_and_loads_as_it_was_built(data, tmp_path):
    """As if the suite had had these values from the start: the same curve, and the same Config when it is loaded."""
    choice = tmp_path / "choice"
    choice.mkdir()
    values = {"train": {"learning_rate": 8e-3}, "config": {"label_smoothing": 0.3}, "score": 1.0}
    (choice / CHOICE).write_text(json.dumps({"chosen": 0, "trials": [values]}))
    report = train(tmp_path / "searched", data, tiny.spec(), choice=choice)
    assert report["search"] == "learning_rate=0.008 label_smoothing=0.3"
    signatures = [row.get("signature") for row in report["records"] if row["metric"] == "train_tokens"]
    assert signatures == ["search:learning_rate=0.008 label_smoothing=0.3"]
    spec = tiny.spec(learning_rate=8e-3)
    spec["config"]["label_smoothing"] = 0.3
    direct = train(tmp_path / "direct", data, spec)
    curves = [[(p["step"], p["loss"], p["score"]) for p in each["curve"]] for each in (report, direct)]
    assert curves[0] == curves[1]
    assert json.loads((tmp_path / "searched" / CONFIG_FILE).read_text()) == {"label_smoothing": 0.3}
    loaded = load_model("transformer", tiny.CONFIG, PreparedData(data).data_spec, tmp_path / "searched")
    assert loaded.label_smoothing == 0.3
    assert Config(**tiny.CONFIG).label_smoothing == 0.1
    assert direct["search"] is None
    assert not (tmp_path / "direct" / CONFIG_FILE).exists()


def test_the_best_trial_of_full_length_is_the_training(data, tmp_path):
    """It is what a training with its values would have been, and says so."""
    values = [{"train": {}, "config": {}}, {"train": {"learning_rate": 8e-3}, "config": {"label_smoothing": 0.3}}]
    trials = {}
    for i, each in enumerate(values):
        spec = tiny.spec(**each["train"])
        spec["config"] |= each["config"]
        train(tmp_path / f"trial{i}", data, {**spec, "trial": True})
        trials[f"trial{i}"] = tmp_path / f"trial{i}"
    choice = tmp_path / "choice"
    choice.mkdir()
    (choice / CHOICE).write_text(
        json.dumps({"chosen": 1, "trials": [{**each, "score": i} for i, each in enumerate(values)]})
    )
    taken = train(tmp_path / "taken", data, tiny.spec(), choice=choice, **trials)
    trained = train(tmp_path / "trained", data, tiny.spec(), choice=choice)

    def timeless(report):
        records = [r for r in report["records"] if r["metric"] not in ("train_minutes", "train_tokens_per_second")]
        curve = [{k: v for k, v in point.items() if k != "seconds"} for point in report["curve"]]
        return {**report, "records": records, "curve": curve}

    assert timeless(taken) == timeless(trained)
    names = sorted(path.name for path in (tmp_path / "trained").iterdir())
    assert sorted(path.name for path in (tmp_path / "taken").iterdir()) == names
    for name in names:
        if name != "training.json":
            assert (tmp_path / "taken" / name).read_bytes() == (tmp_path / "trained" / name).read_bytes()


def test_if_all_trials_of_full_length_diverge_the_training_says_why(data, tmp_path):
    spec = tiny.spec(learning_rate=1e30)
    train(tmp_path / "trial", data, {**spec, "trial": True})
    choice = tmp_path / "choice"
    choice.mkdir()
    (choice / CHOICE).write_text(json.dumps({"chosen": 0, "trials": [{"train": {}, "config": {}, "score": None}]}))
    with pytest.raises(StepFailure, match="diverged"):
        train(tmp_path / "whole", data, spec, choice=choice, trial0=tmp_path / "trial")


def test_a_trial_that_diverges_has_no_score_and_stops_nothing(data, tmp_path):
    spec = tiny.spec(learning_rate=1e30)
    report = train(tmp_path / "trial", data, {**spec, "trial": True})
    assert report["selection"]["score"] is None
    assert "diverged" in report["failure"]
    with pytest.raises(StepFailure, match="diverged"):
        train(tmp_path / "whole", data, spec)
