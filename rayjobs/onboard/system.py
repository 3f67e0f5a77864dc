"""How a system balances today, and what could be changed: weights by reload, or service times in memory. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from actuators.contract.control import BalancingMethod
from actuators.errors import ConfigError
from actuators.external.actuator import ActuatorOptions, MemoryActuator, open_actuator
from actuators.external.config_lexer import Directive
from actuators.external.config_reader import read_config
from actuators.external.envoy import EnvoyActuator
from actuators.external.haproxy import HaproxyActuator
from actuators.other_proxies import names_another
from rayjobs.onboard.options import OnboardOptions

STEERABLE = ("round_robin", "least_conn", "random_two")
_METHODS = {
    "least_conn": "least_conn", "random": "random_two", "ip_hash": "ip_hash", "hash": "hash", "sticky": "sticky",
    "least_time": "least_time", "fair": "fair",
}  # fmt: skip
_OF_OTHERS = {
    "roundrobin": "round_robin", "leastconn": "least_conn", "random": "random_two",
    "ROUND_ROBIN": "round_robin", "LEAST_REQUEST": "random_two",
}  # fmt: skip
"""Of HAProxy and Envoy, whose least request takes the better of two random servers."""
_PLAIN = {"random": (("two",), ("two", "least_conn"))}
"""The arguments with which a method is the one that is simulated; none where it is not listed."""
_ONE_METHOD = "name groups of one method with --groups; another --folder takes the others"


@dataclass(frozen=True)
class Way:
    """How a system is balanced, and how that can be changed.

    Attributes:
        method: in force today.
        in_memory: whether service times can be set; else weights can.
        changeable: whether a way to change anything was given at all.
        machines: NGINX machines before these servers; 1 when unknown.
        workers: workers of each that balance by what they sent themselves; 1 where they share it.
        source: where the method was read, in words.
    """

    method: BalancingMethod
    in_memory: bool
    changeable: bool
    source: str
    machines: int = 1
    workers: int = 1

    @property
    def steered(self) -> BalancingMethod:
        """The method under which a policy would act."""
        return "expected_delay" if self.in_memory else self.method


def way_of(options: OnboardOptions, groups: Sequence[str]) -> Way:
    """What the options lead to, for these groups.

    Raises:
        ConfigError: groups that balance by a method that cannot be simulated, or by several methods.
        ActuationError: the control endpoint does not answer.
    """
    machines = max(options.load_balancers, 1)
    if options.control_url:
        opened = ActuatorOptions(control_url=options.control_url, token_file=options.token_file)
        actuator = open_actuator(opened, tuple(groups) if names_another(options.control_url) else ())
        if isinstance(actuator, HaproxyActuator | EnvoyActuator):
            found = _OF_OTHERS.get(actuator.balance, actuator.balance)
            return Way(_steerable(found, options.control_url), False, True, options.control_url, machines)
        assert isinstance(actuator, MemoryActuator)
        method = actuator.method
        if method == "configured":
            what = "its groups balance by different methods, each by that of its upstream block"
            raise ConfigError(what, where=options.control_url, remedy=_ONE_METHOD)
        return Way(_steerable(method, options.control_url), True, True, options.control_url, machines)
    if options.nginx_conf is not None:
        config = read_config(options.nginx_conf)
        methods = {name: _configured(config.blocks[name].settings) for name in groups if name in config.blocks}
        missing = [name for name in groups if name not in methods]
        if missing:
            remedy = "give the main configuration of the NGINX that the statistics are of"
            raise ConfigError(f"no upstream '{missing[0]}'", where=str(options.nginx_conf), remedy=remedy)
        if len(set(methods.values())) > 1:
            found = ", ".join(f"{name}: {method}" for name, method in methods.items())
            what = f"groups balance by different methods: {found}"
            raise ConfigError(what, where=str(options.nginx_conf), remedy=_ONE_METHOD)
        where = f"{options.nginx_conf}: upstream {groups[0]}"
        workers = 1 if any(config.has_zone(name) for name in groups) else config.workers
        return Way(_steerable(methods[groups[0]], where), False, True, str(options.nginx_conf), machines, workers)
    if options.method is not None:
        return Way(_steerable(options.method, "--method"), False, False, "--method", machines)
    return Way("round_robin", False, False, "NGINX's own method; nothing else was given", machines)


def _configured(settings: Sequence[Directive]) -> str:
    """The method of an upstream block, in our words where we have one."""
    for directive in settings:
        words = (directive.name, *directive.arguments)
        if words[0] in _METHODS:
            return _METHODS[words[0]] if words[1:] in _PLAIN.get(words[0], ((),)) else " ".join(words)
    return "round_robin"


def _steerable(method: str, where: str) -> BalancingMethod:
    if method not in STEERABLE:
        remedy = f"methods that can be compared are: {', '.join(STEERABLE)}; leave such groups out with --groups"
        raise ConfigError(f"it balances by {method}", where=where, remedy=remedy)
    return next(known for known in get_args(BalancingMethod) if known == method)
