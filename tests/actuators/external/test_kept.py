"""What a restarted NGINX begins with is written together with what is in force, or neither is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actuators.errors import ConfigError
from actuators.external.kept import LAST_LINE, keeping


@pytest.mark.parametrize("text", ["rule fixed\n", None])
def test_a_folder_that_this_user_cannot_write_is_told_before_anything_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    keep = tmp_path / "s.conf.admission"
    keep.write_text("before")
    monkeypatch.setattr(os, "access", lambda *_: False)
    changed: list[str] = []
    with pytest.raises(ConfigError, match="this user cannot write in"), keeping(keep, str(keep), text):
        changed.append("in force")
    assert (changed, keep.read_text()) == ([], "before")


def test_a_text_is_kept_and_taken_away_with_its_change(tmp_path: Path) -> None:
    keep = tmp_path / "s.conf.admission"
    with keeping(keep, f"/elsewhere/{keep.name}", "rule fixed\n"):
        assert not keep.exists()
    assert keep.read_text() == f"rule fixed\n{LAST_LINE}"
    with pytest.raises(RuntimeError), keeping(keep, str(keep), None):
        raise RuntimeError("the change failed")
    assert keep.exists()
    with keeping(keep, str(keep), None):
        pass
    assert not keep.exists()
