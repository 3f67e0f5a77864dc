"""The live testbed passes the contract of every testbed, and its environment behaves as the simulated one's."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.topology import social_network
from actuators.testbed.live import LiveTestbed
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import start_local_testbed
from envs.environment.env import BalancingEnv
from tests.support.contracts import CONTRACT, ContractScenario, Factory
from tests.support.problems import demo_scenario, problem

pytestmark = pytest.mark.nginx


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveTestbed]:
    """One set of running parts for the whole module."""
    folder = tmp_path_factory.mktemp("live")
    with start_local_testbed(social_network(), LiveOptions(), folder, seed=1) as testbed:
        yield testbed


def view(parts: LiveTestbed) -> LiveTestbed:
    """A fresh testbed over the running parts; closing it leaves them running for the next test."""
    return LiveTestbed(
        parts.topology,
        parts._address,
        servers=parts._servers,
        proxy=parts._proxy,
        collector=parts._collector,
        load=parts._load,
        close=parts._load.close,
    )


@pytest.mark.parametrize("clause", CONTRACT, ids=lambda clause: clause.__name__)
def test_live_testbed(clause: Callable[[Factory], None], parts: LiveTestbed) -> None:
    try:
        clause(lambda: view(parts))
    finally:
        parts.set_method("least_conn")  # a clause that fails must not take the next ones along


def test_equal_seeds_send_equal_requests(parts: LiveTestbed) -> None:
    with view(parts) as testbed:
        sent = []
        for _ in range(2):
            testbed.reset(ContractScenario(duration_s=1.0), 11)
            windows = [testbed.advance(1.2), testbed.drain()]
            sent.append([w.client.planned.tolist() for w in windows if w.client is not None])
        assert np.sum(sent[0], axis=0).tolist() == np.sum(sent[1], axis=0).tolist()


def test_a_policy_may_act_on_it(parts: LiveTestbed) -> None:
    env = BalancingEnv(
        problem(),
        lambda: view(parts),
        lambda seed: demo_scenario(),
        interval_s=0.4,
        episode_steps=3,
    )
    array, _ = env.reset(seed=1)
    assert env.observation_space.contains(array)
    for _ in range(3):
        array, reward, _, truncated, info = env.step(np.zeros(9, dtype=np.float32))
        assert env.observation_space.contains(array)
        assert "fault" in info or np.isfinite(reward)
        if truncated:
            break
    assert truncated
    env.close()


def test_the_script_ending_is_said(parts: LiveTestbed) -> None:
    with view(parts) as testbed:
        testbed.reset(ContractScenario(duration_s=0.5), 1)
        window = testbed.advance(1.0)
        assert [fault.kind for fault in window.faults] == ["load_ended"]


def test_a_killed_load_engine_is_a_fault_and_not_a_number(parts: LiveTestbed) -> None:
    with view(parts) as testbed:
        testbed.reset(ContractScenario(), 1)
        testbed.advance(0.3)
        os.kill(parts._load._process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        kinds = [fault.kind for _ in range(3) for fault in testbed.advance(0.3).faults]
        assert "load_ended" in kinds
        testbed.reset(ContractScenario(), 1)
        assert testbed.advance(0.4).usable


def test_closing_ends_every_process(tmp_path: Path) -> None:
    testbed = start_local_testbed(social_network(), LiveOptions(), tmp_path, seed=1)
    testbed.reset(ContractScenario(), 1)
    pids = [server.pid for server in testbed._servers]  # type: ignore[attr-defined]
    testbed.close()
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()
