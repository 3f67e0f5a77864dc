"""Collected snapshots become transitions whose actions are the weights that were in force."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import Weights
from actuators.contract.topology import social_network
from actuators.contract.window import Window
from actuators.errors import DataError
from envs.environment.actions import ActionOptions
from envs.environment.problem import DecisionOptions
from rayjobs.train import from_files
from tests.support.problems import TOPOLOGY, demo_scenario, problem
from tests.support.recordings import record


def steer(window: Window) -> Weights:
    return Weights(TOPOLOGY, np.array([[100, 50, 25]] * 3))


def test_every_pair_of_windows_is_a_transition_with_the_weights_that_were_in_force(tmp_path: Path) -> None:
    windows = record(tmp_path / "a.json", demo_scenario(), 3, steer, 12)
    record(tmp_path / "b.json", demo_scenario(), 4, steer, 8)
    options = DecisionOptions(action=ActionOptions(kind="continuous", floor=1, dead_band=0.0))
    own = replace(problem(), options=options)
    found = list(from_files((tmp_path,), own))
    # A file of n snapshots has n - 1 windows, and those n - 2 steps from one to the next.
    assert len(found) == 10 + 6
    assert len({one.episode for one in found}) == 2
    assert [one.last for one in found].count(True) == 2
    for one in found:
        weights = own.action_codec.weights(one.action, np.ones((3, 3)), np.ones((3, 3), np.int64))
        assert np.abs(weights - steer(windows[0]).values).max() <= 1
    reward, _ = own.reward(windows[2])
    assert found[0].reward == pytest.approx(float(reward))


def test_other_recordings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no recordings"):
        list(from_files((tmp_path,), problem()))
    record(tmp_path / "a.json", demo_scenario(), 3, steer, 5)
    five = social_network(tuple(f"server-{number}:80" for number in range(5)))
    with pytest.raises(DataError, match="on 3 servers"):
        list(from_files((tmp_path / "a.json",), replace(problem(), topology=five)))
