"""Picks of late binding in a real NGINX under load, and those of the simulator at the same moments."""

from __future__ import annotations

from pathlib import Path

import pytest

from actuators.contract.late_binding import HoldOrder, LateBindingNumbers
from rayjobs.bench.simulator.replay import COSTS, IMPORTANCE, ORDERS, Compared, replayed

pytestmark = pytest.mark.nginx


@pytest.mark.parametrize("order", ORDERS)
def test_the_simulator_makes_every_pick_of_a_real_nginx(tmp_path: Path, order: HoldOrder) -> None:
    found = replayed(tmp_path, LateBindingNumbers(order=order), requests=600, seed=3)
    assert found == Compared(picks=600)


@pytest.mark.parametrize("order", ORDERS)
def test_the_simulator_refuses_what_a_real_nginx_refuses_and_weighs_groups_and_costs_alike(
    tmp_path: Path, order: HoldOrder
) -> None:
    numbers = LateBindingNumbers(order=order, refuse_factor=0.4)
    found = replayed(tmp_path, numbers, requests=600, seed=3, importance=IMPORTANCE, costs=COSTS)
    assert found.different == 0
    assert found.picks + found.refused == 600
    assert found.refused > 30
    assert 300 < found.asked < 600, "those of the group that is never refused do not ask"
