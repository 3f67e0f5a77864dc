"""HAProxy as the load balancer of a live testbed: weights over its runtime API, windows from its statistics.

It has one backend, so that a topology has one group with the name of it (`GROUP`), and no histograms
(`actuators.statistics.haproxy`). Its method is that of its configuration.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from actuators.contract.admission import Admission
from actuators.contract.control import BY_TIMES, BalancingMethod, Control, Weights
from actuators.contract.testbed import Applied
from actuators.contract.topology import Topology
from actuators.errors import ActuationError, ConfigError
from actuators.external.haproxy import HaproxyActuator
from actuators.haproxy_api import SCHEME
from actuators.testbed.peers import HAPROXY, Peer

GROUP = "servers"
"""The backend of a HAProxy that we run."""


class HaproxyProxy:
    """A running HAProxy with `balance roundrobin`, as `actuators.testbed.live.ProxyPart`; a context manager.

    Raises:
        ConfigError: the topology has other groups.
        MissingToolError, ProcessError: as `Peer`.
    """

    def __init__(self, topology: Topology, work_dir: Path) -> None:
        if [group.name for group in topology.groups] != [GROUP]:
            names = ", ".join(group.name for group in topology.groups)
            raise ConfigError(f"HAProxy has one backend here, not {names}", remedy=f"give one group '{GROUP}'")
        self._topology = topology
        self._peer = Peer(HAPROXY, topology, work_dir)
        self._actuator = HaproxyActuator(self._peer.control_socket)

    @property
    def address(self) -> str:
        """HOST:PORT for requests."""
        return self._peer.address

    @property
    def status_url(self) -> str:
        """For `actuators.statistics.reader.Collector`."""
        return f"{SCHEME}{self._peer.control_socket}"

    def set_method(self, method: BalancingMethod) -> None:
        """Equal weights, as with every change of a method. Raises ActuationError for a method of service times."""
        if method in BY_TIMES:
            raise ActuationError(f"HAProxy cannot balance by {method}", remedy="use an NGINX with Lua")
        self.apply(Weights.equal(self._topology))

    def apply(self, control: Control) -> Applied:
        """Returns when the weights are in force; of service times their inverses. Raises ActuationError."""
        if control.topology != self._topology:
            raise ActuationError("the control is of another topology", where="HAProxy")
        weights = control if isinstance(control, Weights) else control.as_weights()
        return self._actuator.apply(Weights(self._actuator.topology, weights.values, weights.down))

    def admit(self, admission: Admission | None) -> None:
        """Raises ActuationError for any rule: admission control needs our Lua code in NGINX."""
        if admission is not None:
            raise ActuationError("HAProxy does not support admission control", remedy="use an NGINX with Lua")

    def forget_failures(self) -> None:
        """No effect: without checks HAProxy tries every server."""

    def cpu_s(self) -> dict[int, float]:
        """Process id → CPU seconds so far."""
        return self._peer.cpu_s()

    def close(self) -> None:
        """Ends it; idempotent."""
        self._peer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
