"""How a system balances today, and what could be changed: weights by reload, or service times in memory. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actuators.contract.control import BalancingMethod
from actuators.credentials import without_credentials
from actuators.errors import ConfigError
from actuators.external.actuator import ActuatorOptions, MemoryActuator, open_actuator
from actuators.external.balancing import configured_balancing, steerable
from actuators.external.envoy import EnvoyActuator
from actuators.external.haproxy import HaproxyActuator
from actuators.other_proxies import names_another
from rayjobs.onboard.options import OnboardOptions

_OF_OTHERS = {
    "roundrobin": "round_robin", "leastconn": "least_conn", "random": "random_two",
    "ROUND_ROBIN": "round_robin", "LEAST_REQUEST": "random_two",
}  # fmt: skip
"""Of HAProxy and Envoy, whose least request takes the better of two random servers."""


_ONE_METHOD_IN_MEMORY = (
    "write the snippet again for groups of one method (deepsched weights snippet --groups A,B; the others stay as they"
    " are), or with --set memory.method=least_conn for all"
)


@dataclass(frozen=True)
class Way:
    """How a system is balanced, and how that can be changed.

    Attributes:
        method: in force today.
        in_memory: whether service times can be set; else weights can.
        changeable: whether a way to change anything was given at all.
        machines: NGINX machines before these servers; 1 when unknown.
        workers: workers of each that balance by what they sent themselves; 1 where they share it.
        source: where the method was read, in words and without credentials.
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
    address = without_credentials(options.control_url)
    if options.control_url:
        opened = ActuatorOptions(control_url=options.control_url, token_file=options.token_file)
        actuator = open_actuator(opened, tuple(groups) if names_another(options.control_url) else ())
        if isinstance(actuator, HaproxyActuator | EnvoyActuator):
            found = _OF_OTHERS.get(actuator.balance, actuator.balance)
            return Way(steerable(found, address), False, True, address, machines)
        assert isinstance(actuator, MemoryActuator)
        method = actuator.method
        if method == "configured":
            what = "its groups balance as their upstream blocks said, and its endpoint does not tell how"
            again = "where they have one method, reload NGINX, and it names that"
            remedy = f"{again}; otherwise {_ONE_METHOD_IN_MEMORY}"
            raise ConfigError(what, where=address, remedy=remedy)
        return Way(steerable(method, address), True, True, address, machines)
    if options.nginx_conf is not None:
        own = configured_balancing(options.nginx_conf, groups)
        return Way(own.method, False, True, str(options.nginx_conf), machines, own.workers)
    if options.method is not None:
        return Way(steerable(options.method, "--method"), False, False, "--method", machines)
    return Way("round_robin", False, False, "NGINX's own method; nothing else was given", machines)
