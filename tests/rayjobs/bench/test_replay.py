"""Picks of late binding in a real NGINX under load, and those of the simulator at the same moments."""

from __future__ import annotations

from pathlib import Path

import pytest

from actuators.contract.late_binding import HoldOrder, LateBindingNumbers
from rayjobs.bench.simulator.replay import ORDERS, replayed

pytestmark = pytest.mark.nginx


@pytest.mark.parametrize("order", ORDERS)
def test_the_simulator_makes_every_pick_of_a_real_nginx(tmp_path: Path, order: HoldOrder) -> None:
    picks, different = replayed(tmp_path, LateBindingNumbers(order=order), requests=600, seed=3)
    assert (picks, different) == (600, 0)
