"""What an onboarding keeps: goes on where it ended, begins again where options differ, is for its owner only."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from actuators.errors import ConfigError, DataError
from rayjobs.onboard.kept import STEPS, Kept


def options(**changes: Any) -> dict[str, dict[str, Any]]:
    """Step → options, with changes as STEP__NAME."""
    found: dict[str, dict[str, Any]] = {step: {"number": 1} for step in STEPS}
    for name, value in changes.items():
        step, _, option = name.partition("__")
        found[step][option] = value
    return found


def filled(folder: Path) -> Kept:
    kept = Kept(folder, options())
    for step in STEPS:
        kept.keep(step, {"of": step})
    return kept


def test_a_second_call_has_everything(tmp_path: Path) -> None:
    filled(tmp_path / "new")
    again = Kept(tmp_path / "new", options())
    with again.locked():
        assert [again.result(step) for step in STEPS] == [{"of": step} for step in STEPS]
    assert again.restarted == ""


def test_other_options_begin_again_at_their_step_and_say_so(tmp_path: Path) -> None:
    filled(tmp_path / "new")
    again = Kept(tmp_path / "new", options(fit__number=2))
    with again.locked():
        assert [step for step in STEPS if again.result(step)] == ["preflight", "watch"]
    assert again.restarted == "number was 1 and is 2: begins again at 'fit'"


def test_another_system_is_refused_and_nothing_is_forgotten(tmp_path: Path) -> None:
    filled(tmp_path / "new")
    other = Kept(tmp_path / "new", options(preflight__number=2))
    with pytest.raises(ConfigError, match="another system: number was 1, now 2"), other.locked():
        pass
    assert Kept(tmp_path / "new", options()).result("judge") is not None


def test_every_difference_is_named_also_in_groups_of_options(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "new", options(fit__calibrate={"deadlines_ms": {}, "workers": 2, "rounds": 3}))
    for step in STEPS:
        kept.keep(step, {"of": step})
    fit = {"deadlines_ms": {"app": 50.0}, "workers": None, "rounds": 3}
    again = Kept(tmp_path / "new", options(fit__calibrate=fit, fit__number=5, judge__number=6))
    with again.locked():
        assert [step for step in STEPS if again.result(step)] == ["preflight", "watch"]
    assert again.restarted == (
        "number was 1 and is 5, calibrate.deadlines_ms.app was not given and is 50.0, calibrate.workers was 2 and is"
        " not given, number was 1 and is 6: begins again at 'fit'"
    )


def test_every_difference_to_another_system_is_named(tmp_path: Path) -> None:
    filled(tmp_path / "new")
    other = Kept(tmp_path / "new", options(preflight__number=2, preflight__groups=["app"], fit__number=2))
    words = "another system: number was 1, now 2; groups was not given, now app"
    with pytest.raises(ConfigError, match=words), other.locked():
        pass


def test_the_folder_is_private_and_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    kept = filled(tmp_path / "new")
    for path in (kept.folder, kept.place):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    (theirs / "letter").touch()
    with pytest.raises(ConfigError, match="holds other files, as letter"):
        Kept(theirs, options())
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o755


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    kept = filled(tmp_path / "new")
    (kept.place / "fit.json").write_text('{"options": {')
    with pytest.raises(DataError, match=r"not a step of an onboarding.*fit\.json"), kept.locked():
        pass


def test_one_at_a_time(tmp_path: Path) -> None:
    first, second = filled(tmp_path / "new"), Kept(tmp_path / "new", options())
    with first.locked(), pytest.raises(ConfigError, match="another onboarding is running"), second.locked():
        pass
    other = Kept(tmp_path / "new", options(watch__number=2))
    with first.locked(), pytest.raises(ConfigError, match="another onboarding is running"), other.locked():
        pass
    with second.locked():
        assert second.result("judge") is not None
