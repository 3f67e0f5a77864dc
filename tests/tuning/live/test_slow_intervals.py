"""What docs/scale.md#failures promises of slow and lost intervals: nothing is learned twice, or dropped unsaid."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from actuators.contract.script import Scenario
from envs.scenarios.lookup import scenario
from tests.support.meeting import Uneven
from tests.support.problems import problem
from tuning.live.testbeds import Testbeds
from tuning.live.training import ParallelTraining
from tuning.options import AlgorithmOptions, ParallelOptions, TrainingOptions

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray")]
INTERVAL_S = 0.1
SCENARIO = scenario("demo", duration_s=200.0)


class Impatient(ParallelTraining):
    """Waits 6 s for a sample that takes 0.4 s."""

    def config(self, testbeds: Testbeds, scenario: Scenario) -> AlgorithmConfig:
        return super().config(testbeds, scenario).env_runners(sample_timeout_s=6.0)


def training(folder: Path, said: list[str], **more: int) -> Impatient:
    algorithm = AlgorithmOptions(batch_steps=4, minibatch_steps=4, epochs=1)
    options = ParallelOptions(testbeds=1, steps=24, episode_steps=6, algorithm=algorithm, **more)
    return Impatient(problem(), TrainingOptions(interval_s=INTERVAL_S), options, folder, 1, say=said.append)


@pytest.mark.slow
def test_late_samples_are_counted_and_no_batch_is_empty(tmp_path: Path) -> None:
    said: list[str] = []
    run = training(tmp_path, said, env_runners=1)
    with Testbeds({"testbed-1": partial(Uneven, (9,), (), 14.0)}, "least_conn") as testbeds:
        run.run(testbeds, SCENARIO)
    assert run.rows[-1].step >= 24
    assert run.rows[-1].late >= 4
    assert any("were not learned from" in text for text in said), said
    assert all(math.isfinite(row.policy_loss) for row in run.rows)
    assert [row.late for row in run.rows] == sorted(row.late for row in run.rows)


@pytest.mark.slow
def test_every_interval_is_in_one_episode(tmp_path: Path) -> None:
    """A slow one, too, and one that is lost ends its episode: truncated, with reward 0, and the next one begins."""
    run = training(tmp_path, [], env_runners=0)
    makers = {"testbed-1": partial(Uneven, (5,), (), 1.0), "testbed-2": partial(Uneven, (), (4,), 0.0)}
    with Testbeds(makers, "least_conn") as testbeds:
        algo = run.config(testbeds, SCENARIO).build_algo()
        try:
            episodes: list[SingleAgentEpisode] = []
            for _ in range(5):
                taken = algo.env_runner.sample(num_timesteps=8)
                assert sum(not episode.is_done for episode in taken) <= 2
                episodes += taken
            env = algo.env_runner.env.unwrapped
            assert sum(len(episode) for episode in episodes) == env.steps_taken
            assert all(len(episode) > 0 for episode in episodes)
            lost = [episode for episode in episodes if episode.is_done and episode.get_rewards(-1) == 0.0]
            assert len(lost) == 1
            assert lost[0].is_truncated
        finally:
            algo.stop()
