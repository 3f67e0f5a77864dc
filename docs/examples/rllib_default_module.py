"""PPO of RLlib with its default network: nothing of this project but the environment.

python docs/examples/rllib_default_module.py [ITERATIONS]
"""

import sys

import ray
from ray.rllib.algorithms.ppo import PPOConfig


def main(iterations: int = 20) -> list[float]:
    """Trains; the mean return after every iteration."""
    config = (
        PPOConfig()
        # A worker that did not import `envs` finds the id by the name of the module before the colon.
        .environment("envs:DeepScheduling/Social-v0", env_config={"episode_steps": 50})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
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
