"""The figures of the live page: shares, lateness, the gain, and repeats that are folded; nothing is made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayjobs.serve.figures import Measured, folded, group_figures, moves, point, regime_after
from rayjobs.serve.live import LiveView
from rayjobs.steer.metrics import MODES, SOURCES
from tests.support.steering_cases import DEADLINES_S, recorded
from tuning.steering.audit import read_lines
from tuning.steering.meanings import GUARD_MEANINGS, MODE_MEANINGS, SOURCE_MEANINGS
from tuning.steering.options import GUARDS

DEADLINES_MS = [1e3 * value for value in DEADLINES_S]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    recorded(path)
    found = [line for line in read_lines(path) if line["kind"] == "decision"]
    for line in found:
        line["in_force"] = line["weights"]
    return found


def test_shares_are_on_one_scale_and_late_is_what_the_histogram_says(lines: list[dict[str, Any]]) -> None:
    line = lines[-1]
    for group in group_figures(line, DEADLINES_MS, {}):
        for name in ("share", "policy_share", "baseline_share"):
            assert sum(server[name] for server in group["servers"]) == pytest.approx(1.0, abs=1e-3)
        late = [server["late_share"] * server["rate_rps"] for server in group["servers"] if server["rate_rps"]]
        assert group["late_share"] == pytest.approx(sum(late) / group["rate_rps"], abs=1e-3)
    shown = point(line, DEADLINES_MS)
    assert [len(shown["groups"]), len(shown["in_force"]), len(shown["policy"])] == [3, 3, 3]


def test_without_a_histogram_times_are_unknown_and_not_zero(lines: list[dict[str, Any]]) -> None:
    bare = {**lines[-1], "window": {**lines[-1]["window"], "bounds_ms": [], "histogram": [[[]] * 3] * 3}}
    for group in group_figures(bare, DEADLINES_MS, {}):
        assert (group["p50_ms"], group["p99_ms"], group["late_share"]) == (None, None, None)
        assert group["rate_rps"] > 0
    measured = Measured()
    measured.add(bare["window"], DEADLINES_MS)
    assert measured.to_json()["late_share"] is None
    assert measured.to_json()["mean_ms"] > 0


def test_alike_but_for_their_numbers_is_one_entry_with_a_count() -> None:
    def line(at: float, reason: str, *alarms: str, applied: bool = False) -> dict[str, Any]:
        return {
            "time": at, "source": "baseline", "reason": reason, "alarms": list(alarms), "change": applied,
            "applied": applied, "guards": ["stale"], "mode": "active",
        }  # fmt: skip

    found = folded([
        line(1.0, "no usable statistics for 10 s (gap)", "statistics missing", applied=True),
        line(2.0, "no usable statistics for 11 s (gap)", "statistics missing"),
        line(3.0, "the policy's weights", applied=True),
        line(4.0, "no usable statistics for 1.5 s (gap)", "statistics missing"),
        line(5.0, "nothing to see"),
    ])  # fmt: skip
    assert [(event["count"], event["changes"], event["first"], event["time"]) for event in found] == [
        (3, 1, 1.0, 4.0), (1, 1, 3.0, 3.0),
    ]  # fmt: skip
    assert found[0]["reason"] == "no usable statistics for 1.5 s (gap)"


def test_whose_control_a_window_saw() -> None:
    def after(mode: str, source: str, before: Any = "policy") -> str:
        return regime_after({"mode": mode, "source": source}, before)

    assert after("active", "policy", "baseline") == after("blend", "policy", "baseline") == "policy"
    assert after("active", "hold") == "policy"
    assert after("active", "hold", "baseline") == "baseline"
    assert after("active", "baseline") == after("shadow", "policy") == "baseline"


def test_what_was_measured_adds_up_to_the_record(tmp_path: Path) -> None:
    recorded(tmp_path / "audit.jsonl")
    view = LiveView(tmp_path)
    gain = view.history()["gain"]
    windows = [line["window"] for line in read_lines(tmp_path / "audit.jsonl") if line["kind"] == "decision"]
    measured = gain["measured"]
    assert measured["policy"]["windows"] + measured["baseline"]["windows"] == len(windows)
    assert measured["policy"]["requests"] + measured["baseline"]["requests"] == sum(
        int(np.sum(window["requests"])) for window in windows
    )
    assert measured["policy"]["mean_ms"] > 0
    assert gain["predicted"] is None


def test_moves_are_the_largest_first(lines: list[dict[str, Any]]) -> None:
    shadow = {**lines[-1], "in_force": [[100, 100, 100]] * 3}
    found = moves(group_figures(shadow, DEADLINES_MS, {}))
    sizes = [abs(move["to"] - move["from"]) for move in found]
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < len(found) <= 6
    same = {**lines[-1], "in_force": lines[-1]["policy"]}
    assert moves(group_figures(same, DEADLINES_MS, {})) == []


def test_every_guard_mode_and_source_is_explained() -> None:
    assert set(GUARDS) <= set(GUARD_MEANINGS)
    assert set(MODE_MEANINGS) == set(MODES)
    assert set(SOURCE_MEANINGS) == set(SOURCES)
