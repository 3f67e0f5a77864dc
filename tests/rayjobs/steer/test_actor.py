"""The controller as a Ray actor: one per folder, and only the command that started it ends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayjobs.cli.main import main
from rayjobs.steer.options import SteerOptions
from tests.support.waiting import PATIENCE_S

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray")]


def test_a_second_controller_of_a_folder_is_refused_and_the_first_one_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    from rayjobs.steer.actor import start_actor

    folder = tmp_path / "steer"
    first = start_actor(SteerOptions(bundle=tmp_path / "bundle", folder=folder, actor=True))
    try:
        process = ray.get(first.ping.remote(), timeout=PATIENCE_S)
        words = ["steer", "run", "--actor", "--bundle", str(tmp_path / "bundle"), "--folder", str(folder)]
        assert main(words) == 2
        told = capsys.readouterr().err
        assert f"another controller is running ({folder})" in told
        assert told.count("\n") == 1
        assert ray.get(first.ping.remote(), timeout=PATIENCE_S) == process
    finally:
        ray.kill(first)


def test_what_the_controller_raises_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["steer", "run", "--actor", "--bundle", str(tmp_path / "none"), "--folder", str(tmp_path / "steer")]
    assert main(words) == 2
    told = capsys.readouterr().err.splitlines()
    assert "not a bundle" in told[-1]
    assert len(told) == 2, "after the line that the actor runs"
