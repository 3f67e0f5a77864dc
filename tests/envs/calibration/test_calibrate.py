"""Calibration: known simulated systems are recovered from their windows; the twin behaves like them.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import Weights
from actuators.contract.script import Script
from actuators.contract.topology import Topology, group_of, social_network
from actuators.contract.window import Fault
from actuators.errors import ConfigError, DataError
from actuators.statistics.recording import SnapshotWriter, from_json, read_snapshots
from actuators.statistics.vts import parse
from envs.calibration.arrivals import dispersion, nearest_distribution, rate_steps
from envs.calibration.calibrate import Recorded, calibrate, windows_topology
from envs.calibration.options import CalibrateOptions
from envs.calibration.replay import gather, within_limits
from envs.calibration.result import Calibration
from envs.scenarios.calibrated import Today, calibrated, read_calibrated, server_order
from envs.scenarios.catalogue import randomised
from envs.scenarios.lookup import scenario, topology_of
from envs.simulator.testbed import SimulatedTestbed, SimulationOptions
from tests.support.own_systems import SYSTEMS, OwnLoad
from tests.support.vts_documents import A, document, entry
from tests.support.windows import window

pytestmark = pytest.mark.thorough

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
    assert found.service_distribution == "lognormal"
    assert [arrivals.distribution for arrivals in calibration().arrivals] == ["exponential"] * 3


def test_exponential_service_times_are_told_from_lognormal_ones() -> None:
    """Many of them are very short: a lognormal distribution would have to be wide for that, with a tail too long."""

    class Exponential:
        name, duration_s = "exponential", 30.0

        def script(self, topology: Topology, seed: int) -> Script:
            script = scenario("demo", duration_s=self.duration_s).script(topology, seed)
            return replace(script, service_distribution="exponential")

    with SimulatedTestbed(TOPOLOGY) as testbed:
        testbed.reset(Exponential(), 3)
        windows = [testbed.advance(0.5) for _ in range(40)]
    found = calibrate(windows, TOPOLOGY, OPTIONS.changed({"bootstraps": 2, "rounds": 3}), seed=1, source="simulated")
    assert found.parameters.service_distribution == "exponential"
    assert found.parameters.service_array_ms == pytest.approx(truth(), rel=0.2)


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
    os.mkfifo(tmp_path / "calibration.json")  # whose reader would wait for ever
    with pytest.raises(ConfigError, match="not a regular file"):
        read_calibrated(tmp_path / "calibration.json")


def test_windows_without_numbers_are_not_fitted() -> None:
    good = [window(start_s=float(i), seed=i) for i in range(20)]
    bad = [replace(w, faults=(Fault("gap", "nothing read"),)) for w in good[:5]]
    evidence = gather([*good, *bad], TOPOLOGY)
    assert (len(evidence.windows), evidence.left_out) == (20, 5)
    with pytest.raises(DataError, match="11 usable windows"):
        gather(good[:11], TOPOLOGY)
    with pytest.raises(DataError, match=r"5 of 5 windows cannot be used: nothing read .*clock goes on"):
        gather(bad, TOPOLOGY)
    gone = [replace(w, faults=(Fault("missing_server", "it is gone", "home", "b:1"),)) for w in good]
    with pytest.raises(DataError, match=r"20 of 20 windows cannot be used: it is gone \(server b:1 in group home\)"):
        gather(gone, TOPOLOGY)
    plain = [replace(w, bounds_ms=(), latency_histogram=w.latency_histogram[..., :1]) for w in good]
    with pytest.raises(DataError, match="none of 20 usable windows has a histogram"):
        gather(plain, TOPOLOGY)
    with pytest.raises(DataError, match="one reading makes no window"):
        gather([], TOPOLOGY)
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


def server(requests: int, **more: object) -> dict[str, object]:
    counts = {"requestCounter": requests, "responses": {"2xx": requests}, "inBytes": 0, "outBytes": 0, "weight": 1}
    return counts | more


def recorded(*lines: dict[str, object], chosen: tuple[str, ...] = ()) -> Recorded:
    return windows_topology([from_json(line) for line in lines], chosen)


def test_topology_comes_from_groups_with_traffic_while_recording() -> None:
    first = {
        "home_read_backend": {"a:1": server(5), "b:1": server(0)},
        "2nd.search": {"c:1": server(3)},
        "silent": {"d:1": server(9)},
        "pseudo": {"pseudo": server(4, weight=0), "e:1": server(0)},
    }
    later = {
        "home_read_backend": {"a:1": server(7), "b:1": server(0), "z:1": server(0, weight=0)},
        "2nd.search": {"c:1": server(4)},
        "silent": {"d:1": server(9)},
        "pseudo": {"pseudo": server(8, weight=0), "e:1": server(0)},
    }
    found = recorded(first, later)
    assert [group.name for group in found.topology.groups] == ["home_read_backend", "2nd.search"]
    assert found.topology.request_types == ("home_read", "2nd.search")
    assert found.topology.servers == ("a:1", "b:1", "c:1")
    assert found.left_out == {"silent": "had no requests", "pseudo": "had no requests"}
    with pytest.raises(DataError, match=r"nothing to learn from: home_read_backend had no requests; 2nd.search had"):
        recorded(later, later)


def test_a_group_of_a_file_that_lists_a_server_twice_is_left_out(tmp_path: Path) -> None:
    """Its counters are those of both lines, and so is each of its weights."""
    name = "home_read_backend"
    with SnapshotWriter(tmp_path / "x.json") as writer:
        for document_name in ("before_load", "after_load"):
            doc = document(document_name)
            doc["upstreamZones"][name].append({**entry(doc, name, A), "weight": 3})
            writer.write(parse(doc))
    found = read_snapshots(tmp_path / "x.json").snapshots
    assert windows_topology(found).left_out == {name: f"lists {A} more than once"}
    with pytest.raises(ConfigError, match="more than once"):
        windows_topology(found, [name])


def test_chosen_groups_only() -> None:
    first, later = (
        {"app": {"a:1": server(n)}, "other": {"b:1": server(n)}, "idle": {"c:1": server(1)}} for n in (1, 9)
    )
    assert [group.name for group in recorded(first, later, chosen=("other",)).topology.groups] == ["other"]
    with pytest.raises(ConfigError, match=r"no group 'othr' in the recording.*did you mean 'other'"):
        recorded(first, later, chosen=("othr",))
    with pytest.raises(ConfigError, match="group idle had no requests"):
        recorded(first, later, chosen=("app", "idle"))


def test_every_request_type_is_of_one_group() -> None:
    first, later = ({"compose": {"a:1": server(n)}, "compose_backend": {"b:1": server(n)}} for n in (1, 9))
    assert recorded(first, later).topology.request_types == ("compose", "compose_backend")


def test_weights_and_deadlines_of_the_recording_are_kept() -> None:
    found = calibration()
    assert found.topology == TOPOLOGY
    assert found.today == Weights.equal(TOPOLOGY)
    deadlines_s = found.deadlines_s
    assert deadlines_s is not None
    for times, deadline_s in zip(found.response_times, deadlines_s, strict=True):
        assert deadline_s * 1e3 == pytest.approx(times.mean_ms + 1.5 * times.deviation_ms)
        assert times.requests > 200
    assert calibrated(found).today == Today("least_conn", Weights.equal(TOPOLOGY))


def test_options_override_deadlines_and_priorities() -> None:
    good = [window(start_s=float(i), seed=i) for i in range(20)]
    given = {"priorities": {"compose_backend": 4.0}, "deadlines_ms": {"home_read_backend": 77.0}}
    options = OPTIONS.model_copy(update={**given, "rounds": 1, "bootstraps": 2, "replicas": 1})
    found = calibrate(good, TOPOLOGY, options, seed=1)
    assert found.priorities == (4.0, 2.0, 2.0)
    assert found.response_times[1].deadline_ms == 77.0
    first = found.response_times[0]
    assert first.deadline_ms == pytest.approx(first.mean_ms + 1.25 * first.deviation_ms)
    wrong = options.model_copy(update={"deadlines_ms": {"home_red_backend": 77.0}})
    with pytest.raises(ConfigError, match="did you mean 'home_read_backend'"):
        calibrate(good, TOPOLOGY, wrong, seed=1)


def test_weights_beyond_what_we_set_keep_their_proportions() -> None:
    weight = np.array([[1000, 500, 1], [7, 100, 0], [1, 2, 3]])
    found = within_limits(weight, TOPOLOGY)
    assert found.tolist() == [[100, 50, 1], [7, 100, 1], [1, 2, 3]]


def test_files_of_version_1_are_read(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibration().save(path)
    old = json.loads(path.read_text()) | {"format_version": 1}
    for name in ("members", "priorities", "response_times", "weights", "down"):
        del old[name]
    path.write_text(json.dumps(old))
    found = Calibration.load(path)
    assert found.topology == TOPOLOGY
    assert found.today == Weights.equal(TOPOLOGY)
    assert found.deadlines_s is None


def test_groups_that_share_no_server_can_be_taken_alone() -> None:
    topology = SYSTEMS["2x5"]
    with SimulatedTestbed(topology) as testbed:
        testbed.reset(OwnLoad(), 3)
        windows = [testbed.advance(0.5) for _ in range(20)]
    quick = OPTIONS.model_copy(update={"workers": 2, "bootstraps": 2, "replicas": 1, "rounds": 1})
    whole = calibrate(windows, topology, quick, seed=1)
    part = whole.of_groups(("api",))
    assert part.topology == Topology(topology.groups[1:])
    assert part.parameters.service_array_ms.tolist() == whole.parameters.service_array_ms[1:, 5:].tolist()
    assert len(calibrated(part).script(part.topology, 1).servers) == 5
    with pytest.raises(ConfigError, match="group home_read_backend shares server server-1:80"):
        calibration().of_groups(("compose_backend",))


def test_servers_change_places_only_with_those_of_the_same_groups() -> None:
    topology = SYSTEMS["4x3 shared"]
    generator = np.random.default_rng(1)
    for _ in range(20):
        order = server_order(topology, generator)
        assert sorted(order) == list(range(topology.shape[1]))
        assert (topology.mask[:, order] == topology.mask).all()


def test_one_run_is_of_one_system() -> None:
    twin = calibrated(calibration())
    assert topology_of([scenario("S4"), twin]) == TOPOLOGY
    other = calibration().changed({"groups": ("a", "b", "c"), "request_types": ("a", "b", "c")})
    with pytest.raises(ConfigError, match="calibrated and other are of different systems"):
        topology_of([twin, calibrated(other, "other")])


def test_more_traffic_is_more_traffic() -> None:
    twin = calibrated(calibration())
    first, more = (replace(twin, load_factor=f).script(TOPOLOGY, 1).streams[0].steps[0].rate_rps for f in (1.0, 1.5))
    assert more == pytest.approx(1.5 * first)


def test_a_busy_system_with_few_readings_is_calibrated() -> None:
    """1000 requests/s of 0.9 s each: nine hundred of them are in flight."""
    line = Topology((group_of("app", ("10.0.0.1:80",)),))
    bounds_ms = (100, 250, 500, 1000)
    one = np.full((1, 1), 1000)
    windows = [
        replace(
            window(topology=line), start_s=float(i), end_s=i + 1.0, requests=one, response_ms_sum=900 * one,
            bounds_ms=bounds_ms, latency_histogram=np.array([[[0, 0, 0, 1000, 0]]]), faults=(),
        )
        for i in range(12)
    ]  # fmt: skip
    found = calibrate(windows, line, CalibrateOptions(replicas=1, bootstraps=2, rounds=1), seed=1)
    assert found.observed.requests == 12_000
    assert found.parameters.workers > 64
