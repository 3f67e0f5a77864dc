"""Command-line flags derived from an Options class: names, help, units and defaults come from its fields."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NoReturn, get_origin

from pydantic.fields import FieldInfo

from actuators.errors import ConfigError
from actuators.options import Options
from rayjobs.cli.config import alternatives, choices_of, fields_of, is_list, nested_options, parse_value

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
    """ArgumentParser whose errors are ConfigErrors, with the closest match for a mistyped flag."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, remedy=f"see {self.prog} --help")

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """Given flags only; nothing for those left at their defaults."""
        given, unknown = self.parse_known_args(argv)
        if unknown:
            flag = unknown[0].partition("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            match = difflib.get_close_matches(flag, known, n=1, cutoff=0.6) if flag.startswith("-") else []
            hint = f"did you mean '{match[0]}'?" if match else f"see {self.prog} --help"
            raise ConfigError(f"unexpected argument '{unknown[0]}'", remedy=hint)
        return vars(given)


def build_parser(
    prog: str, summary: str, example: str, options: type[Options], positional: Sequence[str] = ()
) -> Parser:
    """A parser with a flag per plain field, `--config` and `--set`; nested options are listed in the epilog."""
    parser = Parser(
        prog=prog,
        description=summary,
        epilog=_epilog(example, options),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, info in options.model_fields.items():
        if nested_options(info.annotation) is None:
            _add(parser, name, info, positional=name in positional)
    general = parser.add_argument_group("where options come from (flags win over --set, --set over --config)")
    general.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML file of options, or the name of one of ours in rayjobs/configs/",
    )
    general.add_argument(
        "--set", action="append", metavar="NAME.FIELD=VALUE", help="one option, also inside a group; may be repeated"
    )
    general.add_argument("--print-config", action="store_true", help="print the options in force as YAML and stop")
    return parser


def describe(info: FieldInfo, name: str) -> str:
    """Help text of a field: its docstring, unit and default."""
    parts = [" ".join((info.description or "").split())]
    unit = next((word for suffix, word in UNITS.items() if name.endswith(suffix)), "")
    if unit:
        parts.append(f"[{unit}]")
    parts.append(
        "[required]" if info.is_required() else f"[default: {_plain(info.get_default(call_default_factory=True))}]"
    )
    return " ".join(filter(None, parts))


def _add(parser: Parser, name: str, info: FieldInfo, *, positional: bool) -> None:
    kind: Any = info.annotation
    text = describe(info, name).replace("%", "%%")
    if positional:
        parser.add_argument(name, nargs="*" if is_list(kind) else "?", metavar=name.upper(), help=text)
        return
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, dest=name, help=text)
        return

    def convert(value: str) -> object:
        return parse_value(kind, value)

    parser.add_argument(flag, type=convert, dest=name, metavar=_metavar(kind), help=text)


def _metavar(annotation: object) -> str:
    choices = choices_of(annotation)
    if choices:
        return "{" + ",".join(choices) + "}"
    if is_list(annotation):
        return "A,B,…"
    kinds = [kind for kind in alternatives(annotation) if kind is not type(None)]
    return _METAVARS.get(kinds[0], "TEXT" if get_origin(kinds[0]) in (None, Literal) else "YAML")


def _epilog(example: str, options: type[Options]) -> str:
    nested = [field for field in fields_of(options) if "." in field.path]
    lines = []
    if nested:
        lines = ["options in groups, by --set or in a file:"]
        for field in nested:
            lines += [f"  {field.path}", f"      {describe(field.info, field.path)}"]
        lines.append("")
    return "\n".join([*lines, "example:", f"  {example}"])


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, (list, tuple)):
        return ",".join(map(_plain, value)) or "none"
    return "none" if value is None else str(value)
