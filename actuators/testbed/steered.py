"""HAProxy and Envoy as load balancers of a live testbed: weights and windows over their own interfaces.

Each has one pool of servers, so that a topology has one group with the name of it (`GROUP`), and no histograms
(`actuators.statistics.haproxy`, `actuators.statistics.envoy`). They balance by weights alone, round robin.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from actuators.closing import Closing
from actuators.contract.admission import Admission
from actuators.contract.control import BY_TIMES, BalancingMethod, Control, Weights
from actuators.contract.testbed import Applied
from actuators.contract.topology import Topology
from actuators.errors import ActuationError, ConfigError
from actuators.external.actuator import ActuatorOptions, open_actuator
from actuators.testbed.peers import ENVOY_STEERED, HAPROXY_STEERED, Peer

GROUP = "servers"
"""The backend or cluster of what we run."""
STEERED = (HAPROXY_STEERED, ENVOY_STEERED)


def pool_of(topology: Topology) -> Topology:
    """The same servers as one group for all request types."""
    return Topology((replace(topology.groups[0], name=GROUP, servers=topology.servers),))


class SteeredProxy(Closing):
    """A running HAProxy or Envoy, as `actuators.testbed.live.ProxyPart`; a context manager.

    Args:
        name: of `STEERED`.

    Raises:
        ConfigError: the topology has other groups.
        MissingToolError, ProcessError: as `Peer`.
    """

    def __init__(self, name: str, topology: Topology, work_dir: Path) -> None:
        if [group.name for group in topology.groups] != [GROUP]:
            names = ", ".join(group.name for group in topology.groups)
            raise ConfigError(f"{name} has one pool here, not {names}", remedy=f"give one group '{GROUP}'")
        self._topology = topology
        self._peer = Peer(name, topology, work_dir)
        try:
            self._actuator = open_actuator(ActuatorOptions(control_url=self._peer.control_url))
        except BaseException:
            self._peer.close()
            raise

    @property
    def topology(self) -> Topology:
        """Of the one pool."""
        return self._topology

    @property
    def address(self) -> str:
        """HOST:PORT for requests."""
        return self._peer.address

    @property
    def status_url(self) -> str:
        """For `actuators.statistics.reader.Collector`."""
        return self._peer.control_url

    def set_method(self, method: BalancingMethod) -> None:
        """Equal weights, as with every change of a method. Raises ActuationError for a method of service times."""
        if method in BY_TIMES:
            raise ActuationError(f"{self._peer.name} cannot balance by {method}", remedy="use an NGINX with Lua")
        self.apply(Weights.equal(self._topology))

    def apply(self, control: Control) -> Applied:
        """Returns when the weights are in force; of service times their inverses. Raises ActuationError."""
        if control.topology != self._topology:
            raise ActuationError("the control is of another topology", where=self._peer.name)
        weights = control if isinstance(control, Weights) else control.as_weights()
        return self._actuator.apply(Weights(self._actuator.topology, weights.values, weights.down))

    def admit(self, admission: Admission | None) -> None:
        """Raises ActuationError for any rule: admission control needs our Lua code in NGINX."""
        self._peer.admit(admission)

    def forget_failures(self) -> None:
        """No effect: both try a server again after some seconds (docs/peers.md#programs)."""

    def cpu_s(self) -> dict[int, float]:
        """Process id → CPU seconds so far."""
        return self._peer.cpu_s()

    def close(self) -> None:
        """Ends it; idempotent."""
        self._peer.close()
