"""A live testbed under a conductor: whatever of it is killed costs an interval, is repaired, and nothing is left."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import numpy as np
import pytest

from actuators.contract.control import Weights
from actuators.testbed.options import LiveOptions
from envs.scenarios.lookup import scenario
from rayjobs.runs.local_ray import local_ray
from tests.support.orphans import SESSION, processes_with, wait_gone
from tests.support.problems import TOPOLOGY, problem
from tests.support.waiting import wait_until
from tuning.live.conductor import ConductedTestbed
from tuning.live.testbeds import Testbeds, running_testbeds
from tuning.live.vector_env import LiveVectorEnv

pytestmark = [pytest.mark.ray, pytest.mark.nginx, pytest.mark.slow]
INTERVAL_S = 0.3
SCENARIO = scenario("demo", duration_s=200.0, work_scale=4.0)
MOST_STEPS = 40


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with local_ray(testbeds=1):
        yield


@pytest.fixture(scope="module")
def testbeds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbeds]:
    folder = tmp_path_factory.mktemp("live")
    with Testbeds.live(1, TOPOLOGY, LiveOptions(), folder, 1, "least_conn") as opened:
        yield opened
    assert wait_gone(f"{folder}/") == {}


@pytest.fixture(scope="module")
def env(testbeds: Testbeds) -> Iterator[LiveVectorEnv]:
    made = LiveVectorEnv(problem(), 1, testbeds.leaser, SCENARIO, interval_s=INTERVAL_S, episode_steps=1000)
    made.reset(seed=1)
    yield made
    made.close()


def run_until(env: LiveVectorEnv, *, fault: bool) -> str:
    """Steps until an interval is lost (its fault) or until one is not ("")."""
    for _ in range(MOST_STEPS):
        _, rewards, _, truncated, infos = env.step(env.action_space.sample() * 0)
        if bool(truncated[0]) == fault:
            assert not fault or rewards[0] == 0.0
            return str(infos["fault"][0]) if fault else ""
    raise AssertionError(f"no step {'with' if fault else 'without'} a fault in {MOST_STEPS}")


def victim(word: str, folder: str = SESSION) -> int:
    return min(pid for pid, command in processes_with(folder).items() if word in command and "guardian" not in command)


@pytest.mark.parametrize("word", ["gen_load", "ray::LoadGenerator"])
def test_a_killed_part_costs_an_interval_and_is_repaired(env: LiveVectorEnv, testbeds: Testbeds, word: str) -> None:
    run_until(env, fault=False)
    testbeds.news()
    os.kill(victim(word), signal.SIGKILL)
    assert run_until(env, fault=True)
    run_until(env, fault=False)
    told = " ".join(news.text for news in testbeds.news())
    assert ("rebuilt in" in told) == word.startswith("ray::")


def test_a_killed_conductor_takes_its_nginx_along_and_comes_back(env: LiveVectorEnv, testbeds: Testbeds) -> None:
    run_until(env, fault=False)
    # Something that the first process has said and the driver has heard.
    os.kill(victim("ray::LoadGenerator"), signal.SIGKILL)
    assert run_until(env, fault=True)
    run_until(env, fault=False)
    assert testbeds.news()
    os.kill(victim("ray::Conductor"), signal.SIGKILL)
    assert run_until(env, fault=True)
    run_until(env, fault=False)
    os.kill(victim("ray::LoadGenerator"), signal.SIGKILL)
    assert run_until(env, fault=True)
    assert testbeds.news(), "the first words of the new process count, although it was not asked while it was away"
    run_until(env, fault=False)
    (row,) = running_testbeds()
    assert row["builds"] == 2  # a new process counts anew


def test_a_killed_nginx_is_replaced(
    env: LiveVectorEnv, testbeds: Testbeds, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_until(env, fault=False)
    os.kill(victim("nginx: master", f"{tmp_path_factory.getbasetemp()}/"), signal.SIGKILL)
    assert run_until(env, fault=True)
    run_until(env, fault=False)


@pytest.mark.parametrize("word", ["actuators.social_network", "ray::SocialNetworkNode"])
def test_a_killed_server_ends_the_episode(env: LiveVectorEnv, testbeds: Testbeds, word: str) -> None:
    run_until(env, fault=False)
    os.kill(victim(word), signal.SIGKILL)
    assert re.search("the server at|SocialNetworkNode", run_until(env, fault=True))
    run_until(env, fault=False)


def test_a_judge_that_began_before_a_repair_goes_on_after_it(testbeds: Testbeds) -> None:
    ((name, conductor),) = testbeds.conductors.items()
    testbed = ConductedTestbed(conductor, name)
    testbed.set_method("round_robin")
    testbed.reset(SCENARIO, 1)
    before = testbed.topology
    os.kill(victim("ray::SocialNetworkNode"), signal.SIGKILL)
    wait_until(lambda: testbed.dead_parts() != [])
    testbed.reset(SCENARIO, 1)
    assert testbed.topology != before
    assert testbed.dead_parts() == []
    assert testbed.apply(Weights(before, np.tile([5, 3, 1], (before.shape[0], 1)))).changed
    assert testbed.advance(INTERVAL_S).weight.tolist() == [[5, 3, 1]] * before.shape[0]
    (row,) = running_testbeds()
    assert row["method"] == "round_robin"
    testbed.drain()
    testbed.set_method("least_conn")


def test_it_can_be_driven_by_hand_and_is_listed(testbeds: Testbeds) -> None:
    ((name, conductor),) = testbeds.conductors.items()
    testbed = ConductedTestbed(conductor, name)
    testbed.reset(SCENARIO, 1)
    window = testbed.advance(INTERVAL_S)
    assert window.requests.sum() > 0
    testbed.drain()
    (row,) = running_testbeds()
    assert row["name"] == name
    assert row["faults"] >= 1
    assert {place.split()[0] for place in row["places"]} == {
        "SocialNetworkNode", "LoadGenerator", "NginxActuator", "StatisticsCollector",
    }  # fmt: skip
