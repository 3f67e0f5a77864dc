"""The gaps between sends: how even the engine kept them, and the busy-wait that it chooses for fixed ones."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.script import ArrivalDistribution, RateStep, Stream
from actuators.contract.topology import Group, Topology
from actuators.load.engine import LoadEngine, LoadOptions
from actuators.load.summary import LoadSummary
from tests.support.http_server import ScriptedServer

TOPOLOGY = Topology((Group("all", "read", "GET", "/", 2.0, ("server:80",)),))
RATE_RPS, DURATION_S = 200.0, 1.0


def run(folder: Path, distribution: ArrivalDistribution, spin_us: float = 0.0) -> tuple[LoadEngine, LoadSummary]:
    with ScriptedServer() as server, LoadEngine(LoadOptions(spin_us=spin_us), folder) as engine:
        streams = [Stream("read", (RateStep(0.0, RATE_RPS, distribution),))]
        extra = {"requests-csv": str(folder / "requests.csv")}
        engine.start(server.address, TOPOLOGY, streams, seed=1, duration_s=DURATION_S, extra=extra)
        return engine, engine.finish(30.0)


def test_the_error_of_the_gaps_is_their_variation_where_they_are_fixed(tmp_path: Path) -> None:
    _, summary = run(tmp_path, "fixed")
    with open(tmp_path / "requests.csv", newline="", encoding="utf-8") as file:
        sent_s = np.sort([int(row["sent_ns"]) / 1e9 for row in csv.DictReader(file)])
    gaps_s = np.diff(sent_s)
    # The engine takes the run's length for that of its gaps.
    assert summary.gap_error == pytest.approx(gaps_s.std() / gaps_s.mean(), rel=0.1, abs=1e-4)


def test_the_busy_wait_is_as_given_and_else_chosen_for_fixed_gaps_only(tmp_path: Path) -> None:
    engine, _ = run(tmp_path, "exponential")
    assert (engine.spin_us, engine.wake_late_us) == (0.0, 0.0)
    engine, _ = run(tmp_path, "exponential", 30.0)
    assert (engine.spin_us, engine.wake_late_us) == (30.0, 0.0)
    engine, _ = run(tmp_path, "fixed")
    assert engine.wake_late_us > 0
    assert 0 <= engine.spin_us <= 0.25 * 1e6 / RATE_RPS


def test_parts_of_one_rate_have_one_error_together(tmp_path: Path) -> None:
    _, summary = run(tmp_path, "fixed")
    assert (summary + summary).gap_error == pytest.approx(summary.gap_error)
    assert (LoadSummary.empty(("read",)) + summary).gap_error == pytest.approx(summary.gap_error)
