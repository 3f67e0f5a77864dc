"""How an NGINX balances its upstreams, as its configuration says, and which methods can be simulated. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from actuators.contract.control import BalancingMethod
from actuators.errors import ConfigError
from actuators.external.config_reader import UpstreamBlock, read_config

_STEERABLE = ("round_robin", "least_conn", "random_two")
ONE_METHOD = "name groups of one method with --groups; another --folder or --out takes the others"
_METHODS = {
    "least_conn": "least_conn", "random": "random_two", "ip_hash": "ip_hash", "hash": "hash", "sticky": "sticky",
    "least_time": "least_time", "fair": "fair",
}  # fmt: skip
_PLAIN = {"random": (("two",), ("two", "least_conn"))}
"""The arguments with which a method is the one that is simulated; none where it is not listed."""


class Balancing(NamedTuple):
    """What balances some groups of one NGINX.

    Attributes:
        workers: workers that balance by what they sent themselves; 1 where they share it.
    """

    method: BalancingMethod
    workers: int


def configured_balancing(main: Path, groups: Sequence[str]) -> Balancing:
    """How the main configuration balances these groups.

    Raises ConfigError for a configuration that cannot be read or lacks a group, and for groups that balance by a method
    that cannot be simulated, or by several methods.
    """
    config = read_config(main)
    methods = {name: _configured(config.blocks[name]) for name in groups if name in config.blocks}
    missing = [name for name in groups if name not in methods]
    if missing:
        remedy = "give the main configuration of the NGINX that the statistics are of"
        raise ConfigError(f"no upstream '{missing[0]}'", where=str(main), remedy=remedy)
    if len(set(methods.values())) > 1:
        found = ", ".join(f"{name}: {method}" for name, method in methods.items())
        raise ConfigError(f"groups balance by different methods: {found}", where=str(main), remedy=ONE_METHOD)
    workers = 1 if any(config.has_zone(name) for name in groups) else config.workers
    return Balancing(steerable(methods[groups[0]], f"{main}: upstream {groups[0]}"), workers)


def steerable(method: str, where: str) -> BalancingMethod:
    """The method as a value. Raises ConfigError for one that cannot be simulated, with `where` it was read."""
    if method not in _STEERABLE:
        remedy = f"methods that can be compared are: {', '.join(_STEERABLE)}; leave such groups out with --groups"
        raise ConfigError(f"it balances by {method}", where=where, remedy=remedy)
    return next(known for known in get_args(BalancingMethod) if known == method)


def _configured(block: UpstreamBlock) -> str:
    """The method of an upstream block, in our words where we have one."""
    if block.lua is not None:
        return "Lua"
    for directive in block.settings:
        words = (directive.name, *directive.arguments)
        if words[0] in _METHODS:
            return _METHODS[words[0]] if words[1:] in _PLAIN.get(words[0], ((),)) else " ".join(words)
    return "round_robin"
