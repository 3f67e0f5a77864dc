"""A parsed configuration as topology and weights, and the edits of its server lines that set other weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actuators.contract.control import MAX_WEIGHT, Weights
from actuators.contract.topology import Group, Topology
from actuators.errors import ActuationError, ConfigError, closest
from actuators.external.config_editor import ServerEdit, edit_file
from actuators.external.config_reader import ParsedConfig, ServerLine
from actuators.nginx.reload import Change

_REMEDY = "choose other groups with --groups A,B"


def config_topology(config: ParsedConfig, wanted: Sequence[str]) -> Topology:
    """The groups of those names; without names, all groups that weights can be set in (`unusable` tells the others).

    Raises ConfigError when there is none, or a wanted one is unknown or unusable.
    """
    names, reasons = config.groups, unusable(config)
    if not names:
        raise ConfigError(
            "no upstream in its http block", where=str(config.main), remedy="name the right configuration"
        )
    for name in wanted:
        if name not in names:
            raise ConfigError(f"unknown group '{name}'", where=str(config.main), remedy=closest(name, names))
        if name in reasons:
            raise reasons[name]
    chosen = wanted or [name for name in names if name not in reasons]
    if not chosen:
        raise next(iter(reasons.values()))
    return Topology(tuple(_group(config, name) for name in chosen))


def unusable(config: ParsedConfig) -> dict[str, ConfigError]:
    """Groups whose weights cannot be set, and why."""
    return {name: reason for name in config.groups if (reason := _problem(config, name)) is not None}


def _problem(config: ParsedConfig, name: str) -> ConfigError | None:
    block = config.blocks[name]
    if block.lua is not None:
        where, remedy = f"{block.file}:{block.lua.line}", f"give the --control-url of its snippet, or {_REMEDY}"
        return ConfigError(f"Lua balances {name}, and does not obey weights of the file", where=where, remedy=remedy)
    lines = config.group(name)
    if not lines:
        return ConfigError(f"{name} has no server lines", where=config.groups[name], remedy=_REMEDY)
    counts = Counter(line.server for line in lines)
    twice = next((line for line in lines if counts[line.server] > 1), None)
    if twice is not None:
        where, remedy = f"{twice.file}:{twice.line}", f"list it once, or {_REMEDY}"
        return ConfigError(f"{twice.server} is listed twice in {name}", where=where, remedy=remedy)
    try:
        _group(config, name)
        for line in lines:
            line.weight  # noqa: B018 - read for its check
    except ConfigError as error:
        return ConfigError(f"{name}: {error.what}", where=error.where, remedy=f"{error.remedy}; or {_REMEDY}")
    if all(line.down for line in lines):
        remedy = f"remove `down` from one of its servers, or {_REMEDY}"
        return ConfigError(f"every server of {name} is down", where=config.groups[name], remedy=remedy)
    return None


def _group(config: ParsedConfig, name: str) -> Group:
    return Group(name, name, "GET", "/", 2.0, tuple(line.server for line in config.group(name)))


def config_weights(config: ParsedConfig, topology: Topology) -> Weights:
    """The weights in the files, at most MAX_WEIGHT.

    Raises ConfigError when the servers have changed, or all of a group are down.
    """
    check_servers(config, topology)
    values, down = np.zeros(topology.shape, np.int64), np.zeros(topology.shape, bool)
    for g, group in enumerate(topology.groups):
        for line in config.group(group.name):
            s = topology.server_index(line.server)
            values[g, s], down[g, s] = line.weight, line.down
    return Weights(topology, _scaled(values), down)


def check_servers(config: ParsedConfig, topology: Topology) -> None:
    """Raises ConfigError when the servers of a group are not those of the topology."""
    for group in topology.groups:
        if tuple(line.server for line in config.group(group.name)) != group.servers:
            raise ConfigError(f"the servers of {group.name} have changed", where=str(config.main), remedy="start again")


def config_edits(config: ParsedConfig, control: Weights, first: ParsedConfig | None = None) -> list[ServerEdit]:
    """What every server line of the control's groups must say.

    Args:
        first: the configuration before any edit: weights that it has are written as they stood there.

    Raises:
        ActuationError, ConfigError: the lines cannot say it.
    """
    topology = control.topology
    check_servers(config, topology)
    edits: list[ServerEdit] = []
    wanted: dict[tuple[Path, int], ServerEdit] = {}
    for g, group in enumerate(topology.groups):
        values = {server: int(control.values[g, topology.server_index(server)]) for server in group.servers}
        wording = _wording(first.group(group.name) if first else [], values)
        for line in config.group(group.name):
            s, weight, bare = topology.server_index(line.server), values[line.server], False
            if (was := wording.get(line.server)) is not None:
                weight, bare = was.weight, not any(word.startswith("weight=") for word in was.parameters)
            edit = ServerEdit(line, weight, bool(control.down[g, s]), bare)
            edits.append(edit)
            same = wanted.setdefault((line.file, line.start), edit)
            if (same.weight, same.down) != (edit.weight, edit.down):
                remedy = "give both the same weight, or each group its own lines"
                raise ActuationError("two groups share this line", where=f"{line.file}:{line.line}", remedy=remedy)
    return edits


def _wording(first: Sequence[ServerLine], values: Mapping[str, int]) -> dict[str, ServerLine]:
    """Server → its first line, where that says the wanted weight; above 100 only a whole group can say it."""
    weights = np.array([line.weight for line in first], np.int64)
    found = {
        line.server: line
        for line, weight in zip(first, _scaled(weights[None])[0] if len(first) else (), strict=True)
        if values.get(line.server) == weight
    }
    return found if weights.max(initial=0) <= MAX_WEIGHT or found.keys() == values.keys() else {}


def changed_files(edits: Sequence[ServerEdit]) -> dict[Path, Change]:
    """The files that these edits change, old and new bytes. Raises ActuationError, ConfigError."""
    changes: dict[Path, Change] = {}
    for path in dict.fromkeys(edit.line.file for edit in edits):
        old = path.read_bytes()
        # Groups that include one file share its lines.
        own = {edit.line.start: edit for edit in edits if edit.line.file == path}
        new = edit_file(old, list(own.values()))
        if new != old:
            changes[path] = Change(old, new)
    return changes


def says(config: ParsedConfig, control: Weights, edits: Sequence[ServerEdit]) -> bool:
    """Whether the server lines of the control's groups say what the edits ask for."""
    wanted = {(edit.line.group, edit.line.server): (edit.weight, edit.down) for edit in edits}
    found = {
        (line.group, line.server): (line.weight, line.down)
        for group in control.topology.groups
        for line in config.group(group.name)
    }
    return all(found.get(name) == value for name, value in wanted.items())


def _scaled(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Scales groups with a weight above 100 down to it."""
    largest = values.max(axis=1, keepdims=True)
    scaled = np.maximum(np.rint(values * MAX_WEIGHT / np.maximum(largest, 1)), 1)
    return np.where(largest > MAX_WEIGHT, scaled, values).astype(np.int64)
