"""Command lines of version 0.1 in the present spelling, with one line on stderr; remove after version 0.2."""

from __future__ import annotations

import sys

from rayjobs.cli.verbs import SUBCOMMANDS

_DEFAULTS = {"steer": "run", "weights": "get", "scenarios": "list"}
"""Verb → what it did without a subcommand."""
_ENCODER_FLAGS = ("--check", "--recalibrate", "--rollback")
"""Flags of `observe` that are subcommands of `encoder`."""


def current_spelling(words: list[str]) -> list[str]:
    """The words of a command line; those of version 0.1 translated."""
    verb, rest = (words[0], words[1:]) if words else ("", [])
    found = _encoder_command(rest) if verb == "observe" else _with_subcommand(verb, rest) if verb in _DEFAULTS else None
    if found is None:
        return words
    print(f"deepsched {verb}: now spelled deepsched {' '.join(found[:2])} …", file=sys.stderr)
    return found


def _with_subcommand(verb: str, rest: list[str]) -> list[str] | None:
    if not rest:
        # `steer` alone had no effect; it shows its help now.
        return None if verb == "steer" else [verb, _DEFAULTS[verb]]
    if not rest[0].startswith("--") or rest[0] == "--help":
        return None
    for index, word in enumerate(rest[1:], 1):
        if word in SUBCOMMANDS[verb] and not rest[index - 1].startswith("--"):
            return [verb, word, *rest[:index], *rest[index + 1 :]]
    return [verb, _DEFAULTS[verb], *rest]


def _encoder_command(rest: list[str]) -> list[str] | None:
    for index, word in enumerate(rest):
        flag, equals, value = word.partition("=")
        if flag in _ENCODER_FLAGS:
            others = rest[:index] + rest[index + (1 if equals else 2) :]
            given = [value] if equals else rest[index + 1 : index + 2]
            return ["encoder", flag.removeprefix("--"), *given, *others]
    return None
