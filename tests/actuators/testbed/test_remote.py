"""A live testbed on Ray: placed by custom resources, refused in words without them, and it survives killed actors."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from actuators.contract.topology import social_network
from actuators.errors import CapacityError, ConfigError, DeepSchedError, TestbedError
from actuators.testbed.options import LiveOptions
from actuators.testbed.placement import NAMESPACE, check_capacity, start_remote_testbed
from tests.support.contracts import ContractScenario
from tests.support.orphans import SESSION, processes_with

pytestmark = [pytest.mark.ray, pytest.mark.nginx, pytest.mark.usefixtures("ray")]


@pytest.mark.slow
def test_it_claims_its_nodes_runs_hands_errors_of_ours_on_and_frees_them(tmp_path: Path) -> None:
    import ray

    with start_remote_testbed(social_network(), LiveOptions(), tmp_path, seed=1) as testbed:
        free = ray.available_resources()
        assert [free.get(name, 0.0) for name in ("proxy", "client", "server")] == [0.0, 0.0, 0.0]
        with pytest.raises(ConfigError) as caught:
            testbed.reset(ContractScenario(duration_s=-1.0), 1)
        assert isinstance(caught.value, DeepSchedError)
        assert "duration" in str(caught.value)
        testbed.reset(ContractScenario(), 1)
        windows = [testbed.advance(0.4), testbed.drain()]
        answered = sum(int(window.client.answered.sum()) for window in windows if window.client is not None)
        assert answered == sum(int(window.requests.sum()) for window in windows) > 50
        assert testbed.latest_snapshot() is not None
        named = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == NAMESPACE]
        (name,) = (each for each in named if each.startswith("single "))
        state = ray.get(ray.get_actor(name, namespace=NAMESPACE).describe.remote())
        assert (state["name"], state["method"]) == (name, "least_conn")
        assert state["windows"] >= len(windows)
        assert {place.split()[0] for place in state["places"]} >= {"NginxActuator", "LoadGenerator"}
        assert list(tmp_path.glob("*.sqlite"))
    assert processes_with(f"{tmp_path}/") == {}
    assert not list(tmp_path.glob("*.sqlite*"))
    assert list(tmp_path.glob("server-*.log")), "the logs stay"
    check_capacity(1, 3)


@pytest.mark.slow
def test_a_killed_actor_is_a_testbed_error_and_the_rest_can_be_closed(tmp_path: Path) -> None:
    testbed = start_remote_testbed(social_network(), LiveOptions(), tmp_path, seed=1)
    try:
        nginx = {pid for pid, command in processes_with(f"{tmp_path}/").items() if "nginx" in command}
        assert nginx
        (actor,) = (pid for pid, command in processes_with(SESSION).items() if "ray::NginxActuator" in command)
        os.kill(actor, signal.SIGKILL)
        with pytest.raises(TestbedError, match="NginxActuator"):
            testbed.reset(ContractScenario(), 1)
    finally:
        testbed.close()
    assert processes_with(f"{tmp_path}/") == {}
    assert not list(tmp_path.glob("*.sqlite*"))
    check_capacity(1, 3)


def test_missing_resources_are_said_in_words() -> None:
    with pytest.raises(CapacityError, match=r"proxy 1/2, client 1/2, server 3/6"):
        check_capacity(2, 3)
