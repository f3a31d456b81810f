"""What a suite's search may hold, and what it makes of the models."""

import pytest

from bench.suite import SuiteError, load_suite

SUITE = """\
name: small
tasks: [dates]
backbone: {model_dim: 32, num_heads: 2, ffn_dim: 32, encoder_layers: 1, decoder_layers: 1}
train: {budget: {target_tokens: 1000}, seeds: [3, 4]}
search:
  trials: 3
  budget: {target_tokens: 200}
  train: {learning_rate: [1.0e-3, 4.0e-3]}
  config: {dropout: [0.1, 0.2], length_loss_weight: [1.0, 0.5]}
systems:
  - {name: ar, family: transformer, train: {learning_rate: 3.0e-3}}
  - {name: nat, family: mask_predict}
  - {name: still, family: ctc, train: {budget: {target_tokens: 0}}}
"""


@pytest.fixture
def load(tmp_path):
    def load(text=SUITE, *overrides):
        path = tmp_path / "small.yaml"
        path.write_text(text)
        return load_suite(path, overrides)

    return load


def test_every_model_has_trials_with_its_first_seed_but_those_that_are_not_trained(load):
    suite = load()
    assert suite.search is not None
    models = {(model.system, model.seed): model for model in suite.models()}
    assert {len(model.trials) for (system, _), model in models.items() if system != "still"} == {3}
    assert models["still", 3].trials == ()
    for seed in (3, 4):
        own, *others = models["ar", seed].trials
        assert {trial.seed for trial in (own, *others)} == {3}
        assert own.train.learning_rate == 3e-3
        assert own.train.budget.target_tokens == 200
        assert {trial.train.learning_rate for trial in others} <= {1e-3, 4e-3, 3e-3}
        assert "length_loss_weight" not in own.config
    assert {trial.config["length_loss_weight"] for trial in models["nat", 3].trials} <= {1.0, 0.5}
    assert models["ar", 3].train.learning_rate == 3e-3, "what is chosen shows when it is trained"


def test_without_a_search_there_are_no_trials(load):
    suite = load(SUITE, "search=null")
    assert suite.search is None
    assert {model.trials for model in suite.models()} == {()}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.train.learning_rat=[1.0]", r"unknown key 'learning_rat'; did you mean 'learning_rate'"),
        ("search.train.budget=[1]", r"search.train.budget: unknown key 'budget'"),
        ("search.train.seeds=[1]", r"search.train.seeds: unknown key 'seeds'"),
        ("search.train.learning_rate=[0.1, -1.0]", r"search.train.learning_rate\[1\]: -1.0 is out of range"),
        ("search.train.schedule=[linear, sine]", r"search.train.schedule\[1\]: .*sine.* is not one of the choices"),
        ("search.config.dropuot=[0.1]", r"unknown key 'dropuot'; did you mean 'dropout'.*no system has it"),
        ("search.config.model_dim=[32, 64]", r"search.config.model_dim: says what network it is"),
        ("search.config.dropout=[0.1, 1.5]", r"search.config.dropout\[1\]: 1.5 is out of range"),
        ("search.config.ctc_weight=[0.0, 0.3]", r"search.config.ctc_weight\[1\]: changes the network of 'ar'"),
        ("search.trials=1", r"search.trials: 1 is out of range"),
        ("search.trials=7", r"search.trials: 7 trials need as many combinations, and 'ar' has 5"),
        ("search.budget={}", r"search.budget: set exactly one of target_tokens and minutes"),
        ("search.tirals=2", r"search.tirals: unknown key; did you mean 'trials'"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_its_place(load, override, message):
    with pytest.raises(SuiteError, match=message) as caught:
        load(SUITE, override)
    assert len(caught.value.problems) == 1, caught.value


def test_the_line_of_a_wrong_value_is_named(load):
    with pytest.raises(SuiteError, match=r"small.yaml:8: search.train.learning_rate\[0\]: -1.0 is out of range"):
        load(SUITE.replace("1.0e-3", "-1.0"))
