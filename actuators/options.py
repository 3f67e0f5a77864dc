"""Base of every option class: frozen, typed, typo-proof; the docstring under a field is its help text.

An option that has an effect only together with others declares it: `Annotated[float, Only(plan="constant")]`. The
command line refuses it where it has none, and leaves it out of the configuration that is printed and saved.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from actuators.errors import ConfigError
from actuators.files import read_regular

OptionsT = TypeVar("OptionsT", bound="Options")

MAX_DOCUMENT_BYTES = 2**24
GIVEN, NOT_GIVEN = object(), object()
"""In a condition: any value but none, zero, no and empty; and one of these."""


RANGES = {
    "ms": (1e-6, 1e9),
    "us": (1e-3, 1e9),
    "s": (1e-3, 1e9),
    "rps": (1e-6, 1e6),
    "bytes": (0.0, 2.0**40),
    "": (0.0, 1e12),
}
"""Of the absolute values of all numbers by the unit in the option's name: what can be timed, sent, kept and counted.

Zero is left to the option's own bounds, which may also be narrower.
"""


class Only:
    """An option has an effect only where each of these other options of its class has one of these values.

    Several of them on one option are alternatives. The value is one value, a tuple of values, GIVEN or NOT_GIVEN; an
    option that is a list needs one element among them. `a__b` means the option `b` in the group `a`.
    """

    def __init__(self, **needed: object) -> None:
        self.needed = {name.replace("__", "."): value for name, value in needed.items()}

    def holds(self, options: Options) -> bool:
        """Whether an option of this class with this condition has an effect."""
        return all(_matches(value_at(options, path), wanted) for path, wanted in self.needed.items())

    def describe(self, options: Options, prefix: str = "") -> tuple[str, str]:
        """What stands against it in these options, whose names begin with `prefix`, and what to set instead."""
        path, wanted = next(
            (path, wanted) for path, wanted in self.needed.items() if not _matches(value_at(options, path), wanted)
        )
        found, name = value_at(options, path), prefix + path
        if wanted is GIVEN:
            return f"without {name}", f"give {name}"
        if wanted is NOT_GIVEN:
            return f"with {name}", f"leave {name} out"
        values = wanted if isinstance(wanted, tuple) else (wanted,)
        return f"with {name}={in_words(found)}", f"set {name}={' or '.join(map(in_words, values))}"


class OnlyIf(Only):
    """A condition in code; the texts say what stands against the option and what would give it an effect."""

    def __init__(self, holds: Callable[[Any], bool], reason: str, remedy: str) -> None:
        super().__init__()
        self._holds, self._words = holds, (reason, remedy)

    def holds(self, options: Options) -> bool:
        return self._holds(options)

    def describe(self, options: Options, prefix: str = "") -> tuple[str, str]:
        return self._words


class Never(Only):
    """A nested option that this class decides itself; the text says what to use in its place."""

    def __init__(self, instead: str) -> None:
        super().__init__()
        self.instead = instead

    def holds(self, options: Options) -> bool:
        return False

    def describe(self, options: Options, prefix: str = "") -> tuple[str, str]:
        return "here", self.instead


@dataclass(frozen=True)
class Moved:
    """Where an option of earlier versions stands now.

    Attributes:
        to: path of the option that took its place.
        obeyed: whether runs obeyed it; a saved run's value that none obeyed is dropped.
    """

    to: str
    obeyed: bool = True


@dataclass(frozen=True)
class Retired:
    """An option of earlier versions that nothing took the place of.

    Attributes:
        instead: what to do now, for those who give another value than `default`.
        default: the value that is meant without the option.
        obeyed: whether runs obeyed it; a saved run's value that none obeyed is dropped.
    """

    instead: str
    default: object = None
    obeyed: bool = True


class Options(BaseModel):
    """Options of one part, kept beside the code that obeys them. Units are in the field names.

    `rayjobs.cli.config` fills them from YAML and `--set a.b=c` and turns what pydantic refuses into
    ConfigError with the closest match.

    Attributes:
        only: further conditions, of inherited options and of nested ones (by dotted path).
        moved: dotted paths of options that earlier versions had.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @field_validator("*")
    @classmethod
    def _in_range(cls, value: object, info: ValidationInfo) -> object:
        name = info.field_name or ""
        unit = next((unit for unit in RANGES if name.endswith(f"_{unit}")), "")
        leaves = list(_leaves(value))
        if any("\0" in str(leaf) for leaf in leaves if isinstance(leaf, str | Path)):
            raise ValueError("must not contain a NUL character")
        for number in (leaf for leaf in leaves if isinstance(leaf, int | float)):
            least, most = RANGES[unit]
            if number and not least <= abs(number) <= most:
                raise ValueError(f"must be 0 or from {least:g} to {most:g}" if least else f"must be at most {most:g}")
        return value

    only: ClassVar[Mapping[str, Only | tuple[Only, ...]]] = {}
    moved: ClassVar[Mapping[str, Moved | Retired]] = {}

    def resolved(self) -> Self:
        """The options that a run with these obeys: shortcuts and automatic choices replaced by values.

        The same when called again. Raises ConfigError for values that cannot be obeyed together.
        """
        return self

    def replaced(self) -> Mapping[str, tuple[str, str]]:
        """Dotted paths of options whose values others replace: by what, and what would give them an effect."""
        return {}

    def extended(self, kind: type[OptionsT], **more: Any) -> OptionsT:
        """These options as a `kind`, a subclass of this class, with values for what that adds."""
        assert issubclass(kind, type(self))
        return kind(**{name: getattr(self, name) for name in type(self).model_fields}, **more)

    def changed(self, values: Mapping[str, Any]) -> Self:
        """A copy with other values at dotted paths; they count as given. Raises pydantic's ValidationError."""
        own = {path: value for path, value in values.items() if "." not in path}
        for group in {path.partition(".")[0] for path in values if "." in path}:
            inner = {path.partition(".")[2]: value for path, value in values.items() if path.startswith(f"{group}.")}
            own[group] = getattr(self, group).changed(inner)
        copy = type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | own)
        copy.model_fields_set.intersection_update(self.model_fields_set | own.keys())
        return copy

    def given(self, path: str) -> bool:
        """Whether a value was given for the option at a dotted path, in place of its default."""
        name, _, rest = path.partition(".")
        if name not in self.model_fields_set:
            return False
        return getattr(self, name).given(rest) if rest else True


def first_fault(error: ValidationError) -> str:
    """The first of what pydantic refuses, in one line: the dotted path of its place, and what is wrong there."""
    first = error.errors(include_url=False, include_input=False)[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))


def read_document(model: type[OptionsT], path: Path, *, what: str, remedy: str, member: str = "") -> OptionsT | None:
    """Reads a small JSON document into its model, or one member of it. Returns None when that member is missing.

    Args:
        what: what the document is not when the model refuses it, for the message.

    Raises ConfigError for a file that is unreadable, larger than 16 MiB, not JSON or not such a document.
    """
    try:
        data = json.loads(read_regular(path, MAX_DOCUMENT_BYTES))
        if member and isinstance(data, dict):
            data = data.get(member)
            if data is None:
                return None
        return model.model_validate(data)
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", where=str(path), remedy=remedy) from error
    except ValidationError as error:
        raise ConfigError(f"{what}: {first_fault(error)}", where=str(path), remedy=remedy) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON: {error}", where=str(path), remedy=remedy) from error


@dataclass(frozen=True)
class IdleOption:
    """An option or a group of options without effect: why, and what would give it one."""

    path: str
    reason: str
    remedy: str


def idle_options(options: Options, prefix: str = "") -> Iterator[IdleOption]:
    """What has no effect in these options; a group is told once and not option by option."""
    kind = type(options)
    idle: set[str] = set()
    conditions = [(name, _conditions(info.metadata)) for name, info in kind.model_fields.items()]
    conditions += [(path, _conditions([each])) for path, each in kind.only.items()]
    for path, alternatives in conditions:
        known = any(is_within(path, group) for group in idle)
        if alternatives and not known and not any(each.holds(options) for each in alternatives):
            idle.add(path)
            yield IdleOption(prefix + path, *alternatives[0].describe(options, prefix))
    for path, reason in options.replaced().items():
        if not any(is_within(path, group) for group in idle):
            idle.add(path)
            yield IdleOption(prefix + path, *reason)
    for name in kind.model_fields:
        value = getattr(options, name)
        if isinstance(value, Options) and name not in idle:
            inner = idle_options(value, f"{prefix}{name}.")
            yield from (each for each in inner if not any(is_within(each.path, prefix + path) for path in idle))


def first_problem(error: ValidationError) -> str:
    """The first thing that pydantic refused, in one line, with its place."""
    first = error.errors(include_url=False)[0]
    message = " ".join(first["msg"].removeprefix("Value error, ").split())
    return f"{'.'.join(map(str, first['loc']))}: {message}"[:300]


def is_within(path: str, group: str) -> bool:
    """Whether a dotted path is that of the group or of an option in it."""
    return path == group or path.startswith(f"{group}.")


def value_at(options: Options, path: str) -> Any:
    """The value of the option at a dotted path."""
    value: Any = options
    for name in path.split("."):
        value = getattr(value, name)
    return value


def in_words(value: object) -> str:
    """A value as one types it: yes, none, a,b."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(map(in_words, value)) or "none"
    return "none" if value is None else str(value)


def _leaves(value: object) -> Iterator[object]:
    """What a value of lists, tuples and mappings consists of, without the keys."""
    if isinstance(value, Mapping):
        yield from (leaf for each in value.values() for leaf in _leaves(each))
    elif isinstance(value, list | tuple):
        yield from (leaf for each in value for leaf in _leaves(each))
    else:
        yield value


def _matches(found: object, wanted: object) -> bool:
    if wanted is GIVEN or wanted is NOT_GIVEN:
        return bool(found) == (wanted is GIVEN)
    values = wanted if isinstance(wanted, tuple) else (wanted,)
    return any(each in values for each in found) if isinstance(found, list | tuple) else found in values


def _conditions(metadata: Iterable[object]) -> list[Only]:
    flat = [each for found in metadata for each in (found if isinstance(found, tuple) else (found,))]
    return [each for each in flat if isinstance(each, Only)]
