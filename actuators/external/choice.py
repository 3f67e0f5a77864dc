"""Which groups of an HAProxy or Envoy can have their weights set, and why others cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from actuators.contract.topology import Topology, group_of
from actuators.errors import ConfigError, closest

_REMEDY = "choose other groups with --groups A,B"


class Member(NamedTuple):
    """A server of a group; `out` when it is out of rotation."""

    server: str
    out: bool


class Choice(NamedTuple):
    """What is read and set.

    Attributes:
        left_out: groups whose weights cannot be set, and why; empty when groups were named.
    """

    topology: Topology
    left_out: dict[str, ConfigError]


def chosen(members: Mapping[str, Sequence[Member]], wanted: Sequence[str], where: str) -> Choice:
    """The groups of those names; without names, all groups whose weights can be set.

    Args:
        members: group → its servers, at least one of each; not empty.
        where: the load balancer, for errors.

    Raises ConfigError when no group can be set, or a wanted one is unknown or cannot be set.
    """
    for name in wanted:
        if name not in members:
            raise ConfigError(f"unknown group '{name}'", where=where, remedy=closest(name, members))
    reasons = unusable(members, where)
    refused = [reasons[name] for name in wanted or members if name in reasons]
    names = [name for name in members if name not in reasons and (not wanted or name in wanted)]
    if refused and (wanted or not names):
        raise refused[0]
    topology = Topology(tuple(group_of(name, tuple(each.server for each in members[name])) for name in names))
    return Choice(topology, {} if wanted else reasons)


def unusable(members: Mapping[str, Sequence[Member]], where: str) -> dict[str, ConfigError]:
    """Groups whose weights cannot be set, and why."""
    return {name: reason for name, each in members.items() if (reason := _problem(name, each, where)) is not None}


def _problem(name: str, members: Sequence[Member], where: str) -> ConfigError | None:
    counts = Counter(each.server for each in members)
    twice = next((server for server, count in counts.items() if count > 1), None)
    if twice is not None:
        return ConfigError(f"{twice} is listed twice in {name}", where=where, remedy=f"list it once, or {_REMEDY}")
    if all(each.out for each in members):
        remedy = f"put one of them back in rotation, or {_REMEDY}"
        return ConfigError(f"every server of {name} is out of rotation", where=where, remedy=remedy)
    try:
        group_of(name, tuple(counts))
    except ConfigError as error:
        return ConfigError(f"{name}: {error.what}", where=where, remedy=f"{error.remedy}; or {_REMEDY}")
    return None
