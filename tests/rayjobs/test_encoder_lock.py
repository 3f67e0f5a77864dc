"""Two changes of one bundle at a time: the second is told, and nothing is undone in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from actuators.files import exclusive
from rayjobs.cli.main import main
from tests.support.steering_cases import trained_bundle


@pytest.mark.parametrize("words", [["rollback"], ["recalibrate", "--snapshots", "recording.json"]])
def test_a_second_change_of_one_bundle_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_bundle().save(tmp_path / "bundle")
    (tmp_path / "link").symlink_to(tmp_path / "bundle")
    command, *more = words
    for name in ("bundle", "link"):
        with exclusive(tmp_path / ".bundle.lock", 0.0):
            assert main(["encoder", command, str(tmp_path / name), *more]) == 2
        assert "another process recalibrates this or rolls it back" in capsys.readouterr().err
    assert main(["encoder", command, str(tmp_path / "bundle"), *more]) == 2
    assert "another process" not in capsys.readouterr().err
