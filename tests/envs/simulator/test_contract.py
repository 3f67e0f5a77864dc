"""The simulated testbed passes the contract of every testbed, and its intervals are exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from actuators.contract.control import ServiceTimes
from actuators.contract.testbed import Testbed
from actuators.contract.topology import Group, Topology, social_network
from envs.simulator.testbed import SimulatedTestbed
from tests.support.contracts import CONTRACT, RATE_RPS, ContractScenario, Factory

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


def test_intervals_are_exact() -> None:
    with SimulatedTestbed(UNEVEN) as testbed:
        testbed.reset(ContractScenario(), 1)
        windows = [testbed.advance(interval_s) for interval_s in (0.4, 0.4, 1.3)]
    assert [window.duration_s for window in windows] == pytest.approx([0.4, 0.4, 1.3])
    assert [window.start_s for window in windows[1:]] == pytest.approx([window.end_s for window in windows[:-1]])
    due = np.array([RATE_RPS * window.duration_s for window in windows])
    assert (np.abs([window.requests.sum() for window in windows] - due) < 6 * np.sqrt(due)).all()


def test_service_times_of_servers_that_a_group_lacks_do_not_matter() -> None:
    with SimulatedTestbed(UNEVEN, "expected_delay") as testbed:
        testbed.reset(ContractScenario(), 1)
        tau_s = np.where(UNEVEN.mask, 0.01, np.nan)
        testbed.apply(ServiceTimes(UNEVEN, tau_s, np.full(3, 4.0)))
        window = testbed.advance(2.0)
        assert (window.requests[UNEVEN.mask] > 0).all()
        assert (window.requests[~UNEVEN.mask] == 0).all()
