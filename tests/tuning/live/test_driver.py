"""A conductor's logic without Ray: controls, method and topology after a repair, and what a judge sees of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from actuators.contract.control import BalancingMethod, Control, Weights
from actuators.contract.testbed import Applied
from actuators.contract.topology import social_network
from actuators.errors import ActuationError, TestbedError
from actuators.social_network.server import SocialNetworkServer
from actuators.social_network.store import SocialNetworkOptions
from actuators.testbed.remote import RemoteTestbed
from rayjobs.bench.parts.waiting_testbed import WaitingTestbed
from tests.support.contracts import ContractScenario
from tuning.judging.judge import Monitored
from tuning.live.conductor import START_TIMEOUT_S, ConductedTestbed, TestbedDriver


class Moving(WaitingTestbed):
    """Every build has new addresses, and takes controls for these only, as NGINX does."""

    def __init__(self, build: int) -> None:
        super().__init__(social_network(tuple(f"127.0.0.1:{9000 + 10 * build + server}" for server in range(3))))
        self.method = ""

    def set_method(self, method: BalancingMethod) -> None:
        super().set_method(method)
        self.method = method

    def apply(self, control: Control) -> Applied:
        if control.topology != self.topology:
            raise ActuationError("the control is for a different topology")
        return super().apply(control)


@pytest.fixture
def builds() -> list[Moving]:
    return []


@pytest.fixture
def driver(builds: list[Moving]) -> TestbedDriver:
    def make(build: int) -> Moving:
        builds.append(Moving(build))
        return builds[-1]

    return TestbedDriver("testbed-1", make, "least_conn")


class Handle:
    """A conductor's handle, whose calls happen here and at once."""

    def __init__(self, driver: TestbedDriver) -> None:
        self._driver = driver

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=getattr(self._driver, method))


@pytest.fixture
def limits_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each answer was waited for."""
    found: list[float] = []

    def get(answer: Any, timeout: float) -> Any:
        found.append(timeout)
        return answer

    monkeypatch.setattr("ray.get", get)
    return found


@pytest.fixture
def conducted(driver: TestbedDriver, limits_s: list[float]) -> ConductedTestbed:
    return ConductedTestbed(Handle(driver), "testbed-1")


def heavier(testbed: ConductedTestbed | WaitingTestbed) -> Weights:
    return Weights(testbed.topology, np.tile([3, 1, 1], (testbed.topology.shape[0], 1)))


def test_controls_of_before_a_repair_take_effect_after_it(
    driver: TestbedDriver, conducted: ConductedTestbed, builds: list[Moving]
) -> None:
    control = heavier(conducted)
    driver.close()
    conducted.reset(ContractScenario(), 1)
    assert len(builds) == 2
    assert conducted.topology == builds[1].topology != control.topology
    assert conducted.apply(control).changed
    assert not conducted.apply(heavier(conducted)).changed, "they are those of the new servers"


def test_the_topology_is_new_as_soon_as_a_method_was_set(
    driver: TestbedDriver, conducted: ConductedTestbed, builds: list[Moving]
) -> None:
    driver.close()
    conducted.set_method("round_robin")
    assert conducted.topology == builds[1].topology


def test_a_repair_in_mid_block_keeps_the_method_of_the_block(
    driver: TestbedDriver, conducted: ConductedTestbed, builds: list[Moving]
) -> None:
    conducted.set_method("round_robin")
    driver.close()
    conducted.reset(ContractScenario(), 1)
    assert [build.method for build in builds] == ["round_robin", "round_robin"]
    assert driver.describe()["method"] == "round_robin"


def test_a_method_that_was_refused_is_not_kept(driver: TestbedDriver, builds: list[Moving]) -> None:
    driver.call("reset", ContractScenario(), 1)
    builds[0].close()
    with pytest.raises(TestbedError, match="closed"):
        driver.call("set_method", "round_robin")
    driver.close()
    driver.call("reset", ContractScenario(), 1)
    assert builds[1].method == "least_conn"


def test_a_repair_may_last_as_long_as_a_first_start(conducted: ConductedTestbed, limits_s: list[float]) -> None:
    limits_s.clear()
    conducted.set_method("round_robin")
    conducted.reset(ContractScenario(), 1)
    assert set(limits_s) == {START_TIMEOUT_S}


def test_a_judge_hears_of_dead_parts(
    tmp_path: Path, driver: TestbedDriver, conducted: ConductedTestbed, limits_s: list[float]
) -> None:
    assert isinstance(conducted, Monitored)
    assert conducted.dead_parts() == []
    driver.close()
    assert conducted.dead_parts() == ["testbed-1 is not running"]
    unused = cast(Any, None)
    testbed = RemoteTestbed(
        social_network(), "127.0.0.1:1", servers=(), proxy=SimpleNamespace(set_method=lambda method: None),
        collector=unused, load=unused, close=lambda: None,
    )  # fmt: skip
    ended = SocialNetworkServer(SocialNetworkOptions(), work_dir=tmp_path, database=tmp_path / "none", index=0)
    testbed.held = {"SocialNetworkNode": ended}
    lossy = ConductedTestbed(Handle(TestbedDriver("testbed-2", lambda build: testbed, "least_conn")), "testbed-2")
    (dead,) = lossy.dead_parts()
    assert dead.startswith("SocialNetworkNode: the server at")
