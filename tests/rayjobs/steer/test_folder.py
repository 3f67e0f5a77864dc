"""The folder of a controller: the owner's service can use its files after commands of another user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actuators.errors import ConfigError
from rayjobs.steer.folder import SteerFolder
from tests.support.steering_cases import EQUAL
from tuning.steering.audit import append_line

OWNER = 65534


def test_a_folder_that_cannot_be_written_is_told_with_its_option(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="choose another with --folder"):
        SteerFolder(tmp_path / "file" / "below").make()


def test_files_of_root_belong_to_the_owner_of_the_folder(tmp_path: Path, root_only: None) -> None:
    os.chown(tmp_path, OWNER, OWNER)
    folder = SteerFolder(tmp_path)
    with folder.locked():
        folder.first.keep(EQUAL, None)
        folder.order(mode="shadow")
        append_line(folder.audit, {"kind": "start"})
        folder.write_status({"now_s": 0.0})
    owners = {path.name: path.stat().st_uid for path in tmp_path.iterdir()}
    assert {"lock", "orders.json", "original.json", "audit.jsonl", "status.json"} <= owners.keys()
    assert set(owners.values()) == {OWNER}
