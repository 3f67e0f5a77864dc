"""Steers what enters a simulated batch by a network, or by the rule that it stands on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actuators.contract.script import Script
from envs.environment.entry import EntryTask, LearnedEntry
from envs.environment.rollout import RowPolicy
from envs.simulator.batch import SimulatedBatch
from envs.simulator.window_batch import WindowBatch
from envs.study.rules import BatchController


def learned_steering(task: EntryTask, policy: RowPolicy | None) -> BatchController:
    """For `envs.study.goodput.play_admission` with windows of `envs.environment.entry.WINDOW_S`.

    Args:
        policy: None for the rule without anything learned.
    """
    entry: LearnedEntry | None = None

    def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
        nonlocal entry
        if window is None or entry is None:
            entry = LearnedEntry(task, scripts)
            entry.begin(batch)
        else:
            rows = entry.observe(window)
            entry.act(batch, np.zeros(rows.shape[:2]) if policy is None else policy.actions(rows))

    return steer
