"""The controller's loop in front of an NGINX that is none: what fails is counted, said once, and tried again."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from actuators.contract.control import Canary, Control, Weights
from actuators.contract.testbed import Applied
from actuators.contract.window import Fault, Window
from actuators.errors import ActuationError, ConfigError
from rayjobs.steer.controller import CHANGED, Match, SiteController
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.order_store import Orders
from rayjobs.steer.site import Site
from tests.support.steering_cases import DEADLINES_S, EQUAL, UNEVEN, advice, options
from tests.support.windows import TOPOLOGY, window
from tuning.policy.adviser import Advice
from tuning.steering.decide import Steering
from tuning.steering.options import SteeringOptions


@dataclass
class Nowhere:
    """A site without an NGINX: the same window again and again, but for faults; changes nothing while it is broken."""

    topology = TOPOLOGY
    first_method = None
    broken: bool = False
    unreadable: bool = False
    faults: tuple[Fault, ...] = ()
    changes_silently: bool = False
    in_force: Control = EQUAL
    asked: list[Control] = field(default_factory=list)
    restored: list[Control] = field(default_factory=list)

    @property
    def collector(self) -> Nowhere:
        return self

    def window(self) -> Window:
        return window(10.0, faults=self.faults)

    def method(self) -> None:
        return None

    def control(self) -> Control:
        if self.unreadable:
            raise ConfigError("every server is down", where="group a")
        return self.in_force

    def canary(self) -> None:
        return None

    def apply(self, control: Control, canary: Canary | None = None, *, restoring: bool = False) -> Applied:
        assert canary is None
        self.asked.append(control)
        if self.broken:
            raise ActuationError("no answer", where="nginx")
        if restoring:
            self.restored.append(control)
        changed, self.in_force = control != self.in_force, control
        return Applied(changed, 0.0)


class Always:
    """Advises the same whatever happens."""

    def advise(self, windows: object, memory: object = None) -> Advice:
        return advice(UNEVEN)


@dataclass
class Loop:
    site: Nowhere
    controller: SiteController
    folder: SteerFolder
    lines: list[dict[str, Any]]
    said: list[str]

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.controller.step()

    def status(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.folder.path / "status.json").read_bytes())
        return value


def loop(tmp_path: Path, settings: SteeringOptions) -> Loop:
    site, folder = Nowhere(), SteerFolder(tmp_path)
    lines: list[dict[str, Any]] = []
    said: list[str] = []
    folder.first.keep(EQUAL, None)
    steering = Steering(DEADLINES_S, EQUAL, settings, time.monotonic())
    match = Match(cast(Site, site), steering, Always(), 1, lines.append)
    controller = SiteController(match, folder, log=said.append)
    return Loop(site, controller, folder, lines, said)


def quick(**values: Any) -> SteeringOptions:
    guards = {"reference_windows": 2, "min_between_changes_s": 0.0, "min_between_reloads_s": 0.0, "largest_step": 100.0}
    return options(guards=guards, **values)


def test_a_change_that_fails_is_counted_said_once_and_tried_again(tmp_path: Path) -> None:
    run = loop(tmp_path, quick())
    run.site.broken = True
    run.steps(5)
    assert [line["applied"] for line in run.lines] == [False] * 5
    assert run.lines[-1]["in_force"] == EQUAL.values.tolist()
    assert run.lines[-1]["alarms"] == ["not applied: no answer (nginx)"]
    assert "actuation" in run.lines[-1]["guards"]
    (said,) = run.said
    assert said.startswith("ALARM not applied: no answer (nginx); answer: nginx -t")
    failed = len(run.site.asked)
    assert failed == 4
    assert run.status()["guards"] == {"measuring": 1, "actuation": failed}
    run.site.broken = False
    run.steps(1)
    assert run.lines[-1]["applied"]
    assert run.site.in_force == UNEVEN


def test_a_revert_that_fails_is_tried_again(tmp_path: Path) -> None:
    run = loop(tmp_path, quick())
    run.steps(3)
    assert run.site.in_force == UNEVEN
    run.folder.order(override="reverted")
    run.site.broken = True
    run.steps(2)
    assert run.site.in_force == UNEVEN
    run.site.broken = False
    run.steps(1)
    assert run.site.in_force == EQUAL
    assert run.status()["guards"]["operator"] == 3


def test_a_revert_does_not_rest_on_what_the_controller_believes(tmp_path: Path) -> None:
    """Somebody has put weights in force of which the statistics of this site tell nothing."""
    run = loop(tmp_path, quick(mode="shadow"))
    run.steps(2)
    run.site.in_force, run.site.broken = UNEVEN, True
    assert run.folder.order(override="reverted").pending
    run.steps(2)
    assert (run.site.restored, orders(run).pending) == ([], True)
    run.site.broken = False
    run.steps(3)
    assert (run.site.restored, run.site.in_force) == ([EQUAL], EQUAL)
    assert not orders(run).pending


def orders(run: Loop) -> Orders:
    found = run.folder.orders.read().value
    assert found is not None
    return found


def test_what_an_operator_takes_out_of_rotation_stays_out(tmp_path: Path) -> None:
    """As by HAProxy's `set server … state maint`, which no statistics tell."""
    run = loop(tmp_path, quick())
    run.site.changes_silently = True
    run.steps(3)
    assert isinstance(run.site.in_force, Weights)
    down = np.zeros(TOPOLOGY.shape, bool)
    down[:, 0] = True
    run.site.in_force = Weights(TOPOLOGY, run.site.in_force.values, down)
    run.steps(3)
    assert isinstance(run.site.in_force, Weights)
    assert run.site.in_force.down.tolist() == down.tolist()
    assert run.lines[3]["alarms"][:1] == [CHANGED]
    run.site.in_force = Weights(TOPOLOGY, run.site.in_force.values)
    run.steps(3)
    assert not run.site.in_force.down.any()


@pytest.mark.parametrize("silently", [True, False])
def test_nothing_is_applied_while_what_is_in_force_cannot_be_read(tmp_path: Path, silently: bool) -> None:
    """As when an operator has taken the last server of a group out, which is no valid control."""
    run = loop(tmp_path, quick())
    run.site.changes_silently, run.site.unreadable = silently, True
    run.site.faults = () if silently else (Fault("reload", "by somebody else"),)
    run.steps(1)
    # The reload is told in one window only.
    run.site.faults = ()
    run.steps(4)
    assert run.site.asked == []
    assert [line["alarms"][0] for line in run.lines] == [
        "weights in force unknown, holding: every server is down (group a)"
    ] * 5
    assert run.lines[-1]["source"] == "policy"
    assert not any(line["applied"] for line in run.lines)
    run.site.unreadable = False
    run.steps(1)
    assert (run.lines[-1]["applied"], run.site.in_force) == (True, UNEVEN)


def test_a_revert_is_made_although_what_is_in_force_cannot_be_read(tmp_path: Path) -> None:
    run = loop(tmp_path, quick())
    run.steps(3)
    run.site.changes_silently = run.site.unreadable = True
    run.folder.order(override="reverted")
    run.steps(3)
    assert (run.site.restored, run.site.in_force) == ([EQUAL], EQUAL)


def test_orders_move_a_running_controller_through_its_modes(tmp_path: Path) -> None:
    run = loop(tmp_path, quick(mode="shadow"))
    run.steps(4)
    assert run.site.asked == []
    run.folder.order(mode="canary", canary_percent=50.0)
    run.steps(2)
    half = EQUAL.shares() + 0.5 * (UNEVEN.shares() - EQUAL.shares())
    assert run.site.in_force.as_weights().shares() == pytest.approx(half, abs=0.01)
    run.folder.order(mode="active")
    run.steps(1)
    assert run.site.in_force == UNEVEN
    run.folder.order(mode="shadow")
    run.steps(1)
    assert run.site.in_force == EQUAL
    assert [line["mode"] for line in run.lines] == ["shadow"] * 4 + ["canary"] * 2 + ["active", "shadow"]


def test_orders_that_nobody_can_read_are_an_alarm_and_change_nothing(tmp_path: Path) -> None:
    run = loop(tmp_path, quick())
    (tmp_path / "orders.json").write_text("{")
    run.steps(4)
    assert "ALARM not an orders file" in run.said[0]
    assert "answer: deepsched steer resume" in run.said[0]
    assert len(run.said) == 1
    assert run.site.in_force == UNEVEN
