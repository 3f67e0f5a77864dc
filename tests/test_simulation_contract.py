from __future__ import annotations

from collections.abc import Callable

import pytest
from contracts import CONTRACT, Factory

from actuators.testbed import Testbed
from actuators.topology import Group, Topology, social_network
from envs.simulation import SimulatedTestbed

UNEVEN = Topology(
    (
        Group("one", "compose", "POST", "/one", 2.0, ("a:1", "b:1", "c:1")),
        Group("two", "home_read", "GET", "/two", 3.0, ("a:1", "c:1")),
    )
)


@pytest.mark.parametrize("clause", CONTRACT, ids=lambda clause: clause.__name__)
@pytest.mark.parametrize("topology", [social_network(), UNEVEN], ids=["social_network", "uneven"])
def test_simulated_testbed(clause: Callable[[Factory], None], topology: Topology) -> None:
    def make() -> Testbed:
        return SimulatedTestbed(topology)

    clause(make)
