"""The live testbed passes the contract of every testbed, and its environment behaves as the simulated one's."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.topology import social_network
from actuators.load.summary import LoadSummary
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import start_local_testbed
from envs.environment.env import BalancingEnv
from tests.support.contracts import CONTRACT, ContractScenario, Factory
from tests.support.live_parts import LiveParts, running_parts
from tests.support.orphans import SESSION, processes_with
from tests.support.problems import demo_scenario, problem

pytestmark = pytest.mark.nginx


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveParts]:
    """One set of running parts for the whole module."""
    with running_parts(tmp_path_factory.mktemp("live")) as parts:
        yield parts


@pytest.mark.parametrize("clause", CONTRACT, ids=lambda clause: clause.__name__)
def test_live_testbed(clause: Callable[[Factory], None], parts: LiveParts) -> None:
    try:
        clause(parts.testbed)
    finally:
        parts.nginx.set_method("least_conn")  # a clause that fails must not take the next ones along


def test_equal_seeds_send_equal_requests(parts: LiveParts) -> None:
    with parts.testbed() as testbed:
        sent = []
        for _ in range(2):
            testbed.reset(ContractScenario(duration_s=1.0), 11)
            windows = [testbed.advance(1.2), testbed.drain()]
            sent.append([w.client.planned.tolist() for w in windows if w.client is not None])
        assert np.sum(sent[0], axis=0).tolist() == np.sum(sent[1], axis=0).tolist()


def test_a_policy_may_act_on_it(parts: LiveParts) -> None:
    env = BalancingEnv(
        problem(),
        parts.testbed,
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


def test_the_script_ending_is_said(parts: LiveParts) -> None:
    with parts.testbed() as testbed:
        testbed.reset(ContractScenario(duration_s=0.5), 1)
        window = testbed.advance(1.0)
        assert [fault.kind for fault in window.faults] == ["load_ended"]


def test_a_drain_waits_as_long_as_the_time_outs_of_the_load_engine_say(
    parts: LiveParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None at the load engine; tests/actuators/load/test_engine.py says how long that is."""
    waits_s: list[float | None] = []
    finish = parts.load.finish

    def awaited(timeout_s: float | None = None) -> LoadSummary:
        waits_s.append(timeout_s)
        return finish(timeout_s)

    monkeypatch.setattr(parts.load, "finish", awaited)
    with parts.testbed() as testbed:
        for _ in range(2):
            testbed.reset(ContractScenario(), 1)
            testbed.advance(0.3)
        testbed.drain()
        testbed.reset(ContractScenario(), 1)
        testbed.drain(40.0)
    assert waits_s == [None, None, 40.0]


def load_engines() -> list[int]:
    """Process ids of this session's load engines, without their guardians."""
    running = processes_with(SESSION).items()
    return [pid for pid, command in running if "gen_load" in command and "guardian" not in command]


def test_a_killed_load_engine_is_a_fault_and_not_a_number(parts: LiveParts) -> None:
    with parts.testbed() as testbed:
        testbed.reset(ContractScenario(), 1)
        testbed.advance(0.3)
        (engine,) = load_engines()
        os.kill(engine, signal.SIGKILL)
        kinds = [fault.kind for _ in range(3) for fault in testbed.advance(0.3).faults]
        assert "load_ended" in kinds
        testbed.reset(ContractScenario(), 1)
        assert testbed.advance(0.4).usable


def test_closing_ends_every_process_and_leaves_no_database(tmp_path: Path) -> None:
    testbed = start_local_testbed(social_network(), LiveOptions(), tmp_path, seed=1)
    testbed.reset(ContractScenario(), 1)
    assert len(processes_with(f"{tmp_path}/")) >= len(testbed.topology.servers)
    assert list(tmp_path.glob("*.sqlite*"))
    testbed.close()
    assert processes_with(f"{tmp_path}/") == {}
    assert not list(tmp_path.glob("*.sqlite*"))
    assert list(tmp_path.glob("server-*.log")), "the logs stay"
