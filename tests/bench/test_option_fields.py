from typing import Literal

from pydantic import Field

from bench.option_fields import allowed_values, known_keys
from models.interface import Options


class Inner(Options):
    kind: Literal["a", "b"] = "a"
    """One of two."""
    size: int = Field(1, ge=1)
    """How large."""


class Outer(Options):
    by_name: dict[str, str | Inner] = Field(default_factory=dict)
    """A mapping from any name."""
    numbers: dict[str, int] = Field(default_factory=dict)
    """A mapping to plain values."""
    items: list[Inner] = Field(default_factory=list)
    """A list."""
    inner: Inner = Inner()
    """A section."""


def test_the_keys_of_sections_lists_and_mappings_from_any_name():
    assert known_keys(Outer, ()) == ["by_name", "inner", "items", "numbers"]
    for path in (("inner",), ("items", 3), ("by_name", "whatever")):
        assert known_keys(Outer, path) == ["kind", "size"], path
    assert known_keys(Outer, ("numbers", "whatever")) == []
    assert known_keys(Outer, ("inner", "no_such")) == []


def test_the_values_within_a_mapping():
    assert allowed_values(Outer, ("by_name", "whatever", "kind")) == "a, b"
    assert allowed_values(Outer, ("by_name", "whatever", "size")) == ">= 1"
