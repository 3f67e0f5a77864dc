"""Learned late binding is trained on the environment that it is judged in, repeats, and must prove itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from actuators.contract.topology import social_network
from envs.environment.holding import HoldingTask
from envs.observation.holding import REGIME_NAMES, row_size
from envs.scenarios.catalogue import STUDY
from envs.scenarios.lookup import scenario
from tuning.learning.curve import CurveRow
from tuning.learning.holding import fit_regimes, holding_task, log_costs, prove_holding, train_holding, untrained
from tuning.learning.windowed import ENVIRONMENTS, EPISODE_STEPS, NetPolicy, WindowedTraining

pytestmark = pytest.mark.thorough

TOPOLOGY = social_network()
TASK = HoldingTask(TOPOLOGY, np.array([0.05, 0.02, 0.02]))
SHORT = WindowedTraining(iterations=1, look_every=1, look_episodes=4, proof_episodes=20)


def test_the_actions_of_a_network_are_told_type_by_type() -> None:
    """As `LearnedHolding.act` and RLlib have them: an output of all types, then the next one."""
    net = untrained(TASK, 1)
    last = net.action[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.bias.copy_(torch.arange(4.0))
    rows = np.zeros((2, 3, row_size(None)), np.float32)
    means = net(torch.from_numpy(rows))[0].detach().numpy()
    assert NetPolicy(net).actions(rows) == pytest.approx(means)
    assert means[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_an_untrained_network_changes_nothing_and_proves_nothing() -> None:
    net = untrained(TASK, 3)
    scripts = [scenario("S8", 30.0).script(TOPOLOGY, 7 + index) for index in range(3)]
    assert np.array_equal(log_costs(TASK, None, scripts, 30.0), log_costs(TASK, net, scripts, 30.0))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray")
def test_a_training_samples_whole_episodes_and_must_prove_itself() -> None:
    rows: list[CurveRow] = []
    task = holding_task(TOPOLOGY, fit_regimes(TOPOLOGY, 3, 1, systems=16))
    assert task.encoder is not None
    assert task.encoder.names == REGIME_NAMES
    net = train_holding(task, replace(SHORT, iterations=2, look_every=2), 1, rows.append)
    assert [row.step for row in rows] == [ENVIRONMENTS * EPISODE_STEPS, 2 * ENVIRONMENTS * EPISODE_STEPS]
    assert {"cost", "failed"} == set(rows[0].terms)
    scripts = [scenario("S8", 30.0).script(TOPOLOGY, 7 + index) for index in range(3)]
    assert np.isfinite(log_costs(task, net, scripts, 30.0)).all()
    left, proof = prove_holding(net, task, SHORT)
    assert set(proof.scenarios) == set(STUDY)
    assert proof.overall.episodes == 20
    if not proof.holds:
        assert np.array_equal(log_costs(task, None, scripts, 30.0), log_costs(task, left, scripts, 30.0))
