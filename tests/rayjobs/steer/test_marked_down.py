"""A server that an operator marks `down` in the configuration stays out when a controller reloads before he does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import Weights
from actuators.external.actuator import ActuatorOptions
from actuators.nginx.config import NginxOptions
from actuators.statistics.reader import CollectOptions
from rayjobs.steer.controller import CHANGED
from rayjobs.steer.site import external_site
from tests.support.nginx_site import running_site
from tests.support.steer_scripted import Scripted, fixed_options
from tuning.steering.audit import replay

pytestmark = pytest.mark.nginx


@dataclass
class Edited:
    """A controller that changes weights by reload, and the file that it shares with an operator."""

    drill: Scripted
    file: Path

    def mark(self, index: int) -> None:
        """As an operator does before a reload of his."""
        server = re.escape(self.drill.site.topology.servers[index])
        text, count = re.subn(rf"(server {server}\b[^;]*);", r"\1 down;", self.file.read_text())
        assert count == len(self.drill.site.topology.groups)
        self.file.write_text(text)

    def clear(self) -> None:
        self.file.write_text(self.file.read_text().replace(" down;", ";"))

    def marked(self) -> list[int]:
        """Servers that are out of every group."""
        down = self.drill.site.actuator.control().down
        assert (down == down[:1]).all()
        return np.flatnonzero(down[0]).tolist()


@pytest.fixture
def edited(short_dir: Path) -> Iterator[Edited]:
    with running_site(short_dir, NginxOptions(method="round_robin", actuation="reload")) as site:
        nginx = site.nginx
        reload = {
            "config": short_dir / "nginx" / "nginx.conf", "status_url": nginx.status_url, "min_reload_interval_s": 0.0,
        }  # fmt: skip
        reached = ActuatorOptions.model_validate({"reload": reload})
        with external_site(site.topology, reached, nginx.status_url, CollectOptions()) as opened:
            own = replace(opened, address=nginx.address)
            policy = Weights(own.topology, np.tile([60, 30, 10], (3, 1)))
            drill = Scripted(own, site.servers, policy, short_dir / "steer", fixed_options("active"))
            yield Edited(drill, site.upstreams_file)


def test_a_change_of_weights_keeps_it(edited: Edited) -> None:
    drill = edited.drill
    edited.mark(0)
    drill.until(lambda step: step.applied and step.decision.source == "policy")
    assert edited.marked() == [0]
    assert drill.shares(20)[0] == 0
    # The controller takes it for what it is when the reload shows in the statistics.
    drill.until(lambda step: CHANGED in step.line["alarms"])
    assert drill.controller.steering.in_force.down[:, 0].all()
    drill.until(lambda step: step.applied and step.decision.source == "policy")
    assert edited.marked() == [0]
    assert [one.line["reason"] for one in replay(drill.folder.audit) if not one.same] == []


def test_a_revert_keeps_it_and_does_not_set_it_again(edited: Edited) -> None:
    drill, before = edited.drill, edited.file.read_text()
    drill.until(lambda step: step.applied and step.decision.source == "policy")
    edited.mark(1)
    drill.folder.order(override="reverted")
    drill.until(lambda step: step.applied)
    assert edited.marked() == [1]
    drill.until(lambda step: bool(drill.folder.status()["reverted"]))
    edited.clear()
    assert edited.file.read_text() == before
    drill.folder.order(override="")
    drill.until(lambda step: step.applied and step.decision.source == "policy")
    assert edited.marked() == []


def test_two_changes_before_the_statistics_show_a_reload_keep_it(edited: Edited) -> None:
    site = edited.drill.site
    decided = site.control()
    assert isinstance(decided, Weights)
    edited.mark(2)
    for first in (2, 3):
        assert site.apply(Weights(site.topology, np.tile([first, 1, 1], (3, 1)), decided.down)).changed
        assert edited.marked() == [2]
