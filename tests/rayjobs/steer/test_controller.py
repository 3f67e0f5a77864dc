"""The controller's loop in front of an NGINX that is none: what fails is counted, said once, and tried again."""

from __future__ import annotations

import contextlib
import errno
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from actuators.contract.control import Canary, Control, Weights
from actuators.contract.testbed import Applied
from actuators.contract.window import Fault, Window
from actuators.errors import ActuationError, ConfigError
from rayjobs.cli.main import main
from rayjobs.steer.controller import CHANGED, LEFT, Match, SiteController, with_deadlines
from rayjobs.steer.first import FirstStore
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.order_store import Orders
from rayjobs.steer.site import Site
from tests.support.steering_cases import DEADLINES_S, EQUAL, UNEVEN, advice, options, trained_bundle
from tests.support.waiting import PATIENCE_S, wait_until
from tests.support.windows import TOPOLOGY, window
from tuning.policy.adviser import Advice
from tuning.steering.audit import AuditLog
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
    difference: str = ""
    asked: list[Control] = field(default_factory=list)
    restored: list[Control] = field(default_factory=list)

    @property
    def collector(self) -> Nowhere:
        return self

    def window(self) -> Window:
        return window(10.0, faults=self.faults)

    def method(self) -> None:
        return None

    def changed(self) -> str:
        return self.difference

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

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Steps in a thread, under the lock of its folder, as a separate process would."""
        thread = threading.Thread(target=self.controller.run, args=(0.02,))
        with self.folder.locked():
            thread.start()
            try:
                yield
            finally:
                self.controller.stopped.set()
                thread.join(PATIENCE_S)

    def status(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.folder.path / "status.json").read_bytes())
        return value


Load = Callable[[str, Match], Match]


def loop(
    tmp_path: Path,
    settings: SteeringOptions,
    *,
    log: AuditLog | None = None,
    load: Load | None = None,
    rematch: Callable[[str | None], None] | None = None,
) -> Loop:
    """With a log, the lines are also written to it; `rematch` is told the bundle, and the match stays."""
    site, folder = Nowhere(), SteerFolder(tmp_path)
    lines: list[dict[str, Any]] = []
    said: list[str] = []
    folder.make()
    folder.first.keep(EQUAL, None)
    steering = Steering(DEADLINES_S, EQUAL, settings, time.monotonic())

    def record(line: dict[str, Any]) -> None:
        lines.append(line)
        if log is not None:
            log.write(line)

    def again(bundle: str | None) -> Match:
        assert rematch is not None
        rematch(bundle)
        return match

    problem = (lambda: "") if log is None else (lambda: log.problem)
    match = Match(cast(Site, site), steering, Always(), 1, record, load, problem=problem)
    controller = SiteController(match, folder, rematch=again if rematch else None, log=said.append)
    return Loop(site, controller, folder, lines, said)


def quick(overload_ratio: float = 1.0, **values: Any) -> SteeringOptions:
    guards = {
        "reference_windows": 2, "min_between_changes_s": 0.0, "min_between_reloads_s": 0.0, "largest_step": 100.0,
        "overload_ratio": overload_ratio,
    }  # fmt: skip
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


def test_it_stays_out_although_a_full_disk_cannot_record_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = loop(tmp_path, quick())
    run.site.changes_silently = True
    run.steps(3)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FirstStore, "keep", full)
    down = TOPOLOGY.mask & (np.arange(3) == 0)
    run.site.in_force = replace(run.site.in_force, down=down)
    run.steps(4)
    assert run.site.in_force.down.tolist() == down.tolist()
    assert run.lines[3]["alarms"][0] == CHANGED
    assert any(line["applied"] for line in run.lines[3:]), "the steering goes on"


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


def test_what_is_restored_while_no_heartbeat_can_be_written_stays(tmp_path: Path) -> None:
    """As by the watchdog, which takes a controller on a full disk for dead, and restores once."""
    run = loop(tmp_path, quick())
    run.site.changes_silently = True
    run.steps(3)
    assert run.site.in_force == UNEVEN
    (tmp_path / ".status.json.tmp").mkdir()
    run.steps(2)
    assert run.site.in_force == UNEVEN
    run.site.in_force = EQUAL
    run.steps(6)
    assert (run.lines[-1]["source"], run.lines[-1]["applied"]) == ("policy", False)
    assert run.site.in_force == EQUAL
    assert LEFT in run.lines[-1]["alarms"]
    said = [line for line in run.said if "no heartbeat" in line]
    assert len(said) == 2, "each alarm is said once"
    (tmp_path / ".status.json.tmp").rmdir()
    run.steps(2)
    assert run.site.in_force == UNEVEN
    assert LEFT not in run.lines[-1]["alarms"]


def test_a_revert_is_made_while_no_heartbeat_can_be_written(tmp_path: Path) -> None:
    run = loop(tmp_path, quick())
    run.site.changes_silently = True
    run.steps(3)
    (tmp_path / ".status.json.tmp").mkdir()
    run.steps(1)
    run.site.in_force = Weights(TOPOLOGY, np.tile([1, 2, 3], (3, 1)))
    run.steps(1)
    run.folder.order(override="reverted")
    run.steps(1)
    assert run.site.in_force == EQUAL


def test_lost_lines_of_the_audit_log_are_an_alarm_until_it_takes_them(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    run = loop(tmp_path, quick(), log=AuditLog(path, {"kind": "start"}))
    run.steps(2)
    path.rename(tmp_path / "elsewhere")
    path.mkdir()
    run.steps(3)
    assert "not recorded: Is a directory" in run.status()["alarms"]
    (said,) = run.said
    assert said.startswith("ALARM not recorded: Is a directory; answer: df -h")
    path.rmdir()
    run.steps(1)
    assert run.status()["alarms"] == []


class Bundles:
    """Other bundles for the site of a match; those of `refused` are not for it."""

    def __init__(self, *refused: str) -> None:
        self.refused, self.asked = set(refused), list[str]()

    def load(self, path: str, match: Match) -> Match:
        self.asked.append(path)
        if path in self.refused:
            raise ConfigError("not for these groups", where=path)
        return replace(match, adviser=Always(), expected=f"that of {path}")


def test_a_refused_bundle_leaves_the_one_before_and_is_an_alarm_until_another_order(tmp_path: Path) -> None:
    bundles, rematched = Bundles("/bad"), list[str | None]()
    run = loop(tmp_path, quick(), load=bundles.load, rematch=rematched.append)
    run.folder.order(bundle="/good")
    run.steps(1)
    assert (run.status()["bundle"], run.status()["expected"]) == ("/good", "that of /good")
    run.folder.order(bundle="/bad")
    run.steps(3)
    refused = "bundle not swapped: not for these groups (/bad)"
    assert [refused in line["alarms"] for line in run.lines] == [False, True, True, True]
    assert bundles.asked == ["/good", "/bad"]
    assert (run.status()["bundle"], run.status()["refused"]) == ("/good", refused)
    # Servers come and go meanwhile.
    run.site.faults, run.site.difference = (Fault("reload", "by somebody else"),), "+app/d:1"
    run.steps(1)
    assert rematched == ["/good"]
    run.site.faults, run.site.difference = (), ""
    bundles.refused.clear()
    run.folder.order(bundle="/bad")
    run.steps(1)
    assert (run.status()["bundle"], run.status()["refused"]) == ("/bad", "")


def test_a_swap_that_the_controller_refuses_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new"
    trained_bundle().save(new)
    bundles = Bundles(str(new))
    run = loop(tmp_path / "steer", quick(), load=bundles.load)
    with run.going_on():
        wait_until(lambda: bool(run.folder.status()), "no heartbeat")
        assert main(["steer", "swap", str(new), "--folder", str(run.folder.path)]) == 2
        told = capsys.readouterr().err
        assert "bundle not swapped: not for these groups" in told
        assert "in force now" not in told
        assert told.count("\n") == 1
        bundles.refused.clear()
        assert main(["steer", "swap", str(new), "--folder", str(run.folder.path)]) == 0
        assert "in force now" in capsys.readouterr().err
    assert run.folder.status()["bundle"] == str(new)


def test_the_guards_go_by_the_deadlines_of_a_swapped_bundle(tmp_path: Path) -> None:
    def load(path: str, match: Match) -> Match:
        return replace(match, steering=with_deadlines(match.steering, short_s, time.monotonic()))

    short_s = DEADLINES_S / 10
    run = loop(tmp_path, quick(overload_ratio=1e9), load=load)
    run.steps(4)
    assert (run.lines[-1]["source"], run.site.in_force) == ("policy", UNEVEN)
    run.folder.order(bundle="/of/shorter/deadlines")
    run.steps(1)
    assert run.lines[-1]["art"] > 1 > run.lines[-2]["art"]
    # What was measured by the others says nothing of harm.
    assert (run.lines[-1]["source"], run.lines[-1]["guards"]) == ("baseline", ["measuring"])
    assert run.lines[-1]["in_force"] == EQUAL.values.tolist()
    run.steps(5)
    assert run.site.in_force == UNEVEN
