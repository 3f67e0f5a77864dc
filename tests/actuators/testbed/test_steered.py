"""Testbeds with HAProxy and Envoy pass the clauses of the testbed's contract that are about weights and counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actuators.contract.topology import social_network
from actuators.errors import ActuationError, ConfigError
from actuators.statistics.reader import Collector
from actuators.testbed.live import LiveTestbed
from actuators.testbed.peers import why_missing
from actuators.testbed.steered import STEERED, SteeredProxy, pool_of
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
"""Without those about service times, late binding and admission, which they have not."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveParts]:
    if all(why_missing(name) for name in STEERED):
        pytest.skip(why_missing(STEERED[0]))
    with running_parts(tmp_path_factory.mktemp("live")) as parts:
        yield parts


@pytest.fixture(scope="module", params=STEERED)
def proxy(
    request: pytest.FixtureRequest, parts: LiveParts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SteeredProxy]:
    if why_missing(request.param):
        pytest.skip(why_missing(request.param))
    with SteeredProxy(request.param, pool_of(parts.topology), tmp_path_factory.mktemp("proxy")) as proxy:
        yield proxy


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.__name__)
def test_testbed(clause: Callable[[Factory], None], parts: LiveParts, proxy: SteeredProxy) -> None:
    topology = pool_of(parts.topology)
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


def test_what_they_have_not_is_refused(proxy: SteeredProxy, tmp_path: Path) -> None:
    with pytest.raises(ActuationError, match="cannot balance by expected_delay"):
        proxy.set_method("expected_delay")
    proxy.admit(None)
    with pytest.raises(ConfigError, match="one pool here"):
        SteeredProxy(STEERED[0], social_network(), tmp_path)
