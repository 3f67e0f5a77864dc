"""Options from YAML files, `--set a.b=c` and flags; every refusal is one ConfigError that names the full path.

A value that was given is in force or refused: an option that has no effect beside the others (`actuators.options.Only`)
is an error, and the printed and saved configuration holds what is in force and nothing else.
"""

from __future__ import annotations

import difflib
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from actuators.credentials import without_credentials
from actuators.errors import ConfigError, closest
from actuators.options import IdleOption, Moved, Never, Options, Retired, idle_options, in_words, is_within, value_at
from actuators.yaml_files import parse_yaml, read_mapping

CONFIGS = Path(__file__).parents[1] / "configs"
OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True)
class Field:
    """One option that can be set.

    Attributes:
        path: where it is, as `load.rate_rps`.
        info: what pydantic knows about it.
        default: the one in force, which an outer class may have changed; `PydanticUndefined` when it must be given.
    """

    path: str
    info: FieldInfo
    default: object


@dataclass(frozen=True)
class Layer:
    """Values from one source; later layers win.

    Attributes:
        saved: whether a run saved them; earlier versions also saved what had no effect.
    """

    source: str
    values: dict[str, Any]
    saved: bool = False


def load_options(
    options: type[OptionsT],
    *,
    file: Path | None = None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> OptionsT:
    """The options in force: defaults < `file` < `assignments` (`a.b=c`) < `flags`, then `Options.resolved`.

    Raises:
        ConfigError: unreadable file, unknown key (with the closest match), a wrong value, or one without effect.
    """
    layers = [] if file is None else [read_yaml(file)]
    layers += [_assignment_layer(options, text) for text in assignments]
    layers += [Layer(f"--{name.replace('_', '-')}", {name: value}) for name, value in (flags or {}).items()]
    layers = [_modernised(layer, options) for layer in layers]
    filled = _filled(options, layers)
    if file is not None and (superseded := _superseded(filled, layers)):
        for path in superseded:
            _taken(layers[0].values, path)
        print(f"without effect beside the other options: {', '.join(superseded)} ({layers[0].source})", file=sys.stderr)
        filled = _filled(options, layers)
    for path, layer, idle in _idle_values(filled, layers):
        raise ConfigError(
            f"option '{path}' has no effect {idle.reason}", where=layer.source, remedy=f"{idle.remedy}, or leave it out"
        )
    return filled


def resumed(options: OptionsT, folder: Path, may_differ: Sequence[str] = ()) -> OptionsT:
    """The options of the run in `folder`, which goes on, with the given values of those that may differ.

    Raises:
        ConfigError: not the folder of a run, or another value was given than the run has.
    """
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise ConfigError("not the folder of a run", where=str(folder), remedy="give the one that holds config.yaml")
    earlier = load_options(type(options), file=saved)
    changes: dict[str, Any] = {"resume": folder}
    for path in (field.path for field in fields_of(type(options)) if options.given(field.path)):
        value, before = value_at(options, path), value_at(earlier, path)
        if path in may_differ:
            changes[path] = value
        elif path != "resume" and value != before:
            if isinstance(value, str) and without_credentials(value) == before:
                # A run does not keep credentials: they are given again.
                changes[path] = value
                continue
            what = f"'{path}' is {in_words(value)}, but {in_words(before)} in the run that goes on"
            raise ConfigError(what, where=str(folder), remedy="leave it out, or begin a new run")
    return earlier.changed(changes)


def dump_yaml(options: Options) -> str:
    """The options in force as YAML, without credentials of URLs; loaded back, they give the same run."""
    tree = options.model_dump(mode="json")
    for idle in idle_options(options):
        *groups, name = idle.path.split(".")
        level = tree
        for group in groups:
            level = level[group]
        level.pop(name, None)
    return without_credentials(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def read_yaml(file: Path) -> Layer:
    """The mapping in a YAML file; a bare name (`quick`) means a file in rayjobs/configs/.

    Raises:
        ConfigError: missing, unreadable, not YAML, a key twice, or not a mapping.
    """
    ours = CONFIGS / f"{file}.yaml"
    path = ours if not file.exists() and ours.is_file() else file
    try:
        values = read_mapping(path, "config file")
    except OSError as error:
        near = {p.name for p in path.parent.glob("*.yaml")} | {p.stem for p in CONFIGS.glob("*.yaml")}
        remedy = closest(file.name, near) if near else ""
        raise ConfigError(f"cannot read the config file: {error.strerror}", where=str(file), remedy=remedy) from error
    return Layer(str(path), values, saved=(path.parent / "command.txt").exists())


def fields_of(options: type[Options], default: Options | None = None, *, every: bool = False) -> Iterator[Field]:
    """Every option of a class and of the option classes nested in it, depth first, in the order written.

    Args:
        default: holds the defaults in force; the class's own when not given.
        every: also nested options that an outer class decides itself.
    """
    hidden = [path for path, condition in options.only.items() if isinstance(condition, Never) and not every]
    for name, info in options.model_fields.items():
        value = info.get_default(call_default_factory=True) if default is None else getattr(default, name)
        nested = nested_options(info.annotation)
        if nested is None:
            fields = [Field(name, info, value)]
        else:
            inner = fields_of(nested, value if isinstance(value, Options) else None, every=every)
            fields = [replace(field, path=f"{name}.{field.path}") for field in inner]
        yield from (field for field in fields if not any(is_within(field.path, path) for path in hidden))


def nested_options(annotation: object) -> type[Options] | None:
    """The Options class in an annotation (`X`, `X | None`), None when it is a plain value."""
    for kind in alternatives(annotation):
        if isinstance(kind, type) and issubclass(kind, Options):
            return kind
    return None


def alternatives(annotation: object) -> tuple[object, ...]:
    """The members of a union, or the annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def choices_of(annotation: object) -> tuple[str, ...]:
    """The strings that a Literal allows; empty when it is none."""
    return tuple(
        value
        for kind in alternatives(annotation)
        if get_origin(kind) is Literal
        for value in get_args(kind)
        if isinstance(value, str)
    )


def is_list(annotation: object) -> bool:
    """Whether the value is a list or tuple of plain values, written `a,b,c` on the command line."""
    return any(get_origin(kind) in (list, tuple) or kind in (list, tuple) for kind in alternatives(annotation))


def parse_value(annotation: object, text: str) -> object:
    """What a text from the command line means: lists and mappings are YAML, the rest is left to pydantic."""
    kinds = alternatives(annotation)
    if type(None) in kinds and text.lower() in ("none", "null", ""):
        return None
    if is_list(annotation):
        return _yaml_value(text if text.lstrip().startswith("[") else f"[{text}]")
    structured = any(get_origin(kind) is not None and get_origin(kind) is not Literal for kind in kinds)
    return _yaml_value(text) if structured or Any in kinds or nested_options(annotation) else text


def _modernised(layer: Layer, options: type[Options]) -> Layer:
    """The layer with the options of earlier versions under today's names; typed ones are remarked on."""
    values = _copy(layer.values)
    assert isinstance(values, dict)
    for old, rule in _moved(options):
        value = _taken(values, old)
        if value is _ABSENT or (layer.saved and not rule.obeyed):
            continue
        if isinstance(rule, Retired):
            if value != rule.default:
                raise ConfigError(f"there is no option '{old}'", where=layer.source, remedy=rule.instead)
            continue
        present = _found(values, rule.to)
        if not rule.obeyed and present != value:
            raise ConfigError(f"there is no option '{old}'", where=layer.source, remedy=f"set {rule.to} instead")
        if present not in (_ABSENT, value):
            what = f"'{old}' and '{rule.to}' are one option now, and here they differ"
            raise ConfigError(what, where=layer.source, remedy=f"remove {old}")
        _put(values, rule.to, value)
        if not layer.saved:
            print(f"'{old}' is now '{rule.to}' ({layer.source})", file=sys.stderr)
    return replace(layer, values=values)


def _moved(options: type[Options], prefix: str = "") -> Iterator[tuple[str, Moved | Retired]]:
    for old, rule in options.moved.items():
        yield prefix + old, replace(rule, to=prefix + rule.to) if isinstance(rule, Moved) else rule
    for name, info in options.model_fields.items():
        nested = nested_options(info.annotation)
        if nested is not None:
            yield from _moved(nested, f"{prefix}{name}.")


def _completed(options: type[Options], given: Mapping[str, Any]) -> dict[str, Any]:
    """The given values and, in groups that are given in part, the defaults that the outer class has for the rest."""
    values = dict(given)
    for name, info in options.model_fields.items():
        default = info.get_default(call_default_factory=True)
        if isinstance(default, Options) and isinstance(given.get(name), Mapping):
            values[name] = _values_of(default)
            _merge(values[name], _completed(type(default), given[name]))
    return values


def _values_of(options: Options) -> dict[str, Any]:
    """What an instance says beyond the defaults of its classes."""
    values: dict[str, Any] = {}
    for name in type(options).model_fields:
        value = getattr(options, name)
        inner = _values_of(value) if isinstance(value, Options) else None
        if inner or (name in options.model_fields_set and inner is None):
            values[name] = value if inner is None else inner
    return values


def _mark_given(options: Options, given: Mapping[str, Any]) -> None:
    """Makes `Options.given` tell what was given, and not what `_completed` added."""
    options.model_fields_set.intersection_update(given)
    for name, value in given.items():
        group = getattr(options, name)
        if isinstance(group, Options) and isinstance(value, Mapping):
            _mark_given(group, value)


def _filled(options: type[OptionsT], layers: Sequence[Layer]) -> OptionsT:
    """The resolved options of the layers. Raises ConfigError for what is unknown or wrong."""
    given: dict[str, Any] = {}
    for layer in layers:
        _merge(given, layer.values)
    try:
        filled = options.model_validate(_completed(options, given))
        _mark_given(filled, given)
        return filled.resolved()
    except ValidationError as error:
        raise _explain(error, options, layers) from error


def _idle_values(options: Options, layers: Sequence[Layer]) -> Iterator[tuple[str, Layer, IdleOption]]:
    """The values that were given and have no effect, and why."""
    defaults = {field.path: field.default for field in fields_of(type(options), every=True)}
    for idle in idle_options(options):
        for layer in layers:
            for path in _paths(layer.values):
                # Earlier versions saved everything, and what is at its default changes nothing.
                harmless = layer.saved and path in defaults and value_at(options, path) == defaults[path]
                if is_within(path, idle.path) and not harmless:
                    yield path, layer, idle


def _superseded(options: Options, layers: Sequence[Layer]) -> list[str]:
    """What the file, the first layer, gives and only the later layers leave without effect."""
    file, *later = layers
    idle = [path for path, layer, _ in _idle_values(options, layers) if layer is file] if later else []
    if not idle:
        return []
    alone = {path for path, *_ in _idle_values(_filled(type(options), [file]), [file])}
    return [path for path in idle if path not in alone]


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted paths of the values that are not mappings."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _paths(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _assignment_layer(options: type[Options], text: str) -> Layer:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"'{text}' is not an assignment", where="--set", remedy="write --set NAME.FIELD=VALUE")
    info = {field.path: field.info for field in fields_of(options)}.get(path)
    parsed: Any = parse_value(info.annotation if info else Any, value)
    for part in reversed(path.split(".")):
        parsed = {part: parsed}
    return Layer(f"--set {text}", parsed)


def _yaml_value(text: str) -> object:
    try:
        value: object = parse_yaml(text)
        return value
    except ValueError:
        return text


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = _copy(value)


def _copy(value: object) -> object:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _explain(error: ValidationError, options: type[Options], layers: Sequence[Layer]) -> ConfigError:
    """The first thing that pydantic refused, in our words, and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    path, info = _locate(options, first["loc"])
    where = _source(layers, path)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        return ConfigError(f"unknown option '{path}'{more}", where=where, remedy=_closest_path(options, path))
    if first["type"] == "missing":
        return ConfigError(
            f"option '{path}' is missing{more}", where=where, remedy="it has no default; give it a value"
        )
    if first["type"] == "too_short":
        least = f"give at least {first['ctx']['min_length']}"
        return ConfigError(f"option '{path}' has too few values{more}", where=where, remedy=least)
    # Options that contradict each other explain it themselves; their values would only hide it.
    if first["type"] == "value_error" and (info is None or nested_options(info.annotation)):
        return ConfigError(first["msg"].removeprefix("Value error, ") + more, where=where)
    choices = choices_of(info.annotation) if info else ()
    remedy = closest(str(first["input"]), choices) if choices else ""
    rule = first["msg"].replace("Input should be ", "must be ", 1).removeprefix("Value error, ")
    return ConfigError(f"option '{path}' is {first['input']!r}, {rule}{more}", where=where, remedy=remedy)


def _locate(options: type[Options], location: tuple[int | str, ...]) -> tuple[str, FieldInfo | None]:
    """Pydantic's location as a dotted path, without the names of union members that it mixes in."""
    path: list[str] = []
    level: type[Options] | None = options
    info: FieldInfo | None = None
    for index, part in enumerate(location):
        is_last = index == len(location) - 1
        if level is not None and isinstance(part, str) and (part in level.model_fields or is_last):
            path.append(part)
            info = level.model_fields.get(part)
            level = nested_options(info.annotation) if info else None
        elif isinstance(part, int):
            path.append(str(part))
    return ".".join(path), info


def _source(layers: Sequence[Layer], path: str) -> str:
    """The last source that gave a value at `path` or nearest above it, or the only one; empty for a default."""
    parts = path.split(".") if path else []
    for depth in range(len(parts), 0, -1):
        for layer in reversed(layers):
            if _found(layer.values, ".".join(parts[:depth])) is not _ABSENT:
                return layer.source
    return layers[0].source if len(layers) == 1 and not path else ""


_ABSENT = object()


def _found(values: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of nested mappings, `_ABSENT` when there is none."""
    value: Any = values
    for part in path.split("."):
        value = value.get(part, _ABSENT) if isinstance(value, Mapping) else _ABSENT
    return value


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    name, _, rest = path.partition(".")
    if rest:
        _put(values.setdefault(name, {}), rest, value)
    else:
        values[name] = value


def _taken(values: dict[str, Any], path: str) -> Any:
    """`_found`, and it is not there any more; nor is a group that has become empty."""
    name, _, rest = path.partition(".")
    if not rest:
        return values.pop(name, _ABSENT)
    inner = values.get(name, _ABSENT)
    value = _taken(inner, rest) if isinstance(inner, dict) else _ABSENT
    if value is not _ABSENT and not inner:
        del values[name]
    return value


def _closest_path(options: type[Options], path: str) -> str:
    """The closest option: first among the neighbours, then anywhere in the tree, else the neighbours' names."""
    parent, _, name = path.rpartition(".")
    level: type[Options] | None = options
    for part in filter(None, parent.split(".")):
        level = nested_options(level.model_fields[part].annotation) if level and part in level.model_fields else None
    prefix = f"{parent}." if parent else ""
    neighbours = {field: prefix + field for field in (level.model_fields if level else ())}
    match = difflib.get_close_matches(name, neighbours, n=1, cutoff=0.6)
    if match:
        return f"did you mean '{neighbours[match[0]]}'?"
    everywhere = [field.path for field in fields_of(options)]
    same_name = [candidate for candidate in everywhere if candidate.rpartition(".")[2] == name]
    match = same_name or difflib.get_close_matches(path, everywhere, n=1, cutoff=0.75)
    return f"did you mean '{match[0]}'?" if match else f"expected one of: {', '.join(sorted(neighbours.values()))}"
