"""PPO of RLlib with a network of your own that keeps a row per server, so that it fits any number of them.

python docs/examples/rllib_own_module.py [ITERATIONS]
"""

import sys
from typing import Any

import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import nn

OPTIONS = {"scenario": "S3", "episode_steps": 50, "flat": False}


class ServerByServer(TorchRLModule, ValueFunctionAPI):
    """The same small network looks at every server's row; what it says of a server moves that server's weights."""

    def setup(self) -> None:
        """RLlib calls it with the spaces of the environment."""
        servers, features = self.observation_space.shape
        self.groups = self.action_space.shape[0] // servers
        self.policy = nn.Sequential(nn.Linear(features, 64), nn.Tanh(), nn.Linear(64, self.groups))
        self.values = nn.Sequential(nn.Linear(features, 64), nn.Tanh(), nn.Linear(64, 1))
        self.log_std = nn.Parameter(torch.full((self.action_space.shape[0],), -1.0))

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        # Rows are servers and columns groups; actions go group by group.
        mean = self.policy(batch[Columns.OBS]).transpose(-1, -2).flatten(-2)
        return {Columns.ACTION_DIST_INPUTS: torch.cat([mean, self.log_std.expand_as(mean)], dim=-1)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        """The value of every observation."""
        return self.values(batch[Columns.OBS]).mean(dim=(-1, -2))


def main(iterations: int = 20) -> list[float]:
    """Trains; the mean return after every iteration."""
    config = (
        PPOConfig()
        .environment(
            "envs:DeepScheduling/Scenario-v0", env_config={"scenario": "S3", "episode_steps": 50, "flat": False}
        )
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=ServerByServer))
        .training(lr=6e-4, gamma=0.9, train_batch_size_per_learner=1200, minibatch_size=300, num_epochs=4)
    )
    algorithm = config.build_algo()
    try:
        return [float(algorithm.train()["env_runners"]["episode_return_mean"]) for _ in range(iterations)]
    finally:
        algorithm.stop()


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    print("mean return:", " ".join(f"{each:.1f}" for each in main(*map(int, sys.argv[1:]))))
    ray.shutdown()
