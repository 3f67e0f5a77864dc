"""Command-line flags and help derived from an Options class: names, units and defaults come from its fields.

Our own on top of argparse: pydantic-settings and jsonargparse offer neither a closest match nor a short help (a typo
prints 200 lines of usage, or is taken for an abbreviation), and their errors name neither the file nor `--set`.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NoReturn, get_origin

import yaml
from pydantic import ValidationError
from pydantic_core import PydanticUndefined, to_jsonable_python

from actuators.errors import ConfigError, DeepSchedError
from actuators.options import GIVEN, NOT_GIVEN, Only, Options, in_words
from rayjobs.cli.config import Field, alternatives, choices_of, fields_of, is_list, parse_value

UNITS = {
    "_ms": "milliseconds",
    "_us": "microseconds",
    "_rps": "requests per second",
    "_per_s": "per second",
    "_s": "seconds",
    "_bytes": "bytes",
    "_mb": "megabytes",
    "_ratio": "share, 0 to 1",
    "_percent": "percent",
}
_METAVARS: dict[object, str] = {bool: "YES|NO", int: "INTEGER", float: "NUMBER", Path: "PATH"}


class Parser(argparse.ArgumentParser):
    """ArgumentParser whose errors are ConfigErrors, with the closest match for a mistyped flag.

    A flag per option of the class itself; those in its groups are set by `--set` and listed in the help.

    Args:
        common: dotted paths of the options that `--help` shows; `--help-all` shows all. All are common when empty.
    """

    def __init__(
        self,
        prog: str,
        summary: str,
        example: str,
        options: type[Options],
        positional: Sequence[str] = (),
        common: Sequence[str] = (),
    ) -> None:
        super().__init__(prog=prog, argument_default=argparse.SUPPRESS, allow_abbrev=False, add_help=False)
        self._summary, self._example, self._options, self._common = summary, example, options, common
        self._fields = {field.path: field for field in fields_of(options)}
        self._own = {p: _add(self, f, positional=p in positional) for p, f in self._fields.items() if "." not in p}
        self._nested = {path: _nested_action(field) for path, field in self._fields.items() if "." in path}
        self._general = list(_add_general(self))
        self.usage = " ".join([prog, *(self._usage(name) for name in positional), "[options]"])

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, remedy=f"see {self.prog} --help")

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """Given flags only; nothing for those left at their defaults. Raises ConfigError."""
        given, unknown = self.parse_known_args(argv)
        if unknown:
            raise ConfigError(f"unexpected argument '{unknown[0]}'", remedy=self._hint(unknown[0].partition("=")[0]))
        return vars(given)

    def format_help(self, *, whole: bool = False) -> str:
        """The example, the common options (all when `whole`), and where options come from."""
        automatic = automatic_values(self._options)
        for path, action in {**self._own, **self._nested}.items():
            action.help = describe(self._fields[path], automatic.get(path)).replace("%", "%%")
        formatter = argparse.RawDescriptionHelpFormatter(self.prog, max_help_position=28)
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(f"example:\n  {self._example}")
        formatter.add_text(self._summary)
        shown = self._shown(self._own, whole=whole)
        for title, positional in (("arguments", True), ("options", False)):
            formatter.start_section(title)
            formatter.add_arguments(action for path in shown if _is_positional(action := self._own[path]) == positional)
            formatter.end_section()
        nested = self._shown(self._nested, whole=whole)
        for group, paths in groupby(nested, lambda path: path.rpartition(".")[0] if whole else ""):
            formatter.start_section(f"{group or 'options in groups'} (--set NAME=VALUE, or in a file)")
            formatter.add_arguments(self._nested[path] for path in paths)
            formatter.end_section()
        formatter.start_section("where options come from (flags win over --set, --set over --config)")
        formatter.add_arguments(self._general)
        formatter.end_section()
        hidden = len(self._own) - len(shown) + len(self._nested) - len(nested)
        if hidden:
            formatter.add_text(f"{hidden} further options: {self.prog} --help-all")
        return formatter.format_help()

    def _shown(self, actions: Mapping[str, argparse.Action], *, whole: bool) -> list[str]:
        """Paths of the options to list: all in the order of the class, or the common ones in their order."""
        if whole or not self._common:
            return list(actions)
        positional = [path for path, action in actions.items() if _is_positional(action)]
        return [*positional, *(path for path in self._common if path in actions and path not in positional)]

    def _usage(self, name: str) -> str:
        info = self._fields[name].info
        text = name.upper() + (" …" if is_list(info.annotation) else "")
        return text if info.is_required() else f"[{text}]"

    def _hint(self, flag: str) -> str:
        known = [name for action in self._actions for name in action.option_strings]
        match = difflib.get_close_matches(flag, known, n=1, cutoff=0.6) if flag.startswith("-") else []
        if match:
            return f"did you mean '{match[0]}'?"
        name = flag.lstrip("-").replace("-", "_")
        nested = [path for path in self._nested if name in (path, path.rpartition(".")[2])]
        return f"did you mean '--set {nested[0]}=…'?" if nested else f"see {self.prog} --help"


class _Help(argparse.Action):
    """Prints the help and ends the program; `const` tells whether all options are shown."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        assert isinstance(parser, Parser)
        print(parser.format_help(whole=bool(self.const)), end="")
        parser.exit()


def automatic_values(options: type[Options]) -> dict[str, object]:
    """Dotted path → the value in force on this machine when nothing is given, after `Options.resolved`."""
    try:
        return {field.path: field.default for field in fields_of(options, options().resolved())}
    except (DeepSchedError, ValidationError):
        # An option must be given, or a program is not installed.
        return {}


def describe(field: Field, automatic: object = None) -> str:
    """Help text of an option: its docstring, unit, the condition under which it has an effect, and default.

    Args:
        automatic: the value that `Options.resolved` chooses in place of the default.
    """
    parts = [" ".join((field.info.description or "").split())]
    parts += [f"[{word}]" for suffix, word in UNITS.items() if field.path.endswith(suffix)][:1]
    conditions = [_condition(each, field.path.rpartition(".")[0]) for each in _conditions(field)]
    parts += [f"[only {' or '.join(conditions)}]"] if conditions else []
    if field.default is PydanticUndefined:
        parts.append("[required]")
    elif field.default not in (None, "", (), []) and field.default != {}:
        chosen = "" if automatic in (None, field.default) else f", here {default_text(automatic)}"
        parts.append(f"[default: {default_text(field.default)}{chosen}]")
    return " ".join(filter(None, parts))


def default_text(value: object) -> str:
    """A default as one types it."""
    if isinstance(value, Mapping):
        return yaml.safe_dump(to_jsonable_python(value), default_flow_style=True, width=10**6, sort_keys=False).strip()
    return in_words(value)


def _conditions(field: Field) -> list[Only]:
    flat = [each for found in field.info.metadata for each in (found if isinstance(found, tuple) else (found,))]
    return [each for each in flat if isinstance(each, Only) and each.needed]


def _condition(condition: Only, group: str) -> str:
    words = []
    for name, wanted in condition.needed.items():
        path = f"{group}.{name}" if group else name
        if wanted is GIVEN or wanted is NOT_GIVEN or wanted is None:
            words.append(f"{'with' if wanted is GIVEN else 'without'} {path}")
        else:
            values = wanted if isinstance(wanted, tuple) else (wanted,)
            words.append(f"with {path}={'|'.join(map(in_words, values))}")
    return " ".join(words)


def _add(parser: Parser, field: Field, *, positional: bool) -> argparse.Action:
    kind: Any = field.info.annotation
    if positional:
        return parser.add_argument(field.path, nargs="*" if is_list(kind) else "?", metavar=field.path.upper())
    flag = "--" + field.path.replace("_", "-")
    if kind is bool:
        return parser.add_argument(flag, action=argparse.BooleanOptionalAction, dest=field.path)

    def convert(value: str) -> object:
        return parse_value(kind, value)

    return parser.add_argument(flag, type=convert, dest=field.path, metavar=_metavar(kind))


def _add_general(parser: Parser) -> Iterator[argparse.Action]:
    add = parser.add_argument
    yield add(
        "--config", type=Path, metavar="FILE", help="YAML file of options, or the name of one in rayjobs/configs/"
    )
    yield add("--set", action="append", metavar="NAME=VALUE", help="one option, also in a group; may be repeated")
    yield add("--print-config", action="store_true", help="print the options in force as YAML and exit")
    yield add("-h", "--help", action=_Help, nargs=0, help="the common options")
    yield add("--help-all", action=_Help, nargs=0, const=True, help="all options")


def _nested_action(field: Field) -> argparse.Action:
    """An option in a group as the formatter needs it; it is not a flag."""
    return argparse.Action([field.path], field.path, metavar=_metavar(field.info.annotation))


def _is_positional(action: argparse.Action) -> bool:
    return not action.option_strings


def _metavar(annotation: object) -> str:
    choices = choices_of(annotation)
    if choices:
        return "{" + ",".join(choices) + "}"
    if is_list(annotation):
        return "A,B,…"
    kinds = [kind for kind in alternatives(annotation) if kind is not type(None)]
    return _METAVARS.get(kinds[0], "TEXT" if get_origin(kinds[0]) in (None, Literal) else "YAML")
