"""YAML as people have it: what is not plain data, ambiguous or a trap is refused in one line that names its place.

Merge keys (`<<`) are obeyed. Dates and times of the day stay texts. Keys are texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from actuators.errors import ConfigError

MAX_BYTES, MAX_VALUES, MAX_DEPTH = 2**20, 100_000, 100
_PREFIX = "tag:yaml.org,2002:"
_MERGE, _TEXT = f"{_PREFIX}merge", f"{_PREFIX}str"
_PLAIN = {
    _PREFIX + name for name in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp", "value", "merge")
}


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file in UTF-8; empty for an empty file.

    Args:
        what: kind of the file for messages, as "config file".

    Raises:
        OSError: it cannot be read.
        ConfigError: it is larger than 1 MiB, no UTF-8, no YAML that `parse_yaml` takes, or no mapping.
    """
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ConfigError(f"a {what} of more than {MAX_BYTES} bytes", where=str(path), remedy="give a smaller one")
    try:
        values = parse_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError("it is not UTF-8 text", where=str(path), remedy="save it as UTF-8") from error
    except ValueError as error:
        raise ConfigError(f"not valid YAML: {error}", where=str(path), remedy=f"repair the {what}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"a {what} must be a mapping of names to values", where=str(path))
    return values


def parse_yaml(text: str) -> Any:
    """The value of a YAML document, of dicts with text keys, lists and scalars.

    Raises:
        ValueError: no YAML; a key twice (with both lines) or no text; an unknown tag; a value that holds itself; more
            than 100,000 values with repeated ones, or 100 levels.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, ())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(str(error.problem or error.context).split())
        raise ValueError(f"line {mark.line + 1}: {problem}" if mark else problem) from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (IndexError, KeyError) as error:
        raise ValueError("a value that does not fit its tag") from error
    except RecursionError as error:
        raise ValueError(f"more than {MAX_DEPTH} levels") from error


class _Loader(yaml.SafeLoader):
    """SafeLoader whose dates, times of the day (`20:50`) and `=` stay texts."""


def _text(_: _Loader, node: yaml.ScalarNode) -> str:
    return str(node.value)


def _number(kind: str) -> Any:
    """A constructor that leaves times of the day alone and names the line of a value that is not a number."""
    real = _Loader.yaml_constructors[_PREFIX + kind]

    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
        if ":" in node.value:
            return node.value
        try:
            return real(loader, node)
        except ValueError as error:
            raise ValueError(f"line {_line(node)}: '{node.value[:40]}' is not a number") from error

    return construct


for _kind in ("int", "float"):
    _Loader.add_constructor(_PREFIX + _kind, _number(_kind))
for _kind in ("timestamp", "value"):
    _Loader.add_constructor(_PREFIX + _kind, _text)


def _count(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """How many values a node stands for, where repeated ones count each time. Raises ValueError."""
    if id(node) in above:
        raise ValueError(f"line {_line(node)}: a value that holds itself")
    if len(above) > MAX_DEPTH:
        raise ValueError(f"line {_line(node)}: more than {MAX_DEPTH} levels")
    if node.tag not in _PLAIN:
        raise ValueError(f"line {_line(node)}: unknown tag '{node.tag[:80]}', write plain values")
    if id(node) not in known:
        inner = (*above, id(node))
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            values = [value for _, value in node.value]
        else:
            values = node.value if isinstance(node, yaml.SequenceNode) else []
        known[id(node)] = 1 + sum(_count(value, known, inner) for value in values)
        if known[id(node)] > MAX_VALUES:
            raise ValueError(f"line {_line(node)}: more than {MAX_VALUES} values, repeated ones included")
    return known[id(node)]


def _check_keys(node: yaml.MappingNode) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = _line(key)
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"line {line}: a key is not a text; is it a template that was not filled in?")
        if key.tag not in (_TEXT, _MERGE, f"{_PREFIX}value", f"{_PREFIX}timestamp"):
            raise ValueError(f"line {line}: the key {key.value[:40]} is not a text; put it in quotes")
        if key.value in seen:
            raise ValueError(f"'{key.value[:40]}' is given twice, in line {seen[key.value]} and in line {line}")
        seen[key.value] = line


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
