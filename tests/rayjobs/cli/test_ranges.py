"""Numbers that are not numbers: every option of every verb has a range; lists that need a value are not empty."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from functools import cache

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from actuators.options import Options
from rayjobs.cli.config import alternatives, nested_options
from rayjobs.cli.main import load_verb
from rayjobs.cli.verbs import SUBCOMMANDS, VERBS

ABSURD = (float("inf"), float("-inf"), float("nan"), 1e300, -1e300, 10**400, "1e309", ".inf", "nan", "1" * 5000)
MAY_BE_EMPTY = {"space"}
"""Trials of a sweep may differ by their seed only."""
MAY_BE_NEGATIVE = {"initial_log_std", "reward_mix"}


@cache
def option_classes() -> tuple[type[Options], ...]:
    """The option classes of all verbs, each once."""
    found: dict[type[Options], None] = {}

    def add(kind: type[Options]) -> None:
        if kind not in found:
            found[kind] = None
            for info in kind.model_fields.values():
                if (nested := nested_options(info.annotation)) is not None:
                    add(nested)

    for verb in VERBS:
        for name in [f"{verb} {command}" for command in SUBCOMMANDS[verb]] if verb in SUBCOMMANDS else [verb]:
            add(load_verb(name).options)
    return tuple(found)


def fields(*kinds: type) -> Iterator[tuple[type[Options], str, FieldInfo]]:
    """Options that hold values of one of these types, alone or in lists and mappings."""
    for kind in option_classes():
        for name, info in kind.model_fields.items():
            if set(kinds) & set(_leaves(info.annotation)):
                yield kind, name, info


def _leaves(annotation: object) -> Iterator[object]:
    for one in alternatives(annotation):
        if typing.get_origin(one) is typing.Literal or nested_options(one):
            continue
        inner = typing.get_args(one)
        if typing.get_origin(one) is typing.Annotated:
            yield from _leaves(inner[0])
        elif inner:
            for each in inner:
                yield from _leaves(each)
        else:
            yield one


def shapes(info: FieldInfo, number: object) -> Iterator[object]:
    """The number as the option takes it: alone, in a list of one or two, nested, or in a mapping."""
    yield number
    yield [number]
    yield [1, number]
    yield [[number, number]]
    yield {"compose": number}
    yield {"log_latency": number}


def refused(kind: type[Options], name: str, value: object) -> bool:
    try:
        kind.model_validate({name: value})
    except ValidationError as error:
        return any(problem["loc"][0] == name for problem in error.errors(include_url=False) if problem["loc"])
    return False


def test_every_number_has_a_range() -> None:
    assert len(list(fields(int, float))) > 200
    taken = [
        (kind.__name__, name, value)
        for kind, name, info in fields(int, float)
        for number in ABSURD
        for value in shapes(info, number)
        if not refused(kind, name, value)
    ]
    assert not taken


def test_nothing_is_negative_that_cannot_be() -> None:
    taken = [
        (kind.__name__, name)
        for kind, name, info in fields(int, float)
        if name not in MAY_BE_NEGATIVE
        for value in shapes(info, -1)
        if not refused(kind, name, value)
    ]
    assert not taken


def test_lists_that_need_a_value_are_not_empty() -> None:
    taken = [
        (kind.__name__, name)
        for kind in option_classes()
        for name, info in kind.model_fields.items()
        if isinstance(default := info.get_default(call_default_factory=True), tuple | dict)
        and default
        and name not in MAY_BE_EMPTY
        and not refused(kind, name, [] if isinstance(default, tuple) else {})
    ]
    assert not taken
