"""Learned admission is trained on the environment that it is judged in, repeats, and must prove itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from actuators.contract.topology import social_network
from envs.environment.entry import EntryTask
from envs.observation.entry import REGIME_NAMES
from envs.scenarios.family import KINDS
from envs.scenarios.lookup import scenario
from tuning.learning.curve import CurveRow
from tuning.learning.entry import fit_regimes, learned_goodput, prove_entry, train_entry, untrained
from tuning.learning.proof import REACHES, prove_by
from tuning.learning.windowed import ENVIRONMENTS, EPISODE_STEPS, WindowedTraining
from tuning.policy.model import EquivariantNet

pytestmark = pytest.mark.thorough

TOPOLOGY = social_network()
TASK = EntryTask(TOPOLOGY)
SHORT = WindowedTraining(iterations=1, look_every=1, look_episodes=8, proof_episodes=16)


def outputs(net: EquivariantNet) -> float:
    last = net.action[-1]
    assert isinstance(last, torch.nn.Linear)
    return float((last.weight.abs().sum() + last.bias.abs().sum()).detach())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray")
def test_a_training_samples_whole_episodes_and_keeps_the_best_network() -> None:
    rows: list[CurveRow] = []
    net = train_entry(TASK, replace(SHORT, iterations=2, look_every=2), 1, rows.append)
    assert [row.step for row in rows] == [ENVIRONMENTS * EPISODE_STEPS, 2 * ENVIRONMENTS * EPISODE_STEPS]
    assert {"goodput", "refused"} == set(rows[0].terms)
    assert rows[1].episode_return != rows[0].episode_return
    scripts = [scenario("H").script(TOPOLOGY, 7 + index) for index in range(8)]
    before, after = (learned_goodput(TASK, one, scripts).shares() for one in (None, net))
    assert np.isfinite(after).all()
    assert (outputs(net) > 0) == (not np.array_equal(before, after))


def test_an_untrained_network_changes_nothing_and_proves_nothing() -> None:
    net = untrained(TASK, 3)
    scripts = [scenario("H").script(TOPOLOGY, 7 + index) for index in range(8)]
    assert np.array_equal(learned_goodput(TASK, None, scripts).good, learned_goodput(TASK, net, scripts).good)
    left, proof = prove_entry(net, TASK, SHORT)
    assert not proof.holds
    assert (proof.overall.mean, proof.overall.episodes, set(proof.scenarios)) == (0.0, 16, set(KINDS))
    assert outputs(left) == 0.0


def test_as_much_of_a_residual_is_kept_as_is_proven() -> None:
    """Its gain is twice what its last layer weighs; more than half of that harms one of two scenarios."""
    net = untrained(TASK)
    last = net.action[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.bias.fill_(1.0)
    noise = np.tile([-1e-4, 1e-4], 10)

    def gains(some: EquivariantNet) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        reach = outputs(some)
        second = 0.01 if reach <= 0.5 else -0.01
        return np.where(np.arange(20) < 10, 2 * reach, second) + noise

    scenarios = ["one"] * 10 + ["two"] * 10
    kept, proof = prove_by(net, scenarios, gains)
    assert proof.holds
    assert proof.reach == REACHES[1] == outputs(kept) == 0.5
    assert proof.scenarios["one"].mean == pytest.approx(1.0)
    assert prove_by(net, scenarios, lambda some: noise)[1].holds is False


def test_regimes_are_told_apart() -> None:
    encoder = fit_regimes(TOPOLOGY, 3, 1, systems=16)
    assert encoder.names == REGIME_NAMES
    posterior, _ = encoder.encode(encoder.means * encoder.scale + encoder.center)
    assert posterior.argmax(axis=1).tolist() == [0, 1, 2]
    # They differ in how late answers are.
    assert np.ptp(encoder.means[:, 0]) > 0.5
