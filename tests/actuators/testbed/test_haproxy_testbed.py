"""A testbed with HAProxy passes the clauses of the testbed's contract that are about weights and counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actuators.contract.topology import Topology, social_network
from actuators.errors import ActuationError, ConfigError
from actuators.statistics.reader import Collector
from actuators.testbed.haproxy import GROUP, HaproxyProxy
from actuators.testbed.live import LiveTestbed
from actuators.testbed.peers import HAPROXY, why_missing
from tests.support import contracts
from tests.support.contracts import Factory
from tests.support.live_parts import LiveParts, running_parts

pytestmark = pytest.mark.nginx

CLAUSES = (
    contracts.refuses_to_advance_before_reset_and_after_close,
    contracts.windows_are_whole,
    contracts.drain_accounts_for_every_request,
    contracts.weights_are_in_force_and_read_back,
    contracts.a_server_that_is_down_gets_nothing,
    contracts.reset_puts_equal_weights_in_force,
    contracts.a_control_of_another_topology_is_refused,
    contracts.service_times_are_read_as_inverse_weights,
)
"""Without those about service times, late binding and admission, which HAProxy has not."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveParts]:
    if why_missing(HAPROXY):
        pytest.skip(why_missing(HAPROXY))
    with running_parts(tmp_path_factory.mktemp("live")) as parts:
        yield parts


@pytest.fixture(scope="module")
def proxy(parts: LiveParts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HaproxyProxy]:
    with HaproxyProxy(one_group(parts.topology), tmp_path_factory.mktemp("haproxy")) as proxy:
        yield proxy


def one_group(topology: Topology) -> Topology:
    return Topology((replace(topology.groups[0], name=GROUP, servers=topology.servers),))


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.__name__)
def test_testbed_with_haproxy(clause: Callable[[Factory], None], parts: LiveParts, proxy: HaproxyProxy) -> None:
    topology = one_group(parts.topology)
    with Collector(proxy.status_url, topology) as collector:

        def make() -> LiveTestbed:
            return LiveTestbed(
                topology,
                proxy.address,
                servers=parts.servers,
                proxy=proxy,
                collector=collector,
                load=parts.load,
                close=parts.load.close,
            )

        clause(make)


def test_what_haproxy_has_not_is_refused(parts: LiveParts, proxy: HaproxyProxy, tmp_path: Path) -> None:
    with pytest.raises(ActuationError, match="cannot balance by expected_delay"):
        proxy.set_method("expected_delay")
    proxy.admit(None)
    with pytest.raises(ConfigError, match="one backend here"):
        HaproxyProxy(social_network(), tmp_path)
