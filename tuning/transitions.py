"""Transitions for offline algorithms from windows that were seen live or from simulation.

An action is recovered from the weights that were in force: the one of the problem's codec that comes nearest to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from actuators.script import Script
from actuators.window import Window
from envs.decision import DecisionProblem
from envs.vector import SimulatedVectorEnv
from tuning.options import TrainingOptions
from tuning.transitions_file import Transition

_EXPLORING = 0.3
"""Log deviation of recorded weights around the baseline's: without variety nothing can be learned offline."""


def from_windows(windows: Sequence[Window], problem: DecisionProblem, episode: str) -> Iterator[Transition]:
    """Transitions of consecutive windows of one testbed; a faulty or silent window ends an episode."""
    observer = problem.observer()
    before, part = None, 0
    for index, window in enumerate(windows):
        if not window.usable or window.requests.sum() == 0:
            before, part = None, part + 1
            observer.reset()
            continue
        after = observer.observe_window(window)
        if before is not None:
            shares = np.asarray(after.weights, dtype=float)  # in force during the window
            action = problem.action_codec.action_of(shares, problem.base_shares(before), before.weights)
            reward, _ = problem.reward(window, after)
            follows = index + 1 < len(windows) and windows[index + 1].usable and windows[index + 1].requests.sum() > 0
            yield Transition(
                f"{episode}-{part}", problem.array(before), action, float(reward), problem.array(after), not follows
            )
        before = after


def from_simulation(
    problem: DecisionProblem, next_script: Callable[[np.random.Generator], Script], options: TrainingOptions, seed: int
) -> Iterator[Transition]:
    """`recorded_steps` steps of the inverse-latency baseline with wandering weights."""
    env = SimulatedVectorEnv(
        problem, options.environments, next_script, method=options.method, interval_s=options.interval_s,
        episode_steps=options.episode_steps, seed=seed,
    )  # fmt: skip
    generator = np.random.default_rng(seed)
    rows, _ = env.reset(seed=seed)
    over = np.zeros(options.environments, dtype=bool)
    episode = 0
    for _ in range(-(-options.algorithm.recorded_steps // options.environments)):
        shares = env.baseline_shares()
        action = env.action_for(shares * np.exp(generator.normal(0.0, _EXPLORING, shares.shape)))
        after, rewards, _, truncated, _ = env.step(action)
        for row in np.flatnonzero(~over):
            name = f"simulated-{episode}-{row}"
            yield Transition(name, rows[row], action[row], float(rewards[row]), after[row], bool(truncated[row]))
        episode += bool(over.any())
        rows, over = after, truncated
