"""Shadow mode in front of a real NGINX: what a controller has set is taken back, and what an operator set stays."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import Control, Weights
from actuators.external.actuator import MemoryActuator
from actuators.nginx.config import NginxOptions
from actuators.nginx.control_endpoint import MemoryControl
from rayjobs.steer import site as steered
from rayjobs.steer.controller import CHANGED, KEPT
from tests.support.nginx_site import Site, running_site
from tests.support.steer_scripted import Scripted, fixed_options
from tuning.steering.audit import replay
from tuning.steering.options import Mode

pytestmark = pytest.mark.nginx


class Operated:
    """An NGINX that anybody can change in memory, and controllers in one folder."""

    def __init__(self, site: Site, endpoint: MemoryControl, folder: Path) -> None:
        self._site, self.operator, self.folder = site, MemoryActuator(endpoint), folder
        self.first = Weights.equal(site.topology)
        self.policy = Weights(site.topology, np.tile([70, 20, 10], (3, 1)))
        self.others = Weights(site.topology, np.tile([1, 2, 7], (3, 1)))

    def controller(self, mode: Mode) -> Scripted:
        site = self._site
        own = steered.Site(site.topology, site.collector, self.operator, site.nginx.address)
        return Scripted(own, site.servers, self.policy, self.folder, fixed_options(mode))

    def steered(self) -> Scripted:
        """A controller whose policy is in force."""
        drill = self.controller("active")
        drill.until(lambda step: step.applied and step.decision.source == "policy")
        assert self.operator.control() != self.first
        return drill

    def in_force(self) -> Control:
        return self.operator.control()

    def drain(self) -> Weights:
        """Takes the first server out; the first weights with it out."""
        self.operator.rotate([f"{self.first.topology.servers[0]}=down"])
        return replace(self.first, down=self.first.topology.mask & (np.arange(3) == 0))

    def set_others(self) -> Weights:
        self.operator.apply(self.others)
        return self.others

    def leave(self) -> Weights:
        """Changes nothing; what shadow mode then puts in force."""
        return self.first

    def replayed_otherwise(self) -> list[str]:
        """Reasons of the decisions that a replay makes otherwise."""
        return [one.line["reason"] for one in replay(self.folder / "audit.jsonl") if not one.same]


@pytest.fixture
def operated(short_dir: Path) -> Iterator[Operated]:
    options = NginxOptions(method="round_robin", actuation="memory")
    with running_site(short_dir, options) as site:
        nginx = site.nginx
        with contextlib.closing(MemoryControl(nginx.control_url, nginx.token, site.topology)) as endpoint:
            yield Operated(site, endpoint, short_dir / "steer")


CHANGES = [Operated.set_others, Operated.drain, Operated.leave]


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_controller_has_ended(operated: Operated, change: Callable[[Operated], Weights]) -> None:
    operated.steered().controller.end()
    expected = change(operated)
    shadow = operated.controller("shadow")
    first, *_ = steps = [shadow.step() for _ in range(4)]
    assert operated.in_force() == expected
    theirs = expected == operated.others
    assert {CHANGED, KEPT} & set(first.line["alarms"]) == ({CHANGED, KEPT} if theirs else set())
    assert [step.applied for step in steps] == [not theirs, False, False, False]
    # Another controller knows it as well.
    shadow.controller.end()
    again = operated.controller("shadow")
    assert not any(again.step().applied for _ in range(3))
    assert operated.in_force() == expected
    again.folder.order(override="reverted")
    again.until(lambda step: bool(again.folder.status()["reverted"]))
    assert operated.in_force() == replace(operated.first, down=expected.down)
    assert operated.replayed_otherwise() == []


@pytest.mark.parametrize("change", CHANGES)
def test_while_a_controller_is_paused(operated: Operated, change: Callable[[Operated], Weights]) -> None:
    drill = operated.steered()
    drill.folder.order(override="paused")
    drill.step()
    expected = change(operated)
    assert not drill.step().applied
    drill.folder.order(override="", mode="shadow")
    applied = [drill.step().applied for _ in range(4)]
    assert operated.in_force() == expected
    assert applied == [expected != operated.others, False, False, False]
    assert operated.replayed_otherwise() == []


def test_active_mode_measures_the_first_weights_again_after_an_operators(operated: Operated) -> None:
    operated.steered().controller.end()
    operated.set_others()
    drill = operated.controller("shadow")
    drill.step()
    drill.folder.order(mode="active")
    step = drill.until(lambda step: step.applied)
    assert step.decision.source == "baseline"
    drill.until(lambda step: step.applied and step.decision.source == "policy")
    assert operated.replayed_otherwise() == []
