"""What RLlib's offline learners get from recorded transitions: whole passes, and values of the network as it is now."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from envs.environment.actions import ActionOptions
from tests.support.problems import observed
from tuning.learning.algorithm import Setting, algorithm_config
from tuning.learning.recordings import RecordedData, from_windows, read_transitions, write_transitions
from tuning.options import AlgorithmName, AlgorithmOptions, ModelOptions, TrainingOptions

DISCOUNT, LAMBDA = 0.8, 0.7


def data(name: AlgorithmName, folder: Path, batch_steps: int) -> tuple[RecordedData, Any]:
    """Of the observed windows, two episodes; and the network that would learn."""
    problem, windows = observed().problem, observed().windows
    episodes = [from_windows(part, problem, name) for name, part in (("a", windows.equal), ("b", windows.exploring))]
    write_transitions((one for episode in episodes for one in episode), folder)
    algorithm = AlgorithmOptions(
        name=name, batch_steps=batch_steps, transitions=folder, discount=DISCOUNT, gae_lambda=LAMBDA
    )
    spaces = problem.observation_space, problem.action_space
    setting = Setting("none", {}, 3, 1, False, 0.0, 1, ActionOptions(), problem=problem)
    config = algorithm_config(algorithm, ModelOptions(hidden=8), setting)
    module = config.get_multi_rl_module_spec(spaces={"default_policy": spaces}).build()
    found = RecordedData(config)
    found.learner_handles = [SimpleNamespace(module=module)]
    return found, module["default_policy"].unwrapped().policy_net()


def test_value_targets_follow_the_network(tmp_path: Path) -> None:
    found, net = data("marwil", tmp_path, 10_000)
    problem = observed().problem
    recorded = read_transitions([tmp_path], problem.observation_space, problem.action_space)
    for _ in range(2):
        torch.nn.init.normal_(net.value[-1].weight)
        with torch.no_grad():
            expected = np.concatenate([targets(net, episode) for episode in recorded])
        rows = found.rows()
        assert len(rows["rewards"]) == sum(map(len, recorded)) == len(expected)
        assert torch.isfinite(rows["obs"]).all()
        # Of the two episodes in random order.
        assert np.allclose(np.sort(rows["value_targets"].numpy()), np.sort(expected), atol=1e-5)


def targets(net: Any, episode: Any) -> np.ndarray:
    """Lambda returns, from their definition; the recording goes on after its end, so its last value counts."""
    values = net.values(net.encoder(torch.from_numpy(episode.observations))).numpy()
    found, after = [], values[-1]
    for reward, value in zip(episode.rewards[::-1], values[:0:-1], strict=True):
        after = reward + DISCOUNT * ((1 - LAMBDA) * value + LAMBDA * after)
        found.append(after)
    return np.array(found[::-1])


def test_a_pass_shows_every_step_once_and_the_next_one_in_another_order(tmp_path: Path) -> None:
    found, _ = data("cql", tmp_path, 4)
    (passes,) = found.sample(4)
    batches = passes.iter_torch_batches(batch_size=4, device="cpu")
    one, other = ([batch["default_policy/rewards"] for batch in batches] for _ in range(2))
    assert {len(rewards) for rewards in one} == {4}
    every = found.rows()["rewards"]
    assert 0 <= len(every) - 4 * len(one) < 4
    assert len(torch.cat(one).unique()) == len(torch.cat(one))
    assert not torch.equal(torch.cat(one), torch.cat(other))
    assert set(next(iter(batches))) >= {f"default_policy/{name}" for name in ("obs", "new_obs", "actions", "rewards")}


def test_fewer_steps_than_a_batch_are_repeated(tmp_path: Path) -> None:
    found, _ = data("bc", tmp_path, 1000)
    (batch,) = found.sample(1000)[0].iter_torch_batches(batch_size=1000)
    assert len(batch["default_policy/actions"]) == 1000


def test_cql_that_would_only_imitate_is_refused() -> None:
    with pytest.raises(ValueError, match="40000 steps in batches of 1200 are 33 gradient steps"):
        TrainingOptions(algorithm=AlgorithmOptions(name="cql", batch_steps=1200))
    TrainingOptions(algorithm=AlgorithmOptions(name="cql"))
