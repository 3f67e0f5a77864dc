"""A server dies, or falls silent, in front of real traffic: no client notices, it gets 1 %, and it comes back at once.

With statistics that count all attempts and with those that count final answers only; by reload and in memory.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import Weights
from actuators.nginx.config import NginxOptions
from tests.support.http_server import HANG
from tests.support.nginx_site import Site, running_site
from tests.support.steer_scripted import Scripted, fixed_options, scripted

pytestmark = pytest.mark.nginx

REQUESTS, PAUSE_S = 40, 0.01
INTERVAL_S = REQUESTS * PAUSE_S
"""Least duration of a window here: a bar in seconds is one in so many windows."""
POLICY = (50, 30, 20)


@dataclass
class Drill:
    """A policy in force, and its first server, which gets half of the requests."""

    site: Site
    controller: Scripted
    kind: str

    def fall(self) -> None:
        if self.kind == "dead":
            self.site.servers[0].die()
        else:
            self.site.script[0] = lambda _: HANG

    def recover(self) -> None:
        self.site.heal()
        if self.kind == "dead":
            self.site.servers[0].revive()

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.controller.step(REQUESTS, PAUSE_S)

    def attempts(self) -> int:
        """Failed attempts so far, as NGINX logged them."""
        log = (self.site.upstreams_file.parent / "error.log").read_text(errors="replace")
        return len(re.findall(r"connect\(\) failed|upstream timed out|prematurely closed|reset by peer", log))

    def share(self, windows: int) -> float:
        """Of the good answers."""
        shares = [self.controller.shares(REQUESTS, PAUSE_S)[0] for _ in range(windows)]
        return float(np.mean(shares))


def lose_and_regain_a_server(
    folder: Path, attempts: str, actuation: str, kind: str, *, fail_timeout_s: int, windows: int, until_back: int
) -> None:
    options = NginxOptions.model_validate({
        "method": "round_robin", "attempts": attempts, "statistics": "lua", "actuation": actuation,
        # Servers that are well must answer in time on a busy machine, too.
        "read_timeout_s": 10.0 if kind == "dead" else 0.5, "fail_timeout_s": fail_timeout_s,
    })  # fmt: skip
    with running_site(folder, options) as site:
        policy = Weights(site.topology, np.tile(POLICY, (3, 1)))
        drill = Drill(site, scripted(site, policy, folder / "steer", fixed_options("active")), kind)
        drill.controller.until(lambda step: step.applied and step.decision.source == "policy")
        drill.fall()
        drill.steps(5)
        assert drill.controller.controller.steering.in_force.as_weights().shares()[1, 0] <= 0.01
        assert any("answers nothing" in line for line in drill.controller.said)
        before, began_s = drill.attempts(), time.monotonic()
        drill.steps(windows)
        # On a slow machine windows last longer, and NGINX tries the server once in every pause of its own.
        pauses = (time.monotonic() - began_s) / fail_timeout_s
        assert drill.attempts() - before <= 0.01 * windows * REQUESTS + 1 + pauses
        drill.recover()
        for _ in range(int(30 / INTERVAL_S)):
            window = drill.controller.step(REQUESTS, PAUSE_S).line["window"]
            if window["requests"][1][0] > window["errors"][1][0]:
                break
        else:
            raise AssertionError("not readmitted within 30 s of windows")
        drill.steps(until_back - 2)
        assert drill.share(2) >= 0.9 * POLICY[0] / sum(POLICY)
        assert drill.controller.folder.status()["source"] == "policy"


@pytest.mark.parametrize(("actuation", "kind"), [("memory", "dead"), ("reload", "silent")])
def test_a_lost_server_gets_one_percent_and_is_back_at_once(short_dir: Path, actuation: str, kind: str) -> None:
    lose_and_regain_a_server(short_dir, "final", actuation, kind, fail_timeout_s=1, windows=8, until_back=5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dead", "silent"])
@pytest.mark.parametrize("actuation", ["memory", "reload"])
@pytest.mark.parametrize("attempts", ["final", "all"])
def test_the_same_with_the_pause_that_nginx_has_by_default(
    short_dir: Path, attempts: str, actuation: str, kind: str
) -> None:
    back = int(5 / INTERVAL_S)
    lose_and_regain_a_server(short_dir, attempts, actuation, kind, fail_timeout_s=10, windows=40, until_back=back)
