"""Family H around a calibration: idle times, rates and deadlines are those that were recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.script import Script
from actuators.contract.script_check import check_script
from actuators.contract.topology import social_network
from actuators.errors import ConfigError
from envs.admission.nominal import idle_moments_s
from envs.calibration.result import Calibration
from envs.scenarios.calibrated import calibrated
from envs.scenarios.family import KINDS
from envs.scenarios.lookup import scenario, topology_of
from envs.scenarios.own_family import own_family

PATH = "tests/data/runs/calibration.json"
CALIBRATION = Calibration.load(Path(PATH))
TOPOLOGY = CALIBRATION.topology


def stage_loads(script: Script) -> list[float]:
    rates_rps = np.array([stream.steps[0].rate_rps for stream in script.streams])
    loads = []
    for stage in script.stages:
        visits = np.array(stage.visits)
        if stage.cache:
            visits = visits * np.where(stage.cache.cached, 1 - stage.cache.hit, 1)
        loads.append(float(rates_rps @ (visits * np.array(stage.work_s))) / stage.connections)
    return loads


def test_what_was_measured_stays_and_what_is_hidden_is_drawn() -> None:
    # One fit, so that what was measured is the same in all draws.
    calibration = CALIBRATION.changed({"ensemble": (CALIBRATION.parameters,)})
    whole_s, _ = idle_moments_s(calibrated(calibration).script(TOPOLOGY, 1))
    seen = set()
    for seed in range(40):
        script = own_family(calibration).script(TOPOLOGY, seed)
        check_script(script, TOPOLOGY)
        assert script == own_family(calibration).script(TOPOLOGY, seed)
        mean_s, _ = idle_moments_s(script)
        assert mean_s == pytest.approx(whole_s)
        assert [stream.steps[0].rate_rps for stream in script.streams] == pytest.approx(calibration.rates_rps)
        assert script.deadlines_s == pytest.approx(calibration.deadlines_s)
        assert all(load < 0.851 for load in stage_loads(script))
        assert max(stage_loads(script)) > 0.2
        seen.add((script.servers[0].blocking, script.stages[0].cache is not None, script.clients[0].retries))
    assert len(seen) == 12


def test_kinds_come_in_turn_and_can_be_named() -> None:
    for number, kind in enumerate(KINDS):
        named = scenario(f"h-{kind}:{PATH}")
        assert topology_of([named]) == TOPOLOGY
        one, other = (each.script(TOPOLOGY, 80 + number) for each in (named, scenario(f"H:{PATH}")))
        assert replace(one, name="") == replace(other, name="")
        flushed = [change.flush for change in one.stage_behaviours]
        assert (flushed == [True]) == (kind == "flush")
    with pytest.raises(ConfigError, match="cannot read"):
        scenario("H-nothing:calibration.json")


def test_own_deadlines_and_importance() -> None:
    script = own_family(CALIBRATION, "surge", np.array([0.2, 0.1, 0.1]), np.array([1.0, 5.0, 1.0])).script(TOPOLOGY, 3)
    assert script.deadlines_s == (0.2, 0.1, 0.1)
    assert script.importance == (1.0, 5.0, 1.0)
    with pytest.raises(ConfigError, match="calibrated for"):
        own_family(CALIBRATION).script(social_network(("a:1", "b:1")), 1)
