"""A canary in front of a real NGINX: the shares at 0, 10, 50 and 100 %, as told and as the servers counted them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import ServiceTimes, Weights
from actuators.nginx.config import NginxOptions
from rayjobs.cli.main import main
from tests.support.nginx_site import running_site
from tests.support.steer_scripted import fixed_options, scripted
from tuning.steering.audit import replay
from tuning.steering.limits import GRAIN

pytestmark = pytest.mark.nginx

REQUESTS = 900
FIRST, POLICY = np.array([2, 1, 1]) / 4, np.array([7, 2, 1]) / 10


@pytest.mark.parametrize("actuation", ["memory", pytest.param("reload", marks=pytest.mark.slow)])
def test_shares_at_every_percentage_are_told_and_true(
    short_dir: Path, actuation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = NginxOptions.model_validate({"method": "round_robin", "actuation": actuation})
    with running_site(short_dir, options) as site:
        site.nginx.apply(Weights(site.topology, np.tile([2, 1, 1], (3, 1))))
        policy = Weights(site.topology, np.tile([70, 20, 10], (3, 1)))
        drill = scripted(site, policy, short_dir / "steer", fixed_options("shadow"))
        drill.step()
        assert (abs(drill.shares(REQUESTS) - FIRST) <= 3 / REQUESTS).all(), "before"
        for percent in (10.0, 50.0, 100.0):
            drill.folder.order(mode="canary", canary_percent=percent)
            drill.until(lambda step: step.applied and step.decision.source == "policy")
            part = percent / 100
            told = np.array(drill.folder.status()["shares"])[1]
            way = np.abs(part * (POLICY - FIRST))
            # Weights are whole numbers; by reload they are rounded towards the first ones.
            exact = actuation == "memory" or percent == 100
            assert exact or ((abs(told - FIRST) <= way + GRAIN).all() and abs(told - FIRST).max() <= way.max())
            assert told == pytest.approx(FIRST + part * (POLICY - FIRST), abs=0.003 if exact else 0.01)
            drawn = np.sqrt(part * (1 - part) / REQUESTS) * abs(POLICY - FIRST) if actuation == "memory" else 0
            assert (abs(drill.shares(REQUESTS) - told) <= 4 * (drawn + 2 / REQUESTS)).all(), percent
            assert main(["steer", "status", "--folder", str(drill.folder.path)]) == 0
            lines = capsys.readouterr().out
            assert f"share {told[0]:.1%}, first 50.0%" in lines
            assert ("% of the requests by these weights" in lines) == (actuation == "memory" and percent < 100)
        drill.folder.order(override="reverted")
        drill.until(lambda step: step.applied)
        assert (abs(drill.shares(REQUESTS) - FIRST) <= 3 / REQUESTS).all(), "after"
    assert [one.line["reason"] for one in replay(drill.folder.audit) if not one.same] == []


def test_a_canary_of_service_times_leaves_the_other_requests_to_the_first_method(
    short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_site(short_dir, NginxOptions(method="round_robin", actuation="memory")) as site:
        times = ServiceTimes(site.topology, np.tile([0.01, 0.02, 0.03], (3, 1)), np.full(3, 2.0))
        drill = scripted(site, times, short_dir / "steer", fixed_options("canary"))
        drill.until(lambda step: step.applied and step.decision.source == "policy")
        split = site.nginx.split_in_force()
        assert split is not None
        assert (split.percent, split.method, split.base_method) == (10, "expected_delay", "round_robin")
        assert split.base_control == Weights.equal(site.topology)
        drill.step()
        told = drill.folder.status()
        assert told["service_ms"][1] == [10.0, 20.0, 30.0]
        assert told["counted"] is not None
        assert main(["steer", "status", "--folder", str(drill.folder.path)]) == 0
        assert "10.00 ms, share " in capsys.readouterr().out
        # Killed, and started again in shadow mode: what it left is known, and the first control comes back.
        again = scripted(site, times, short_dir / "steer", fixed_options("shadow"))
        assert again.controller.steering.canary is not None
        again.until(lambda step: step.applied)
        assert site.nginx.split_in_force() is None
        assert (site.nginx.method, site.nginx.control()) == ("round_robin", Weights.equal(site.topology))
    assert [one.line["reason"] for one in replay(drill.folder.audit) if not one.same] == []
