"""YAML with line numbers: values, lines, and what is refused."""

from pathlib import Path

import pytest

from bench.yaml_lines import YamlError, parse_yaml, read_yaml

TEXT = """\
name: quick
tasks:
  - dates
  - {task: dates,
     styles: 3}
train:
  budget:
    target_tokens: 600_000
  note:
    far away
"""


def test_values_and_lines():
    document = parse_yaml(TEXT)
    assert document.value == {
        "name": "quick",
        "tasks": ["dates", {"task": "dates", "styles": 3}],
        "train": {"budget": {"target_tokens": 600_000}, "note": "far away"},
    }
    assert document.line(("name",)) == 1
    assert document.line(("tasks",)) == 2  # a collection stands where its key stands
    assert document.line(("tasks", 0)) == 3
    assert document.line(("tasks", 1)) == 4
    assert document.line(("tasks", 1, "styles")) == 5  # inside a flow mapping
    assert document.line(("train", "budget", "target_tokens")) == 8
    assert document.line(("train", "note"), of_key=True) == 9
    assert document.line(("train", "note")) == 10


def test_a_path_that_is_not_there_has_the_line_of_what_is_around_it():
    document = parse_yaml(TEXT)
    assert document.line(("train", "budget", "minutes")) == 7
    assert document.line(("tasks", 1, "name"), of_key=True) == 4
    assert document.line(("systems", 0)) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("2.", 2.0),
        ("1_000.5", 1000.5),
        ("600_000", 600_000),
        ("-7", -7),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("no", "no"),  # Norwegian, in YAML 1.1 a boolean
        ("on", "on"),
        ("010", "010"),  # in YAML 1.1 an octal 8
        ("1:30", "1:30"),  # in YAML 1.1 ninety
        ("2024-01-01", "2024-01-01"),  # in YAML 1.1 a date
        (".inf", ".inf"),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("e5", "e5"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_scalars(text, value):
    read = parse_yaml(text).value
    assert read == value
    assert type(read) is type(value)


def test_merge_keys_and_aliases():
    document = parse_yaml(
        "a: &a {x: 1, y: 1}\n"
        "b: &b {y: 2, z: 2}\n"
        "one: {<<: *a, x: 9}\n"
        "two:\n"
        "  <<: [*a, *b]\n"
        "same: *a\n"
    )  # fmt: skip
    assert document.value["one"] == {"x": 9, "y": 1}
    assert document.value["two"] == {"x": 1, "y": 1, "z": 2}  # the earlier one wins
    assert document.line(("one", "x")) == 3
    assert document.line(("two", "z")) == 2  # where it is to be mended
    document.value["same"]["x"] = 5
    assert document.value["a"]["x"] == 1  # each use is a value of its own


@pytest.mark.parametrize(
    ("text", "path", "line", "message"),
    [
        ("a: 1\nb: 2\na: 3", ("a",), 3, "duplicate key; first on line 1"),
        ("k: {x: 1,\n x: 2}", ("k", "x"), 2, "duplicate key; first on line 1"),
        ("x:\n  1: one", ("x",), 2, "keys must be text, got '1'"),
        ("x: 1\n[a]: one", (), 2, "keys must be text, got a list or mapping"),
        ("a: !!python/name:os.system x", ("a",), 1, "tag !!python/name:os.system is not supported"),
        ("a: !mine {b: 1}", ("a",), 1, "tag !mine is not supported"),
        ("a: !!int five", ("a",), 1, "'five' is not a valid int"),
        ("a: 1e999", ("a",), 1, "'1e999' is not a valid float"),
        ('a: "\\ud800"', ("a",), 1, r"'\ud800' is not a valid str"),
        ("<<: 3", (), 1, "only mappings can be merged with <<"),
    ],
)
def test_what_is_not_allowed_is_noted_and_the_rest_is_read(text, path, line, message):
    document = parse_yaml(text + "\nrest: fine\n")
    assert document.problems == [(path, line, message)]
    assert document.value["rest"] == "fine"


def test_a_problem_in_an_anchor_is_noted_once():
    document = parse_yaml("a: &a {x: 1, x: 2}\nb: *a\nc: {<<: *a}\n")
    assert [line for _, line, _ in document.problems] == [1]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "not valid YAML"),
        ("a: 1\n\tb: 2\n", 2, "not valid YAML"),
        ("a: *nowhere\n", 1, "undefined alias"),
        ("a: 1\n---\nb: 2\n", 2, "single document"),
        ("a: 1\nb: \x07\n", 2, "character U+0007 is not allowed"),
        ("a: &a [*a]\n", None, "alias within its own anchor"),
        ("[" * 5000, None, "nested too deeply"),
    ],
)
def test_text_that_is_not_yaml(text, line, message):
    with pytest.raises(YamlError) as caught:
        parse_yaml(text)
    assert message in str(caught.value)
    assert caught.value.line == line


def test_files(tmp_path: Path):
    path = tmp_path / "suite.yaml"
    with pytest.raises(YamlError, match="no such file"):
        read_yaml(path)
    with pytest.raises(YamlError, match="cannot be read"):
        read_yaml(tmp_path)
    path.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(YamlError, match=r"not UTF-8 text \(byte 0xe9\)") as caught:
        read_yaml(path)
    assert caught.value.line == 2
    path.write_bytes(b"\xef\xbb\xbfa: caf\xc3\xa9\n")
    assert read_yaml(path).value == {"a": "café"}
