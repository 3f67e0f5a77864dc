"""Calibration: known simulated systems are recovered from their windows; the twin behaves like them.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.topology import social_network
from actuators.contract.window import Fault
from actuators.errors import ConfigError, DataError
from actuators.statistics.recording import from_json
from envs.calibration.arrivals import dispersion, nearest_distribution, rate_steps
from envs.calibration.calibrate import calibrate, windows_topology
from envs.calibration.options import CalibrateOptions
from envs.calibration.replay import gather
from envs.calibration.result import Calibration
from envs.scenarios.calibrated import calibrated, read_calibrated
from envs.scenarios.catalogue import randomised
from envs.scenarios.lookup import scenario
from envs.simulator.testbed import SimulatedTestbed, SimulationOptions
from tests.support.windows import window

TOPOLOGY = social_network()
OVERHEAD_MS = 1.5
OPTIONS = CalibrateOptions(workers=4, replicas=2, bootstraps=4, rounds=4)


@cache
def truth() -> np.ndarray:
    """Service times in ms of the system below, ``[groups, servers]``."""
    script = scenario("demo").script(TOPOLOGY, 1)
    return np.array(script.mean_service_s)[:, None] * 1e3 / np.array([s.speeds for s in script.servers]).T


@cache
def calibration() -> Calibration:
    """From 20 s of the demo scenario."""
    with SimulatedTestbed(TOPOLOGY, options=SimulationOptions(overhead_ms=OVERHEAD_MS)) as testbed:
        testbed.reset(scenario("demo"), 3)
        windows = [testbed.advance(0.5) for _ in range(40)]
    return calibrate(windows, TOPOLOGY, OPTIONS, seed=1, source="a simulated system")


def test_service_times_cv_and_overhead_are_recovered() -> None:
    found = calibration().parameters
    assert found.service_array_ms == pytest.approx(truth(), rel=0.2)
    assert found.service_cv == pytest.approx(1.0, abs=0.25)
    assert found.overhead_ms == pytest.approx(OVERHEAD_MS, abs=0.5)
    assert [arrivals.distribution for arrivals in calibration().arrivals] == ["exponential"] * 3


def test_the_uncertainty_holds_the_best_fit_and_is_not_nothing() -> None:
    low, high = calibration().interval()
    width = high["service_ms"] - low["service_ms"]
    assert (width > 0).all()
    assert (width < 0.5 * truth()).all()
    assert len(calibration().ensemble) == OPTIONS.bootstraps


def test_held_out_windows_are_compared_per_group_and_server() -> None:
    rows = calibration().held_out
    assert [(row.group, row.server) for row in rows][:2] == [
        ("compose_backend", ""),
        ("compose_backend", "server-1:80"),
    ]
    assert len(rows) == 12
    for row in rows:
        if not row.server and row.requests > 1000:
            mean, p50, _ = row.errors()
            assert abs(mean) < 0.2
            assert abs(p50) < 0.2


def test_the_file_holds_everything(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibration().save(path)
    assert Calibration.load(path) == calibration()
    broken = json.loads(path.read_text())
    broken["parameters"]["service_ms"].pop()
    path.write_text(json.dumps(broken))
    with pytest.raises(ConfigError, match="tables do not fit"):
        Calibration.load(path)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="not a calibration"):
        Calibration.load(path)


def test_the_twin_answers_as_fast_as_the_system(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibration().save(path)
    means = []
    twin = scenario(str(path), duration_s=40.0)
    for played, given in ((scenario("demo"), SimulationOptions(overhead_ms=OVERHEAD_MS)), (twin, None)):
        with SimulatedTestbed(TOPOLOGY, options=given) as testbed:
            testbed.reset(played, 7)
            seen = testbed.advance(30.0)
            means.append(seen.response_ms_sum.sum(axis=1) / seen.requests.sum(axis=1))
    assert means[1] == pytest.approx(means[0], rel=0.2)
    assert twin.script(TOPOLOGY, 7).overhead_s == pytest.approx(calibration().parameters.overhead_ms / 1e3)


def test_randomised_twins_draw_from_the_ensemble() -> None:
    variant = randomised(calibrated(calibration()), duration_s=50.0)
    scripts = [variant.script(TOPOLOGY, seed) for seed in range(20)]
    assert variant.script(TOPOLOGY, 3) == scripts[3]
    drawn = {script.service_cv for script in scripts} | {member.service_cv for member in calibration().ensemble}
    assert drawn == {member.service_cv for member in calibration().ensemble}
    rates = [script.streams[0].steps[0].rate_rps for script in scripts]
    assert np.std(rates) / np.mean(rates) > 0.03
    assert len({script.servers[0].speeds for script in scripts}) > 4
    for script in scripts:
        starts = [step.start_s for step in script.streams[0].steps]
        assert starts[0] == 0.0
        assert starts == sorted(starts)
        assert starts[-1] < 50.0


def test_a_twin_fits_its_own_shape_only() -> None:
    with pytest.raises(ConfigError, match="3 groups and 2 servers"):
        calibrated(calibration()).script(social_network(("a:1", "b:2")), 1)


def test_what_is_no_calibration_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_calibrated(tmp_path / "calibration.json")


def test_windows_without_numbers_are_not_fitted() -> None:
    good = [window(start_s=float(i), seed=i) for i in range(20)]
    bad = [replace(w, faults=(Fault("gap", "nothing read"),)) for w in good[:5]]
    evidence = gather([*good, *bad], TOPOLOGY)
    assert (len(evidence.windows), evidence.left_out) == (20, 5)
    with pytest.raises(DataError, match="11 usable windows"):
        gather(good[:11], TOPOLOGY)
    with pytest.raises(DataError, match="is usable and has a histogram"):
        gather(bad, TOPOLOGY)
    silent = [replace(w, requests=w.requests * np.array([[1], [0], [1]])) for w in good]
    with pytest.raises(DataError, match="home_read_backend"):
        gather(silent, TOPOLOGY)


def test_the_dispersion_tells_the_kind_of_gaps() -> None:
    generator = np.random.default_rng(1)
    seconds = np.ones(300)
    poisson = generator.poisson(np.repeat([50.0, 200.0, 80.0], 100)).astype(float)
    assert dispersion(poisson, seconds) == pytest.approx(1.0, abs=0.25)
    assert nearest_distribution(dispersion(np.full(300, 50.0), seconds)) == "fixed"
    lumpy = 30.0 * generator.poisson(10.0, 300)
    assert nearest_distribution(dispersion(lumpy, seconds)) == "zipf"


def test_rates_change_where_counts_do() -> None:
    generator = np.random.default_rng(2)
    counts = generator.poisson(np.repeat([50.0, 200.0], 7)).astype(float)
    steps = rate_steps(counts, np.ones(14))
    assert [start_s for start_s, _ in steps] == [0.0, 7.0]
    assert [rate for _, rate in steps] == pytest.approx([50.0, 200.0], rel=0.15)
    long = rate_steps(np.full(40, 50.0), np.full(40, 0.5))
    assert long == ((0.0, 100.0), (10.0, 100.0))


def test_topology_comes_from_groups_with_traffic() -> None:
    def server(requests: int) -> dict[str, object]:
        return {"requestCounter": requests, "responses": {"2xx": requests}, "inBytes": 0, "outBytes": 0, "weight": 1}

    line = {
        "home_read_backend": {"a:1": server(5), "b:1": server(0)},
        "search": {"c:1": server(3)},
        "idle": {"d:1": server(0)},
    }
    found = windows_topology([from_json(line)])
    assert [group.name for group in found.groups] == ["home_read_backend", "search"]
    assert found.request_types == ("home_read", "search")
    assert found.servers == ("a:1", "b:1", "c:1")
    del line["search"], line["home_read_backend"]
    with pytest.raises(DataError, match="no upstream group"):
        windows_topology([from_json(line)])
