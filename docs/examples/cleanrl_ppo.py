"""PPO in one file, in the style of CleanRL, on the native vector environment: all that happens stands here in order.

python docs/examples/cleanrl_ppo.py [STEPS] [SEED]
"""

import sys
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import nn

ID = "envs:DeepScheduling/Scenario-v0"


@dataclass
class Args:
    """Settings of one run."""

    steps: int = 40_000
    """Environment steps."""
    seed: int = 1
    """Of the environment, the network and the minibatches."""
    scenario: str = "S3"
    """What is played."""
    envs: int = 24
    """Testbeds that are advanced together."""
    rollout: int = 50
    """Steps of each between two updates."""
    learning_rate: float = 6e-4
    """Adam's step size."""
    gamma: float = 0.9
    """Discount per step."""
    gae_lambda: float = 0.9
    """Of the generalised advantage estimate."""
    clip: float = 0.2
    """PPO's clip range."""
    epochs: int = 4
    """Passes over every batch."""
    minibatch: int = 300
    """Steps per gradient step."""


class Agent(nn.Module):
    """A policy and a value with 64 units each."""

    def __init__(self, features: int, actions: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(features, 64), nn.Tanh(), nn.Linear(64, actions))
        self.value = nn.Sequential(nn.Linear(features, 64), nn.Tanh(), nn.Linear(64, 1))
        self.log_std = nn.Parameter(torch.full((actions,), -1.0))
        nn.init.zeros_(self.mean[-1].weight)
        nn.init.zeros_(self.mean[-1].bias)

    def distribution(self, seen: torch.Tensor) -> torch.distributions.Normal:
        """Of the actions; the mean begins at 0, which is equal weights."""
        return torch.distributions.Normal(self.mean(seen), self.log_std.exp())


def main(args: Args) -> list[float]:
    """Trains; the mean return of the episodes of every rollout."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    # SameStep: the last step of an episode returns the first observation of the next one, as CleanRL expects.
    options = {"scenario": args.scenario, "episode_steps": args.rollout, "autoreset_mode": "SameStep"}
    env = gymnasium.make_vec(ID, num_envs=args.envs, **options)
    shape = (args.rollout, args.envs)
    agent = Agent(env.single_observation_space.shape[0], env.single_action_space.shape[0])
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    seen_next = torch.from_numpy(env.reset(seed=args.seed)[0])
    curve = []
    for _ in range(args.steps // (args.rollout * args.envs)):
        seen = torch.zeros(*shape, env.single_observation_space.shape[0])
        actions = torch.zeros(*shape, env.single_action_space.shape[0])
        log_probabilities, rewards, values, values_after = (torch.zeros(shape) for _ in range(4))
        over = np.zeros(shape, dtype=bool)
        for step in range(args.rollout):
            seen[step] = seen_next
            with torch.no_grad():
                distribution = agent.distribution(seen_next)
                actions[step] = distribution.sample()
                log_probabilities[step] = distribution.log_prob(actions[step]).sum(-1)
                values[step] = agent.value(seen_next)[:, 0]
            found, reward, _, over[step], info = env.step(actions[step].clamp(-1, 1).numpy())
            rewards[step], seen_next = torch.from_numpy(reward), torch.from_numpy(found)
            # An episode ends by truncation: what would have followed counts.
            last = torch.from_numpy(np.stack(info["final_obs"])) if "final_obs" in info else seen_next
            with torch.no_grad():
                values_after[step] = agent.value(last)[:, 0]
        curve.append(float(rewards.sum(0).mean()))

        advantages, advantage = torch.zeros(shape), torch.zeros(args.envs)
        for step in reversed(range(args.rollout)):
            surprise = rewards[step] + args.gamma * values_after[step] - values[step]
            going_on = torch.from_numpy(~over[step])
            advantage = surprise + args.gamma * args.gae_lambda * advantage * going_on
            advantages[step] = advantage
        targets = advantages + values

        flat = [each.flatten(0, 1) for each in (seen, actions, log_probabilities, advantages, targets)]
        for _ in range(args.epochs):
            for rows in torch.randperm(len(flat[0])).split(args.minibatch):
                s, a, before, gain, target = (each[rows] for each in flat)
                gain = (gain - gain.mean()) / (gain.std() + 1e-8)
                ratio = (agent.distribution(s).log_prob(a).sum(-1) - before).exp()
                clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
                policy_loss = -torch.min(ratio * gain, clipped * gain).mean()
                value_loss = 0.5 * (agent.value(s)[:, 0] - target).pow(2).mean()
                optimizer.zero_grad()
                (policy_loss + 0.5 * value_loss).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
    return curve


if __name__ == "__main__":
    curve = main(Args(*map(int, sys.argv[1:])))
    print("mean return of each rollout:", " ".join(f"{each:.1f}" for each in curve))
