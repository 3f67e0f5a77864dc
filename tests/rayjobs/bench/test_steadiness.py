"""Switches of steering under a daily wave: how they are counted, and a short half hour of one system."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayjobs.bench.parts import steadiness
from rayjobs.bench.parts.own_systems import own_system
from tuning.steering.options import SteeringOptions

pytestmark = pytest.mark.thorough


def test_switches_are_counted_from_the_first_act_of_the_policy_and_holds_are_none() -> None:
    sources = ["baseline", "hold", "policy", "hold", "policy", "baseline", "hold", "baseline", "policy"]
    decisions = [(source, f"{source} now") for source in sources]
    assert steadiness.switches(decisions) == [(5, "baseline now"), (8, "policy now")]
    assert steadiness.switches(decisions[:2]) == []


@pytest.mark.slow
def test_a_wave_switches_nothing_and_the_rates_follow_it(tmp_path: Path) -> None:
    system = own_system(2, 1)
    waving = steadiness.Waving(system, wave_s=200.0, slower_at_s=150.0)
    script, plain = waving.script(system.topology, 7), system.script(system.topology, 7)
    factors = [
        new.rate_rps / old.rate_rps for new, old in zip(script.streams[0].steps, plain.streams[0].steps, strict=True)
    ]
    assert (min(factors), max(factors)) >= (0.6, 1.0)
    assert max(factors) <= 1.1
    assert [(each.at_s, each.server, each.speed) for each in script.behaviours] == [(150.0, 0, 0.5)]
    adviser = steadiness.fitted(system, 1, tmp_path)
    decisions = list(steadiness.steer(adviser, waving, 101, 200, SteeringOptions(mode="active")))
    assert sum(decision.source == "policy" for decision in decisions) > 150
    assert len(steadiness.switches([(each.source, each.reason) for each in decisions])) <= 2
