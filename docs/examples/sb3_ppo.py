"""PPO of Stable-Baselines3 learns weights on S3, where servers are specialised; judged on episodes never trained on.

python docs/examples/sb3_ppo.py [STEPS] [SEED]
"""

import sys

import gymnasium
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

ID, OPTIONS = "envs:DeepScheduling/Scenario-v0", {"scenario": "S3", "method": "least_conn", "episode_steps": 50}


def returns(model: PPO | None, episodes: int) -> np.ndarray:
    """Return of each held-out episode; without a model every action is zero, which is equal weights."""
    env, found = gymnasium.make(ID, **OPTIONS), np.zeros(episodes)
    for number in range(episodes):
        seen, _ = env.reset(options={"episode_seed": 2**31 + number})
        over = False
        while not over:
            action = np.zeros(9, np.float32) if model is None else model.predict(seen, deterministic=True)[0]
            seen, reward, _, over, _ = env.step(action)
            found[number] += reward
    return found


def main(steps: int = 20_000, seed: int = 1, episodes: int = 20) -> np.ndarray:
    """Trains; what each held-out episode returns more than under equal weights."""
    many = make_vec_env(ID, n_envs=8, seed=seed, env_kwargs=OPTIONS)
    settings = {"n_steps": 150, "batch_size": 300, "n_epochs": 4, "learning_rate": 6e-4, "gamma": 0.9}
    model = PPO("MlpPolicy", many, seed=seed, policy_kwargs={"log_std_init": -1.0}, **settings).learn(steps)
    return returns(model, episodes) - returns(None, episodes)


if __name__ == "__main__":
    gain = main(*map(int, sys.argv[1:]))
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    print(f"gain per episode over equal weights: {gain.mean():+.2f} ± {1.96 * error:.2f}")
