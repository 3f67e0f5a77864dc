"""Whether a calibration counts as faithful, and what the verb says of it."""

from __future__ import annotations

from pathlib import Path

from envs.calibration.result import Calibration, HeldOutComparison
from rayjobs.calibrate import verdict

CALIBRATION = Calibration.load(Path("tests/data/runs/calibration.json"))


def compared(*groups: str, simulated_ms: float = 10.0) -> Calibration:
    """The calibration with these rows: 100 held-out requests each, in the mean 10 ms live."""
    live, ours = (10.0, 8.0, 30.0), (simulated_ms, 8.0, 30.0)
    rows = (HeldOutComparison(group=name, server="", requests=100, live_ms=live, simulated_ms=ours) for name in groups)
    return CALIBRATION.changed({"held_out": tuple(rows)})


def test_every_group_must_have_been_compared() -> None:
    one, *_, last = CALIBRATION.groups
    whole = compared(*CALIBRATION.groups)
    assert whole.faithful
    assert whole.uncompared == ()
    assert verdict(whole).startswith("the simulator passes: ")
    assert not compared().faithful
    assert compared().uncompared == CALIBRATION.groups
    part = compared(*CALIBRATION.groups[:-1])
    assert not part.faithful
    assert verdict(part).startswith(f"too few held-out requests to tell ({last}): ")
    wrong = compared(one, simulated_ms=12.0)
    assert not wrong.faithful
    assert verdict(wrong).startswith("the simulator does not pass: ")


def test_rows_of_single_servers_are_no_comparison_of_a_group() -> None:
    servers = tuple(row for row in CALIBRATION.held_out if row.server)
    assert servers
    assert CALIBRATION.changed({"held_out": servers}).uncompared == CALIBRATION.groups
