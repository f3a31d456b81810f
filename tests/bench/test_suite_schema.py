"""What editors and people are told of suites: the JSON schema, and the descriptions of families and tasks."""

import pytest

from bench import suite_schema
from bench.suite import describe_families, describe_tasks, load_suite, suite_json_schema
from bench.suite_file import TaskSection
from bench.tasks.registry import built_in_tasks
from tests.bench import made_up
from tests.bench.made_up import DatesConfig, Settings, UpConfig


@pytest.fixture
def _made_up(monkeypatch):
    made_up.register(monkeypatch)


@pytest.mark.usefixtures("_made_up")
def test_descriptions():
    ctc, transformer = describe_families()
    assert (transformer.name, transformer.title, transformer.autoregressive) == ("transformer", "Transformer", True)
    fields = {field.name: field for field in (*transformer.config, *transformer.settings, *ctc.config, *ctc.settings)}
    beam, dropout, iterations = fields["beam"], fields["dropout"], fields["iterations"]
    assert (beam.type, beam.default, beam.doc, beam.allowed) == ("int", "1", "Beam size.", ">= 1")
    assert (dropout.type, dropout.allowed) == ("float", ">= 0 and < 1")
    assert (fields["penalty"].type, fields["penalty"].allowed) == ("choice", "gnmt, power")
    assert (iterations.type, iterations.default, iterations.allowed) == ("int or null", "null", ">= 1")
    assert (fields["upsampling"].type, fields["upsampling"].allowed) == ("int or choice", "auto")
    (dates,) = describe_tasks()
    assert dates.metrics == ("exact_match", "bleu")
    assert [(field.name, field.type) for field in dates.options] == [
        ("target_language", "text"), ("folder", "text or null"), ("snr_db", "list of float"),
    ]  # fmt: skip


@pytest.mark.usefixtures("_made_up")
def test_the_schema_knows_each_family_and_task():
    schema = suite_json_schema()
    system = schema["properties"]["systems"]["items"]
    branches = {branch["if"]["properties"]["family"]["const"]: branch["then"] for branch in system["allOf"]}
    assert set(branches) == {"ctc", "transformer"}
    reference = branches["transformer"]["properties"]["settings"]["items"]["$ref"]
    settings = schema["$defs"][reference.removeprefix("#/$defs/")]
    assert list(settings["properties"]) == list(Settings.model_fields)
    assert settings["additionalProperties"] is False
    assert settings["properties"]["beam"]["description"] == "Beam size."
    assert set(schema["properties"]["backbone"]["properties"]) == set(UpConfig.model_fields)
    assert "required" not in schema["$defs"]["train-overrides"]
    assert set(schema["$defs"]["task-dates"]["properties"]) == {*TaskSection.model_fields, *DatesConfig.model_fields}


@pytest.mark.usefixtures("_made_up")
def test_every_reference_in_the_schema_leads_somewhere():
    schema = suite_json_schema()
    references = set()

    def walk(node):
        if isinstance(node, dict):
            references.update([node["$ref"]] if "$ref" in node else [])
            node = list(node.values())
        if isinstance(node, list):
            for inner in node:
                walk(inner)

    walk(schema)
    assert references
    assert references <= {f"#/$defs/{name}" for name in schema["$defs"]}


def test_the_committed_schema_is_current():
    committed = suite_schema.SCHEMA_PATH.read_text(encoding="utf-8")
    assert committed == suite_schema.schema_text(), "run python -m bench schema > suites/schema.json"


def test_the_committed_suites_are_valid():
    for path in sorted(suite_schema.SCHEMA_PATH.parent.glob("*.yaml")):
        assert load_suite(path).cells(), path
        assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=schema.json\n"), path


def test_no_task_has_an_option_that_every_task_has_already():
    """`train: ...` under a task is its recipe; an option of that name could never be set."""
    for task in built_in_tasks().values():
        assert not set(task.Config.model_fields) & set(TaskSection.model_fields), task.name
