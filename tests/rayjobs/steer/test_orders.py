"""Orders of an operator: written to the folder, read by the controller; the names of version 0.1 are read as well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayjobs.cli.config import load_options
from rayjobs.cli.main import main
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.options import SteerOptions
from tests.support.steering_cases import EQUAL
from tuning.steering.options import SteeringOptions


@pytest.fixture
def folder(tmp_path: Path) -> SteerFolder:
    """A folder that a controller has used."""
    used = SteerFolder(tmp_path)
    used.adopt(EQUAL, None)
    return used


@pytest.mark.parametrize(
    ("words", "orders"),
    [
        (["pause"], {"override": "paused"}),
        (["revert"], {"override": "reverted"}),
        (["mode", "active"], {"mode": "active"}),
        (["mode", "canary"], {"mode": "canary"}),
        (["mode", "blend"], {"mode": "canary"}),
    ],
)
def test_an_order_is_written(
    words: list[str], orders: dict[str, str], folder: SteerFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["steer", *words, "--folder", str(folder.path)]) == 0
    assert capsys.readouterr().err == "deepsched steer: order written; no controller is running\n"
    assert {name: getattr(folder.orders(), name) for name in orders} == orders
    assert main(["steer", "resume", "--folder", str(folder.path)]) == 0
    assert folder.orders().override == ""


def test_an_order_to_a_running_controller_says_when_it_is_applied(
    folder: SteerFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with folder.locked():
        assert main(["steer", "pause", "--folder", str(folder.path)]) == 0
    assert "the controller applies it within one interval" in capsys.readouterr().err


def test_the_status_shows_orders_and_the_last_decision(folder: SteerFolder, capsys: pytest.CaptureFixture[str]) -> None:
    folder.order(mode="canary", override="paused")
    folder.write_status({"now_s": 0.0, "reason": "paused by the operator", "guards": {"operator": 3}})
    assert main(["steer", "status", "--folder", str(folder.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["controller: not running", "orders: paused; mode: canary"]
    assert lines[2].endswith("paused by the operator")
    assert lines[3] == "  operator: 3"


def test_names_of_version_0_1_are_read(folder: SteerFolder) -> None:
    orders = {"override": "", "mode": "blend", "blend_percent": 25.0, "bundle": None}
    (folder.path / "orders.json").write_text(json.dumps(orders))
    assert (folder.orders().mode, folder.orders().canary_percent) == ("canary", 25.0)
    recorded = SteeringOptions.model_validate({"mode": "blend", "blend_percent": 30.0})
    assert (recorded.mode, recorded.canary_percent) == ("canary", 30.0)
    given = load_options(SteerOptions, assignments=["bundle=b", "mode=blend", "blend_percent=40"])
    assert (given.mode, given.canary_percent) == ("canary", 40.0)
