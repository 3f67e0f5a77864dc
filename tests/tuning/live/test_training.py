"""Several testbeds train one policy: leased, stepped together, repaired when killed; env runners come back."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import requests
from pydantic import ValidationError

from actuators.errors import CapacityError
from envs.scenarios.lookup import scenario
from rayjobs.bench.parts.waiting_testbed import make_waiting
from tests.support.meeting import Meeting
from tests.support.orphans import SESSION, processes_with
from tests.support.problems import problem
from tests.support.waiting import PATIENCE_S, wait_until
from tuning.live import relay
from tuning.live.metric_names import COUNTERS, exported
from tuning.live.testbeds import Testbeds
from tuning.live.training import ParallelTraining
from tuning.live.vector_env import LiveVectorEnv
from tuning.options import AlgorithmOptions, ParallelOptions, TrainingOptions

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray")]
INTERVAL_S = 0.1
SCENARIO = scenario("demo", duration_s=200.0)


def open_testbeds(count: int) -> Testbeds:
    return Testbeds({f"testbed-{number}": make_waiting for number in range(count)}, "least_conn")


def environment(testbeds: Testbeds, count: int) -> LiveVectorEnv:
    return LiveVectorEnv(problem(), count, testbeds.leaser, SCENARIO, interval_s=INTERVAL_S, episode_steps=4)


def pids(name: str) -> set[int]:
    return {pid for pid, command in processes_with(SESSION).items() if command.startswith(f"ray::{name}")}


@pytest.mark.slow
def test_all_intervals_pass_at_the_same_time(tmp_path: Path) -> None:
    meetings = {f"testbed-{number}": partial(Meeting, tmp_path, 3) for number in range(3)}
    with Testbeds(meetings, "least_conn") as testbeds:
        env = environment(testbeds, 3)
        rows, _ = env.reset(seed=1)
        assert rows.shape == env.observation_space.shape
        actions = env.action_space.sample() * 0
        dones = []
        for _ in range(10):
            rows, _, terminated, truncated, infos = env.step(actions)
            assert not terminated.any()
            assert infos == {}
            dones.append(truncated.tolist())
        assert dones == [[i % 5 == 3] * 3 for i in range(10)]
        env.close()
        assert set(testbeds.leaser.lease(3)) == set(testbeds.conductors)


@pytest.mark.slow
def test_a_relay_carries_the_orders_of_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All intervals pass at the same time; a killed conductor, and a killed relay, cost what they carry."""
    monkeypatch.setattr(relay, "FEWEST", 2)
    meetings = {f"testbed-{number}": partial(Meeting, tmp_path, 2) for number in range(2)}
    with Testbeds(meetings, "least_conn") as testbeds:
        env = environment(testbeds, 2)
        env.reset(seed=1)
        actions = env.action_space.sample() * 0
        for step in range(4):
            _, rewards, _, truncated, infos = env.step(actions)
            assert infos == {}
            assert (rewards != 0).all()
            assert truncated.tolist() == [step == 3] * 2
        env.close()
    with open_testbeds(2) as testbeds:
        env = environment(testbeds, 2)
        env.reset(seed=1)
        os.kill(min(pids("Conductor")), signal.SIGKILL)
        _, _, _, truncated, infos = env.step(actions)
        assert truncated.sum() == 1
        assert "conductor died" in infos["fault"][truncated][0]
        (killed,) = pids("Relay")
        os.kill(killed, signal.SIGKILL)
        # The testbed of the killed conductor begins anew as soon as the relay is back; the other one loses its episode.
        _, rewards, _, again, infos = env.step(actions)
        assert again.tolist() == (~truncated).tolist()
        assert "relay to the testbed died" in infos["fault"][again][0]
        env.step(actions)
        _, rewards, _, truncated, infos = env.step(actions)
        assert infos == {}
        assert (rewards != 0).all()
        env.close()
        wait_until(lambda: pids("Relay") == set(), "a relay is left")


def test_too_few_free_testbeds_are_said_in_words() -> None:
    with open_testbeds(1) as testbeds:
        env = environment(testbeds, 2)
        with pytest.raises(CapacityError, match=r"needs 2 testbed\(s\), 1 of 1 are free"):
            env.reset()


def test_a_killed_conductor_costs_one_episode_of_its_own_testbed() -> None:
    with open_testbeds(2) as testbeds:
        env = environment(testbeds, 2)
        env.reset(seed=1)
        actions = env.action_space.sample() * 0
        env.step(actions)
        os.kill(min(pids("Conductor")), signal.SIGKILL)
        _, rewards, _, truncated, infos = env.step(actions)
        assert truncated.sum() == 1
        (lost,) = np.flatnonzero(truncated)
        assert rewards[lost] == 0
        assert "conductor died and is being restarted" in infos["fault"][lost]
        assert infos["_fault"].tolist() == truncated.tolist()
        _, _, _, truncated, infos = env.step(actions)
        assert not truncated.any()
        assert infos == {}
        assert len(pids("Conductor")) == 2


def test_env_runners_of_two_runs_play_different_episodes(tmp_path: Path) -> None:
    """RLlib gives env runner i the seed of its configuration plus i."""
    algorithm = AlgorithmOptions(batch_steps=20, minibatch_steps=20, epochs=1)
    options = ParallelOptions(testbeds=2, env_runners=2, steps=80, episode_steps=10, algorithm=algorithm)
    with open_testbeds(2) as testbeds:
        seeds: list[int] = []
        for seed in range(4):
            run = ParallelTraining(problem(), TrainingOptions(interval_s=INTERVAL_S), options, tmp_path, seed)
            seeds += [run.config(testbeds, SCENARIO).seed + index for index in range(3)]
    assert len(set(seeds)) == len(seeds)


def test_env_runners_without_a_cpu_each_are_refused(tmp_path: Path) -> None:
    """RLlib would wait for them for ever."""
    options = ParallelOptions(testbeds=8, env_runners=8)
    run = ParallelTraining(problem(), TrainingOptions(interval_s=INTERVAL_S), options, tmp_path, 1)
    with (
        open_testbeds(1) as testbeds,
        pytest.raises(CapacityError, match=r"need 8 CPUs, the cluster has 3 \(parallel\.env_runners\)"),
    ):
        run.run(testbeds, SCENARIO)


def test_testbeds_that_cannot_be_shared_evenly_are_refused() -> None:
    with pytest.raises(ValidationError, match="3 testbeds for 2 env runners: set a multiple"):
        ParallelOptions(testbeds=3, env_runners=2)


@pytest.mark.slow
def test_training_goes_on_when_an_env_runner_and_conductors_are_killed(tmp_path: Path) -> None:
    said: list[str] = []
    algorithm = AlgorithmOptions(batch_steps=20, minibatch_steps=20, epochs=1)
    options = ParallelOptions(testbeds=2, env_runners=1, steps=80, episode_steps=10, algorithm=algorithm)
    training = TrainingOptions(interval_s=INTERVAL_S)
    run = ParallelTraining(problem(), training, options, tmp_path, 1, say=said.append)
    with open_testbeds(2) as testbeds:

        def kill() -> None:
            wait_until(lambda: len(run.rows) >= 1)
            os.kill(min(pids("Conductor")), signal.SIGKILL)
            wait_until(lambda: len(run.rows) >= 2)
            (runner,) = pids("ArrayEnvRunner")
            os.kill(runner, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        net = run.run(testbeds, SCENARIO)
        killer.join()
    assert run.rows[-1].step >= 80
    assert (tmp_path / "progress-live.csv").read_text().count("\n") == len(run.rows) + 1
    assert (tmp_path / "checkpoints" / "live").is_dir()
    assert sum(value.numel() for value in net.state_dict().values()) > 1000
    assert any("env runner" in text for text in said), said
    # Metrics reach Prometheus' endpoint of the node some seconds after they were recorded.
    wait_until(lambda: exported("windows", COUNTERS) in metrics_page())
    for name in ("art_per_request", "novelty", "reward"):
        assert f"{exported(name, COUNTERS)}{{" in metrics_page()
    ours = [line for line in metrics_page().splitlines() if line.startswith("ray_deepsched_")]
    assert any('node="127.0.0.1"' in line for line in ours)
    assert not any("testbed-0" in line for line in ours)


def metrics_page() -> str:
    import ray

    (node,) = ray.nodes()
    return requests.get(
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=PATIENCE_S
    ).text
