"""A reward of your own, made of the terms in `info`: here late requests cost most, and failed ones ten times as much.

python docs/examples/own_reward.py [STEPS]
"""

import sys
from typing import Any

import gymnasium
from stable_baselines3 import PPO

ID = "envs:DeepScheduling/Scenario-v0"


class LateAndFailed(gymnasium.Wrapper):
    """Pays for what docs/environments.md lists under `terms`; the environment's own reward is dropped."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One interval; a fault has no terms and is worth nothing."""
        seen, reward, terminated, truncated, info = self.env.step(action)
        if "terms" in info:
            reward = -info["terms"]["art"] - 10.0 * info["terms"]["error_ratio"]
        return seen, reward, terminated, truncated, info


def main(steps: int = 12_000, judged: int = 1000) -> float:
    """Trains under the reward; what a step of the trained policy earns, the mean of so many."""
    env = LateAndFailed(gymnasium.make(ID, scenario="S7", episode_steps=50, seed=1))
    model = PPO("MlpPolicy", env, n_steps=min(steps, 600), batch_size=60, gamma=0.9, seed=1).learn(steps)
    total, (seen, _) = 0.0, env.reset(seed=2)
    for _ in range(judged):
        seen, reward, _, over, _ = env.step(model.predict(seen, deterministic=True)[0])
        total += reward / judged
        if over:
            seen, _ = env.reset()
    return total


if __name__ == "__main__":
    print(f"reward per step: {main(*map(int, sys.argv[1:])):+.4f}")
