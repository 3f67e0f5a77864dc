"""Plays simulated episodes outside training: with one policy and no exploration, or exploring around the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import BoolArray, FloatArray
from actuators.contract.control import BalancingMethod
from actuators.contract.script import Script
from envs.environment.problem import DecisionProblem
from envs.environment.vector_env import NextScript, SimulatedVectorEnv, SteeredBatch
from envs.simulator.batch import SimulationOptions


class BatchPolicy(Protocol):
    """A policy on the network's input."""

    def action(self, rows: NDArray[np.float32]) -> NDArray[Any]:
        """Rows ``[n, servers, row_size]`` → actions as `envs.environment.actions` defines them, ``[n, …]``."""
        ...


class RowPolicy(Protocol):
    """The policy of what is moved per group: admission, or late binding."""

    def actions(self, rows: NDArray[np.float32]) -> FloatArray:
        """Rows ``[n, rows, row_size]`` → actions ``[n, actions]``, both as the environment defines them."""
        ...


@dataclass(frozen=True, eq=False)
class Rollout:
    """Rewards of a policy and their terms by name, each ``[steps, scripts]``."""

    rewards: FloatArray
    terms: dict[str, FloatArray]


def rollout(
    problem: DecisionProblem,
    scripts: Sequence[Script],
    policy: BatchPolicy | None,
    steps: int,
    *,
    method: BalancingMethod,
    interval_s: float,
    simulation: SimulationOptions | None = None,
    threads: int = 1,
) -> Rollout:
    """Plays all scripts at once, each in its own testbed and from its start.

    One interval under equal weights or service times comes before the first action and is not counted.

    Args:
        policy: None plays the baseline, a residual of 0.
        steps: control intervals to count.
        interval_s: simulated seconds per step.
        threads: threads that simulate; the result does not depend on it.
    """
    batch = SteeredBatch(problem, len(scripts), method, simulation, threads)
    for index, script in enumerate(scripts):
        batch.restart(index, script)
    batch.advance(interval_s)
    baseline = np.zeros((len(scripts), problem.action_codec.size))
    results = []
    for _ in range(steps):
        seen = batch.observation
        assert seen is not None
        batch.act(baseline if policy is None else policy.action(problem.array(seen)), seen)
        results.append(batch.advance(interval_s))
    names = results[0][1]
    return Rollout(
        np.array([rewards for rewards, _ in results]),
        {name: np.array([terms[name] for _, terms in results]) for name in names},
    )


@dataclass(frozen=True, eq=False)
class ExploredStep:
    """One step of every environment. Leading axis ``[n]``.

    Attributes:
        rows, after: the network's input before and after the step.
        baseline: the baseline's action; action: the one that was taken instead.
        reset: the step started a new episode and ignored its action.
        truncated: the step was the last one of its episode.
    """

    rows: NDArray[np.float32]
    baseline: NDArray[Any]
    action: NDArray[Any]
    rewards: FloatArray
    after: NDArray[np.float32]
    reset: BoolArray
    truncated: BoolArray


def explore_baseline(
    problem: DecisionProblem,
    next_script: NextScript,
    environments: int,
    steps: int,
    *,
    deviation: float,
    method: BalancingMethod,
    interval_s: float,
    episode_steps: int,
    seed: int,
) -> Iterator[ExploredStep]:
    """At least `steps` steps, `environments` at a time, of weights that scatter around the baseline's.

    Args:
        deviation: standard deviation of the logarithm of a weight around the baseline's.
        interval_s: simulated seconds per step.
    """
    env = SimulatedVectorEnv(
        problem, environments, next_script, method=method, interval_s=interval_s, episode_steps=episode_steps, seed=seed
    )
    generator = np.random.default_rng(seed)
    rows, _ = env.reset(seed=seed)
    reset = np.zeros(environments, dtype=bool)
    for _ in range(-(-steps // environments)):
        shares = env.baseline_shares()
        baseline = env.action_for(shares)
        action = env.action_for(shares * np.exp(generator.normal(0.0, deviation, shares.shape)))
        after, rewards, _, truncated, _ = env.step(action)
        yield ExploredStep(rows, baseline, action, rewards, after, reset, truncated)
        rows, reset = after, truncated
