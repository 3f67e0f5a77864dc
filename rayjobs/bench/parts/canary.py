"""A canary in memory in front of live traffic: the shares that the servers got, beside those that it should give."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from actuators.contract.control import Canary, Weights, shares_of
from actuators.contract.script import Scenario
from actuators.nginx.config import NginxOptions
from actuators.testbed.options import LiveOptions
from rayjobs.steer.site import embedded_site

PERCENTAGES = (0.0, 10.0, 50.0, 100.0)
NEW = (50, 30, 20)


def measured(scenario: Scenario, work_dir: Path, seed: int, seconds: float) -> dict[float, float]:
    """Percentage → largest deviation of a server's share from the expected one, in standard errors.

    Under round robin, from equal weights to `NEW`; which requests go by the new weights is drawn, and each round robin
    is exact to two requests of a group.
    """
    live, found = LiveOptions(nginx=NginxOptions(method="round_robin")), dict[float, float]()
    with embedded_site(live, scenario, work_dir, seed, len(PERCENTAGES) * seconds + 60.0) as site:
        site.first_method = site.method()
        new, base = Weights(site.topology, np.tile(NEW, (site.topology.shape[0], 1))), Weights.equal(site.topology)
        for percent in PERCENTAGES:
            canary = Canary(percent, base)
            site.apply(new, canary)
            site.collector.begin()
            time.sleep(seconds)
            requests = site.collector.window().requests
            total, part = requests.sum(axis=1, keepdims=True), percent / 100
            drawn = np.sqrt(part * (1 - part) / total) * np.abs(new.shares() - base.shares())
            away = np.abs(requests / total - shares_of(new, canary))
            found[percent] = float((away / (drawn + 2 / total)).max())
    return found
