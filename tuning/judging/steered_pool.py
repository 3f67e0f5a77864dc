"""HAProxy and Envoy as contenders that we steer: weights by inverse latency, over their own interfaces.

Both have one pool of servers for all request types here, so that no controller of the scenario's topology can set its
weights. The pool has its own: by what HAProxy's socket or Envoy's admin endpoint tells of its servers.
"""

from __future__ import annotations

import numpy as np

from actuators.closing import Closing
from actuators.contract.admission import Admission
from actuators.contract.arrays import IntArray
from actuators.contract.control import BalancingMethod, Control, Weights
from actuators.contract.testbed import Applied
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.statistics.reader import Collector
from actuators.testbed.peers import NoStatistics
from actuators.testbed.steered import SteeredProxy
from envs.observation.features import LatencyMemory, inverse_latency_shares, server_features

LEAST_CHANGE = 0.05
"""Relative change of a server's share up to which the present weights stay."""
_ANY_DEADLINE_S = np.ones(1)
"""No feature that depends on it is used."""


class SteeredPool(NoStatistics, Closing):
    """Stands where an NGINX and its collector stand in a live testbed; its windows have no counts.

    Whenever a window ends, the weights of the pool follow the response times in it, as the heuristic
    `inverse_latency` sets them; they stay over a new block.

    Args:
        topology: that of the scenario.
        proxy: a running one; the caller closes it.
    """

    def __init__(self, topology: Topology, proxy: SteeredProxy) -> None:
        super().__init__(topology)
        self._proxy, self._collector = proxy, Collector(proxy.status_url, proxy.topology)
        self._memory = LatencyMemory.empty(proxy.topology.shape)
        self._weights = Weights.equal(proxy.topology)

    def forget(self) -> None:
        """Equal weights and no memory, as at the start. Raises ActuationError."""
        self._memory = LatencyMemory.empty(self._proxy.topology.shape)
        self._weights = Weights.equal(self._proxy.topology)
        self._proxy.apply(self._weights)

    @property
    def weights(self) -> IntArray:
        """``[servers]``: the ones in force."""
        values: IntArray = self._weights.values[0]
        return values

    def begin(self) -> None:
        super().begin()
        self._collector.begin()

    def window(self) -> Window:
        """Raises StatusError and ActuationError when the proxy does not answer."""
        seen = self._collector.window()
        if seen.usable and seen.requests.sum():
            server_features(seen, _ANY_DEADLINE_S, self._memory)
            wanted = Weights.from_shares(self._proxy.topology, inverse_latency_shares(self._memory.fast_s))
            if (abs(wanted.shares() / self._weights.shares() - 1) > LEAST_CHANGE).any():
                self._proxy.apply(wanted)
                self._weights = wanted
        return super().window()

    def set_method(self, method: BalancingMethod) -> None:
        """No effect: both balance round robin by weights."""

    def apply(self, control: Control) -> Applied:
        """No effect: the weights are the pool's own."""
        return Applied(False, 0.0)

    def admit(self, admission: Admission | None) -> None:
        """Raises ActuationError for any rule."""
        self._proxy.admit(admission)

    def forget_failures(self) -> None:
        self._proxy.forget_failures()

    def cpu_s(self) -> dict[int, float]:
        """Process id → CPU seconds so far."""
        return self._proxy.cpu_s()

    def close(self) -> None:
        """Ends the reading of its statistics; idempotent."""
        self._collector.close()
