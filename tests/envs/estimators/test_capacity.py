"""Workers learned from answers and their times: an interval that stays open without waiting, and slots that follow it.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

import numpy as np
import pytest

from actuators.contract.control import ServiceTimes
from actuators.contract.late_binding import ENOUGH, LateBinding, LateBindingNumbers
from actuators.contract.topology import social_network
from envs.estimators.capacity import Capacity, with_slots, workers_with
from envs.heuristics.controllers import EstimatorController
from envs.scenarios.lookup import scenario
from envs.simulator.testbed import SimulatedTestbed

TOPOLOGY = social_network()


@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
def test_the_workers_of_a_queue_are_found_from_its_formula(load: float) -> None:
    """One worker: n = ρ / (1 − ρ)."""
    assert workers_with(load, load / (1.0 - load)) == pytest.approx(1.0, rel=0.01)


def slots_over_time(name: str, duration_s: int, seed: int) -> np.ndarray:
    """Slots of the servers of a scenario, ``[seconds, servers]``, where all have four workers and one is believed."""
    holding = LateBinding(TOPOLOGY, np.full(3, 0.1), np.ones(3, np.int64), LateBindingNumbers())
    controller = EstimatorController(TOPOLOGY, workers=1.0, holding=holding, learned_slots=1)
    found = []
    with SimulatedTestbed(TOPOLOGY, "late_binding") as testbed:
        testbed.reset(scenario(name, duration_s=float(duration_s)), seed)
        testbed.apply(controller.begin(TOPOLOGY))
        for _ in range(duration_s):
            control = controller.decide(testbed.advance(1.0))
            if control is not None:
                testbed.apply(control)
            present = controller.begin(TOPOLOGY)
            assert isinstance(present, ServiceTimes)
            assert present.holding is not None
            found.append(present.holding.slots.copy())
    return np.array(found)


@pytest.mark.parametrize("name", ["S1", "S5", "S8"])
@pytest.mark.parametrize("seed", [101, 102])
def test_slots_never_lack_at_first_and_never_leave_workers_idle(name: str, seed: int) -> None:
    slots = slots_over_time(name, 300, seed)
    assert (slots[:8] == ENOUGH).all()
    assert slots.min() >= 4
    if name == "S8":
        assert (slots[-1] <= 14).all()


def test_slots_are_unlimited_where_the_interval_is_wide_and_never_below_what_was_shown() -> None:
    holding = LateBinding(TOPOLOGY, np.full(3, 0.1), np.ones(3, np.int64), LateBindingNumbers())
    capacity = Capacity(
        low=np.array([3.6, 2.0, 9.0]), high=np.array([4.4, np.inf, 9.0]), best=np.array([4.0, np.inf, 9.0]),
        shown=np.array([3.5, 1.0, 30.0]),
    )  # fmt: skip
    assert capacity.narrow.tolist() == [True, False, True]
    assert with_slots(holding, capacity).slots.tolist() == [8, ENOUGH, 31]
