"""HAProxy and Envoy as contenders that we steer: the weights of their pool follow the response times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from actuators.contract.script import RateStep, Script, ServerProfile, Stream
from actuators.contract.topology import Topology
from actuators.testbed.live import LiveTestbed
from actuators.testbed.peers import why_missing
from actuators.testbed.steered import STEERED, SteeredProxy, pool_of
from tests.support.live_parts import LiveParts, running_parts
from tuning.judging.contenders import parse_policies
from tuning.judging.steered_pool import SteeredPool

SLOW = 1


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> LiveParts:
    if all(why_missing(name) for name in STEERED):
        pytest.skip(why_missing(STEERED[0]))
    with running_parts(tmp_path_factory.mktemp("live")) as parts:
        yield parts


@dataclass(frozen=True)
class OneSlowServer:
    """A light load of requests that all take as long, four times as long at one server."""

    name: str = "one-slow-server"

    def script(self, topology: Topology, seed: int) -> Script:
        groups, servers = topology.shape
        streams = tuple(Stream(kind, (RateStep(0.0, 10.0),)) for kind in topology.request_types)
        speeds = [0.25 if index == SLOW else 1.0 for index in range(servers)]
        profiles = tuple(ServerProfile((speed,) * groups) for speed in speeds)
        return Script(self.name, seed, 30.0, streams, profiles, (0.05,) * groups, service_cv=0.0)


@pytest.mark.nginx
@pytest.mark.parametrize("name", STEERED)
def test_a_slow_server_gets_less_and_keeps_that_in_the_next_block(name: str, parts: LiveParts, tmp_path: Path) -> None:
    if why_missing(name):
        pytest.skip(why_missing(name))
    with (
        SteeredProxy(name, pool_of(parts.topology), tmp_path) as proxy,
        SteeredPool(parts.topology, proxy) as pool,
        parts.testbed() as testbed,
    ):
        behind = testbed.behind(proxy.address, pool, pool)
        assert isinstance(behind, LiveTestbed)
        behind.reset(OneSlowServer(), 1)
        for _ in range(5):
            window = behind.advance(1.0)
        behind.drain()
        assert window.client is not None
        assert (window.client.answered > 0).all(), "requests of every type"
        assert sum(int(errors.sum()) for errors in window.client.errors.values()) == 0
        # A quarter of the speed; what a busy machine adds to 50 and 200 ms does not make three quarters of it.
        others = [weight for index, weight in enumerate(pool.weights) if index != SLOW]
        assert pool.weights[SLOW] < 0.75 * min(others)
        kept = pool.weights.tolist()
        behind.reset(OneSlowServer(), 2)
        assert pool.weights.tolist() == kept
        pool.forget()
        assert len(set(pool.weights.tolist())) == 1


def test_they_are_named_like_other_programs_and_run_live_only() -> None:
    for spec in parse_policies(STEERED):
        assert (spec.kind, spec.is_peer) == ("live", True)
