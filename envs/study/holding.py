"""Late binding moved by a network, or by nothing, on simulated scripts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actuators.contract.script import Script
from envs.environment.holding import WINDOW_S, HoldingTask, LearnedHolding
from envs.environment.rollout import RowPolicy
from envs.environment.study_setup import SHARED_MEMORY
from envs.observation.holding import MOVES
from envs.simulator.batch import SimulatedBatch
from envs.simulator.window_batch import WindowBatch
from envs.study.judge import Totals, play
from envs.study.rules import BatchController, Rule


def moved_holding(task: HoldingTask, policy: RowPolicy | None) -> BatchController:
    """For windows of `envs.environment.holding.WINDOW_S`.

    Args:
        policy: None for the rule without anything learned.
    """
    holding: LearnedHolding | None = None

    def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
        nonlocal holding
        if window is None or holding is None:
            holding = LearnedHolding(task, scripts)
            holding.begin(batch)
        else:
            rows = holding.observe(batch, window)
            still = np.zeros((batch.size, MOVES * rows.shape[1]))
            holding.act(batch, still if policy is None else policy.actions(rows))

    return steer


def play_moved(
    task: HoldingTask, policy: RowPolicy | None, scripts: Sequence[Script], duration_s: float, threads: int = 1
) -> Totals:
    """What came of these scripts, without their first 10 s."""
    rule = Rule("late_binding, moved", "late_binding", lambda: moved_holding(task, policy), SHARED_MEMORY)
    return play(rule, scripts, task.topology, duration_s, interval_s=WINDOW_S, threads=threads)
