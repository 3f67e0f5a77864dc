"""What the live page is fed with: every line of the record once, whoever asks, and whatever the clock does."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rayjobs.serve.live import LiveView
from rayjobs.steer.folder import SteerFolder
from tests.support.steering_cases import recorded
from tuning.steering.audit import AuditOptions


def test_threads_that_ask_at_once_take_every_line_once(tmp_path: Path) -> None:
    """The page's stream, its history and Prometheus ask from threads of their own."""
    recorded(tmp_path / "audit.jsonl")
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            view = LiveView(tmp_path)
            with ThreadPoolExecutor(8) as threads:
                for asked in [threads.submit(view.now) for _ in range(8)]:
                    asked.result()
            times = [point["time"] for point in view.history()["points"]]
            assert view.version == len(times) == 25
            assert times == sorted(times)
    finally:
        sys.setswitchinterval(before)


def test_a_file_put_aside_costs_no_line_that_was_seen(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    recorded(path, 5)
    view = LiveView(tmp_path)
    assert view.now()["version"] == 5
    path.rename(tmp_path / "audit.jsonl.1")
    recorded(path, 3, AuditOptions())
    assert view.now()["version"] == 8
    assert len(view.history()["points"]) == 8


def test_a_clock_that_is_put_back_or_forth_leaves_the_latest_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "audit.jsonl", time.time
    recorded(path, 4)
    view = LiveView(tmp_path)
    assert len(view.history()["points"]) == 4
    for offset_s in (-86_400.0, 86_400.0):
        monkeypatch.setattr("time.time", lambda offset_s=offset_s: real() + offset_s)
        path.unlink()
        recorded(path, 3)
        view.now()
        assert len(view.history()["points"]) == 3


def test_the_bundle_that_acts_is_the_one_of_the_latest_order(tmp_path: Path) -> None:
    recorded(tmp_path / "audit.jsonl", 2)
    view, folder = LiveView(tmp_path), SteerFolder(tmp_path)
    first = view.history()["gain"]["bundle"]
    folder.write_status({"bundle": None})
    assert view.history()["gain"]["bundle"] == first
    folder.write_status({"bundle": "/srv/bundles/second"})
    assert view.history()["gain"]["bundle"] == "/srv/bundles/second"


def test_no_controller_is_no_error(tmp_path: Path) -> None:
    now = LiveView(tmp_path / "nowhere").now()
    assert (now["version"], now["alive"]) == (0, False)
