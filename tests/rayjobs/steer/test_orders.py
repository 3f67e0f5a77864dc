"""Orders of an operator: in order, answered, and none lost; the names of version 0.1 are read as well."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actuators.errors import ConflictError
from rayjobs.cli.config import load_options
from rayjobs.cli.main import main
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.options import SteerOptions
from rayjobs.steer.order_store import Moment, Orders
from tests.support.steering_cases import EQUAL
from tests.support.waiting import PATIENCE_S, wait_until
from tuning.steering.options import SteeringOptions

pytestmark = pytest.mark.thorough


@pytest.fixture
def folder(tmp_path: Path) -> SteerFolder:
    """A folder that a controller has used."""
    used = SteerFolder(tmp_path)
    used.first.keep(EQUAL, None)
    return used


class Obedient:
    """Obeys the orders of a folder as a controller does, without an NGINX, until it is ended."""

    def __init__(self, folder: SteerFolder, interval_s: float = 0.02) -> None:
        self.folder, self.interval_s, self._over = folder, interval_s, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self.folder.locked():
            while not self._over.wait(self.interval_s):
                stored = self.folder.orders.read()
                orders = stored.value or Orders()
                reverted = orders.override == "reverted"
                if reverted:
                    self.folder.orders.answer(stored.version)
                self.folder.write_status(
                    {
                        "now_s": time.monotonic(), "interval_s": self.interval_s, "orders_version": stored.version,
                        "reverted": reverted, "override": orders.override, "mode": orders.mode or "active",
                        "canary_percent": 10.0, "source": "policy", "reason": "the policy's weights",
                    }
                )  # fmt: skip

    def __enter__(self) -> Obedient:
        self._thread.start()
        wait_until(lambda: self.folder.is_locked() and bool(self.folder.status()))
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE_S)


@pytest.fixture
def controller(folder: SteerFolder) -> Iterator[Obedient]:
    with Obedient(folder) as running:
        yield running


def steer(folder: SteerFolder, *words: str) -> int:
    return main(["steer", *words, "--folder", str(folder.path)])


def present(folder: SteerFolder) -> Orders:
    return folder.orders.read().value or Orders()


@pytest.mark.parametrize(
    ("words", "orders"),
    [
        (["pause"], {"override": "paused"}),
        (["mode", "active"], {"mode": "active"}),
        (["mode", "canary"], {"mode": "canary"}),
        (["mode", "blend"], {"mode": "canary"}),
    ],
)
def test_an_order_waits_for_the_next_controller(
    words: list[str], orders: dict[str, str], folder: SteerFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert steer(folder, *words) == 0
    assert "no controller is running" in capsys.readouterr().err
    assert {name: getattr(present(folder), name) for name in orders} == orders
    assert steer(folder, "resume") == 0
    assert present(folder).override == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pause"], "in force now: paused"),
        (["revert"], "in force now: reverted: the first weights"),
        (["mode", "shadow"], "in force now: shadow: changes nothing"),
        (["mode", "canary"], "in force now: canary at 10 %: the policy's weights"),
    ],
)
def test_an_order_says_what_is_in_force_now(
    words: list[str], told: str, controller: Obedient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert steer(controller.folder, *words) == 0
    assert told in capsys.readouterr().err


def test_a_controller_that_does_not_obey_in_time_is_named(
    folder: SteerFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with folder.locked():
        assert steer(folder, "revert", "--wait-s", "0.2") == 1
        assert "not obeyed within 0.2 s" in capsys.readouterr().err
        # Its giver knows, so that a later order counts.
        assert steer(folder, "resume", "--wait-s", "0.2") == 1
    assert present(folder).override == ""


def test_a_revert_wins_over_orders_that_were_given_before_it_was_in_force(folder: SteerFolder) -> None:
    before = Moment.now()
    folder.order(override="reverted")
    for late in (before, Moment.now()):
        with pytest.raises(ConflictError, match="a revert was given at the same time and wins"):
            folder.order(late, override="")
        with pytest.raises(ConflictError):
            folder.order(late, mode="active")
    folder.orders.answer(folder.orders.read().version)
    with pytest.raises(ConflictError):
        folder.order(before, override="")
    folder.order(Moment.now(), override="")
    assert present(folder).model_dump(exclude={"given"}) == Orders().model_dump()


def test_an_order_that_is_given_again_is_a_new_one(folder: SteerFolder) -> None:
    """As of a bundle that the controller has refused, and that was corrected since."""
    versions = []
    for _ in range(2):
        folder.order(bundle="/corrected")
        versions.append(folder.orders.read().version)
    assert versions == [1, 2]


def test_a_moment_of_an_earlier_boot_is_earlier() -> None:
    now = Moment.now()
    assert Moment(boot="now", seconds=1.0).is_after(Moment(boot="before", seconds=1e9))
    assert Moment.now().is_after(now)
    assert not now.is_after(now)
    # This process is pytest, no command that somebody gave.
    assert Moment.of_command().is_after(now)


_GIVE = """
import json, sys
from pathlib import Path
from actuators.errors import ConflictError
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.order_store import Moment
for line in sys.stdin:
    folder, given, changes = json.loads(line)
    try:
        SteerFolder(Path(folder)).order(Moment.model_validate(given), **changes)
        print(flush=True)
    except ConflictError as error:
        print(error, flush=True)
"""


class Together:
    """Two processes that write orders at the same time, again and again; what each says when it is refused."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", _GIVE]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
        ]

    def __call__(self, folder: SteerFolder, *orders: dict[str, Any]) -> list[str]:
        now = Moment.now().model_dump()
        for process, changes in zip(self._processes, orders, strict=True):
            assert process.stdin is not None
            process.stdin.write(json.dumps([str(folder.path), now, changes]) + "\n")
            process.stdin.flush()
        return [process.stdout.readline().strip() for process in self._processes if process.stdout is not None]

    def close(self) -> None:
        for process in self._processes:
            process.communicate(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def together() -> Iterator[Together]:
    with contextlib.closing(Together()) as both:
        yield both


REVERT = {"override": "reverted"}


def test_sixty_reverts_given_together_with_another_order_are_all_kept(controller: Obedient, together: Together) -> None:
    """Two processes write at the same time under a controller that obeys within 20 ms, also between the two."""
    others = [{"override": ""}, {"mode": "active"}, {"override": "paused"}]
    refused = 0
    for number in range(60):
        controller.folder.order(override="", mode="shadow")
        other = others[number % 3]
        # Either of the two is submitted first in half of the tries.
        folder = controller.folder
        told = together(folder, REVERT, other) if number % 2 else together(folder, other, REVERT)[::-1]
        assert told[0] == ""
        assert present(controller.folder).override == "reverted", number
        assert told[1] == "" or "a revert was given at the same time and wins" in told[1]
        refused += told[1] != ""
        wait_until(lambda: not present(controller.folder).pending)
    assert 0 < refused < 60


def test_commands_that_were_typed_together_are_together_however_long_python_takes(controller: Obedient) -> None:
    """The revert is obeyed long before the other command has loaded; that one was given before, and loses."""
    command = [sys.executable, "-m", "rayjobs.steer", "resume", "--folder", str(controller.folder.path)]
    with subprocess.Popen(["/bin/sh", "-c", 'read line; exec "$@"', "sh", *command],
                          stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as typed:  # fmt: skip
        assert steer(controller.folder, "revert") == 0
        told = typed.communicate("go\n", timeout=PATIENCE_S)[1]
    assert "a revert was given at the same time and wins" in told
    assert typed.returncode == 2
    assert present(controller.folder).override == "reverted"


@pytest.mark.parametrize(
    "orders",
    [
        ({"override": "paused"}, {"mode": "active"}),
        ({"mode": "canary"}, {"bundle": "/swapped"}),
        ({"bundle": "/swapped"}, {"canary_percent": 25.0}),
    ],
)
def test_sixty_orders_of_two_processes_are_both_kept(
    folder: SteerFolder, together: Together, orders: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    for number in range(60):
        assert together(folder, *orders) == ["", ""]
        kept = present(folder).model_dump()
        assert {**orders[0], **orders[1]}.items() <= kept.items(), number
        assert folder.orders.read().version == 3 * number + 2
        folder.order(override="", mode="shadow", bundle=None, canary_percent=None)


@pytest.mark.slow
@pytest.mark.parametrize("other", [("resume",), ("mode", "active"), ("pause",)])
def test_twenty_reverts_typed_together_with_another_command_are_all_kept(
    controller: Obedient, other: tuple[str, ...]
) -> None:
    for _ in range(20):
        controller.folder.order(override="", mode="shadow")
        commands = [[sys.executable, "-m", "rayjobs.steer", *words] for words in (("revert",), other)]
        running = [
            subprocess.Popen([*command, "--folder", str(controller.folder.path)], stderr=subprocess.PIPE, text=True)
            for command in commands
        ]
        revert, loser = [(one.communicate(timeout=PATIENCE_S)[1], one.returncode) for one in running]
        assert present(controller.folder).override == "reverted", (revert, loser)
        assert revert[1] == 0
        assert "in force now: reverted" in revert[0]
        # It was refused, or says truly what was in force when it was obeyed: before the revert, or under it.
        assert ("came after" in loser[0] or "wins" in loser[0], loser[1]) in ((True, 2), (False, 0)), loser


def test_the_status_shows_what_an_operator_needs(folder: SteerFolder, capsys: pytest.CaptureFixture[str]) -> None:
    folder.order(mode="canary", override="paused")
    table = {"compose": ["10.0.0.1:80", "10.0.0.2:80"]}
    change = {
        "time": 0.0, "source": "policy", "reason": "the policy's weights", "most": "compose/10.0.0.2:80",
        "share_before": 0.5, "share_now": 0.25,
    }  # fmt: skip
    folder.write_status(
        {
            "now_s": time.monotonic(), "data_end_s": time.time(), "usable": True, "mode": "shadow", "override": "",
            "canary_percent": 10.0, "source": "policy", "reason": "the policy's weights", "groups": table,
            "weights": [[3, 1]], "shares": [[0.75, 0.25]], "counted": [[30, 12]], "service_ms": None,
            "would": [[0.6, 0.4]], "guards": {"operator": 3},
            "alarms": ["recalibrate"], "changes": [change], "expected": "mean response time 0.85× that of least_conn",
        }
    )  # fmt: skip
    assert steer(folder, "status") == 0
    out = capsys.readouterr().out
    for shown in (
        "controller: not running", "orders: paused; mode: canary", "shadow: changes nothing", "s ago, on data of",
        "10.0.0.1:80  weight   3, share 75.0%, would set 60.0%; counted 30 of 42 requests",
        "expected: mean response time 0.85×",
        "ALARM recalibrate; answer: deepsched steer recalibrate", "operator: 3",
        "most, compose/10.0.0.2:80 from 50.0% to 25.0%",
    ):  # fmt: skip
        assert shown in out


@pytest.mark.parametrize(
    "heartbeat", ["{", "[]", "7", '{"now_s": 1.0, "boot": "another", "reason": "before the reboot"}']
)
def test_no_heartbeat_since_this_boot_is_none(
    folder: SteerFolder, heartbeat: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.path / "status.json").write_text(heartbeat)
    assert steer(folder, "status") == 0
    assert "last decision" not in capsys.readouterr().out


def test_orders_under_their_former_names_are_read_and_carried_over(folder: SteerFolder) -> None:
    (folder.path / "orders.json").write_text(json.dumps({"mode": "blend", "blend_percent": 25.0}))
    assert (present(folder).mode, present(folder).canary_percent) == ("canary", 25.0)
    folder.order(override="paused")
    kept: dict[str, Any] = json.loads((folder.path / "orders.json").read_text())
    assert (kept["version"], kept["mode"], kept["canary_percent"]) == (1, "canary", 25.0)


def test_names_of_version_0_1_are_read() -> None:
    recorded = SteeringOptions.model_validate({"mode": "blend", "blend_percent": 30.0})
    assert (recorded.mode, recorded.canary_percent) == ("canary", 30.0)
    given = load_options(SteerOptions, assignments=["bundle=b", "mode=blend", "blend_percent=40"])
    assert (given.mode, given.canary_percent) == ("canary", 40.0)
