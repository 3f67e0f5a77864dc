"""Help of every verb: the example first, few options, all by --help-all, with the defaults that are in force."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field, TypeAdapter

from actuators.options import Options
from rayjobs.cli.config import choices_of, dump_yaml, fields_of, is_list, load_options, parse_value
from rayjobs.cli.flags import describe
from rayjobs.cli.main import Verb, load_verb
from rayjobs.cli.verbs import verb_names

MOST_COMMON = 13
SAYS_WHAT_HAPPENS = re.compile(
    r"\b((not|none is|when) given|without|by default|when empty|instead|else)\b", re.IGNORECASE
)
OPTION = re.compile(r"^  (?:--(?P<flag>[a-z0-9-]+)|(?P<nested>[a-z0-9_]+(?:\.[a-z0-9_]+)+)|(?P<argument>[A-Z_]+))[ ,]")
DEFAULT = re.compile(r"\[default: (?:.*, here )?(.*)\]$")
"""Where options choose a value for this machine, the help shows both."""


@pytest.fixture(params=sorted(verb_names()))
def verb(request: pytest.FixtureRequest) -> Verb:
    return load_verb(request.param)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of the help is wrapped."""
    monkeypatch.setenv("COLUMNS", "10000")


def in_force(verb: Verb) -> dict[str, Any]:
    """Dotted path → value as `--print-config` prints it, when nothing but required options is given."""
    required = {field.path: field.info.annotation for field in fields_of(verb.options) if field.info.is_required()}
    given = {path: next(iter(choices_of(kind)), ["x"] if is_list(kind) else "x") for path, kind in required.items()}
    tree = yaml.safe_load(dump_yaml(load_options(verb.options, flags=given))) or {}
    paths = {field.path for field in fields_of(verb.options)} - set(required)
    return {path: value for path in paths if (value := _at(tree, path)) is not _ABSENT}


_ABSENT = object()


def _at(tree: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return _ABSENT
        tree = tree[part]
    return tree


def shown_defaults(verb: Verb) -> dict[str, str | None]:
    """Dotted path → the default that `--help-all` shows, None where it shows none."""
    shown: dict[str, str | None] = {}
    # A long name has its text on the next line.
    for line in re.sub(r"\n {6,}", "  ", verb.parser().format_help(whole=True)).splitlines():
        found = OPTION.match(line)
        if found:
            name = found["nested"] or (found["flag"] or found["argument"].lower()).replace("-", "_")
            default = DEFAULT.search(line)
            shown[name] = default[1] if default else None
    return shown


def test_every_default_in_the_help_is_the_one_in_force(verb: Verb) -> None:
    shown, kinds = shown_defaults(verb), {field.path: field.info.annotation for field in fields_of(verb.options)}
    validators = {field.path: field.info.metadata for field in fields_of(verb.options)}
    assert set(kinds) <= set(shown)
    for path, value in in_force(verb).items():
        text = shown[path]
        if text is None:
            assert value in (None, "", [], {}), f"{path} is {value!r}, and the help shows no default"
        else:
            adapter: TypeAdapter[Any] = TypeAdapter(Annotated[kinds[path], path, *validators[path]])
            typed = adapter.validate_python(parse_value(kinds[path], text))
            assert typed == adapter.validate_python(value), f"{path}: the help shows {text}, in force is {value!r}"


def test_options_without_a_default_are_required_or_tell_what_happens(verb: Verb) -> None:
    for field in fields_of(verb.options):
        text = describe(field)
        assert "[default: none]" not in text, field.path
        assert ("[required]" in text) == field.info.is_required(), field.path
        if not field.info.is_required() and "[default:" not in text:
            assert SAYS_WHAT_HAPPENS.search(text), f"{field.path}: what happens when it is not given? {text}"


def test_the_help_begins_with_the_example_and_shows_the_common_options(verb: Verb) -> None:
    paths = [field.path for field in fields_of(verb.options)]
    assert set(verb.common) <= set(paths)
    usage, _, heading, example, *rest = verb.parser().format_help().splitlines()
    assert usage.startswith(f"usage: deepsched {verb.name} ")
    assert (heading, example) == ("example:", f"  {verb.example}")
    listed = [match for line in rest if (match := OPTION.match(line))]
    assert len(listed) <= MOST_COMMON + len(verb.positional) + len(("config", "set", "print_config", "help_all"))
    hidden = len(paths) - len({*verb.common, *verb.positional}) if verb.common else 0
    assert (f"{hidden} further options: deepsched {verb.name} --help-all" in rest) == (hidden > 0)


class Group(Options):
    """A group."""

    depth: int = 3
    """How deep."""


class Wide(Options):
    """Options of a verb."""

    name: Path
    """Which."""
    limits: dict[str, float] = Field({"p99": 0.5})
    """By name."""
    group: Group = Group(depth=5)
    """A group with a default of the verb."""


WIDE = Verb("wide", "deepsched wide x", Wide, lambda _: 0, ("name",), ("limits",), summary="an example")


def test_a_group_shows_the_default_of_the_verb() -> None:
    assert "group.depth" not in WIDE.parser().format_help()
    text = WIDE.parser().format_help(whole=True)
    assert re.search(r"^  group\.depth INTEGER +How deep\. \[default: 5\]$", text, re.MULTILINE)
    assert re.search(r"^  --limits YAML +By name\. \[default: \{p99: 0\.5\}\]$", text, re.MULTILINE)
    assert re.search(r"^  NAME +Which\. \[required\]$", text, re.MULTILINE)
    assert "usage: deepsched wide NAME [options]" in text
