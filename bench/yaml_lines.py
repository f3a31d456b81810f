"""YAML with line numbers: plain values, and for each of them the line it stands on.

The dialect is YAML 1.1 as PyYAML reads it, with the traps taken out: only `true` and `false` are booleans (the
language code `no` stays text), `1e-3` is a number, dates and sexagesimal numbers stay text, a leading zero does not
make an octal number, and there is no infinity. Anchors, aliases and merge keys (`<<`) work; keys are text; tags that
would build anything but plain values are refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.errors import UserError

KeyPath = tuple[str | int, ...]
"""The way to a value: mapping keys and list indices from the root."""

_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"


class YamlError(UserError):
    """The text cannot be read at all; `line`, counted from 1, is None where no line is to blame."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


@dataclass
class Document:
    """A YAML document as plain values."""

    value: Any
    key_lines: dict[KeyPath, int] = field(default_factory=dict)
    """Line of each mapping key, and of each list item."""
    value_lines: dict[KeyPath, int] = field(default_factory=dict)
    """Line of each value: of the scalar itself; of its key for a mapping or a list in a mapping."""
    problems: list[tuple[KeyPath, int, str]] = field(default_factory=list)
    """(path, line, message) of what is not allowed but does not keep the rest from being read."""

    def line(self, path: KeyPath, of_key: bool = False) -> int:
        """Return the line of the value (or the key) at `path`, or of the nearest value around it."""
        lines = self.key_lines if of_key else self.value_lines
        while path:
            if path in lines:
                return lines[path]
            path = path[:-1]
            lines = self.value_lines
        return self.value_lines.get((), 1)


def read_yaml(path: Path) -> Document:
    """Read a UTF-8 YAML file.

    Raises:
        YamlError: the file is missing, unreadable, not UTF-8 or not YAML.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise YamlError("no such file") from None
    except OSError as error:
        raise YamlError(f"cannot be read: {error.strerror}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise YamlError(f"not UTF-8 text (byte 0x{error.object[error.start]:02x})", line) from error
    return parse_yaml(text)


def parse_yaml(text: str) -> Document:
    """Parse one YAML document; an empty one has the value None.

    Raises:
        YamlError: `text` is not YAML, holds several documents, or nests without end.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        document = Document(None)
        if node is not None:
            document.value = _Construction(document).value(node, (), node.start_mark.line + 1)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(f"not valid YAML: character U+{int(error.character):04X} is not allowed", line) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = ": ".join(part for part in (error.context, error.problem) if part)
        raise YamlError(f"not valid YAML: {message}", mark.line + 1 if mark else None) from error
    except RecursionError as error:
        raise YamlError("nested too deeply, or an alias within its own anchor") from error
    return document


class _Loader(yaml.SafeLoader):
    """PyYAML's scanner, parser and composer with this module's rules for plain scalars."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own protocol


for _name, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", list("-+0123456789")),
    (
        "float",
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)$",
        list("-+.0123456789"),
    ),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)


class _Construction:
    """Turns nodes into plain values, new ones at every visit, and notes their lines."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def value(self, node: yaml.Node, path: KeyPath, line: int) -> Any:
        """Return the value of `node`; `line` is where a mapping or a list at `path` is said to stand."""
        scalar = isinstance(node, yaml.ScalarNode)
        self.document.value_lines[path] = node.start_mark.line + 1 if scalar else line
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            pairs = self._pairs(node, path)
            for key, (key_line, _) in pairs.items():
                self.document.key_lines[*path, key] = key_line
            return {key: self.value(child, (*path, key), key_line) for key, (key_line, child) in pairs.items()}
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            items = []
            for index, child in enumerate(node.value):
                self.document.key_lines[*path, index] = child.start_mark.line + 1
                items.append(self.value(child, (*path, index), child.start_mark.line + 1))
            return items
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        return self._problem(node, path, f"tag {node.tag.replace(_TAG, '!!')} is not supported")

    def _pairs(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, tuple[int, yaml.Node]]:
        """Return line and value of each key; own keys win over merged ones, earlier merged ones over later."""
        own: dict[str, tuple[int, yaml.Node]] = {}
        merged: dict[str, tuple[int, yaml.Node]] = {}
        for key_node, child in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _MERGE:
                for source in child.value if isinstance(child, yaml.SequenceNode) else [child]:
                    if isinstance(source, yaml.MappingNode):
                        merged = self._pairs(source, path) | merged
                    else:
                        self._problem(key_node, path, "only mappings can be merged with <<")
            elif not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str":
                shown = repr(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                self._problem(key_node, path, f"keys must be text, got {shown}")
            elif key_node.value in own:
                self._problem(
                    key_node, (*path, key_node.value), f"duplicate key; first on line {own[key_node.value][0]}"
                )
            else:
                own[key_node.value] = (line, child)
        return merged | own

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        try:
            match kind:
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    return int(text.replace("_", ""))
                case "float":
                    number = float(text.replace("_", ""))
                    if not math.isfinite(number):
                        raise ValueError
                    return number
                case "str":
                    text.encode()  # a lone surrogate, written as an escape, is no text
                    return text
        except (ValueError, KeyError):
            return self._problem(node, path, f"{text[:40]!r} is not a valid {kind}")
        return self._problem(node, path, f"tag {node.tag.replace(_TAG, '!!')} is not supported")

    def _problem(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        line = node.start_mark.line + 1
        if (line, message) not in [found[1:] for found in self.document.problems]:  # an alias is visited at each use
            self.document.problems.append((path, line, message))
