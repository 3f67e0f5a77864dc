"""Weights for an NGINX without Lua: plans from service times, their files, what they are worth where that is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import CappedWeights
from actuators.contract.stock import StockPlan
from actuators.contract.topology import Group, Topology, social_network
from actuators.errors import ConfigError, DataError
from envs.calibration.result import Calibration
from envs.scenarios.calibrated import calibrated
from envs.scenarios.lookup import scenario
from envs.simulator.batch import SimulatedBatch
from envs.study.stock import CAPPED, LUA, PER_TYPE, SHARED, plans_of, ratio_of, suggest, today_rule, upstream_lines

TOPOLOGY = social_network()


def test_plans_follow_the_service_times() -> None:
    plans = plans_of(scenario("S2b").script(TOPOLOGY, 1), TOPOLOGY)
    assert set(plans) == {PER_TYPE, SHARED, CAPPED}
    assert plans[PER_TYPE].weights == plans[SHARED].weights == ((100, 62, 25),) * 3
    assert (plans[SHARED].max_conns, plans[CAPPED].max_conns) == ((), (0, 0, 2))
    equal = plans_of(scenario("S1").script(TOPOLOGY, 1), TOPOLOGY)
    assert set(equal) == {PER_TYPE, SHARED}
    assert equal[SHARED].weights == ((100, 100, 100),) * 3
    special = plans_of(scenario("S3").script(TOPOLOGY, 1), TOPOLOGY)
    assert special[PER_TYPE].weights == ((100, 25, 50), (54, 100, 77), (54, 100, 77))


def test_groups_with_different_servers_have_no_shared_upstream() -> None:
    one, other = TOPOLOGY.groups[:2]
    topology = Topology((one, replace(other, servers=other.servers[:2])))
    assert set(plans_of(scenario("S2b").script(topology, 1), topology)) == {PER_TYPE}
    with pytest.raises(ConfigError, match="different servers"):
        StockPlan(shared=True, weights=((1, 1, 1),) * 2).check(topology)


def test_a_plan_is_read_back_and_a_wrong_one_is_one_line(tmp_path: Path) -> None:
    plan = plans_of(scenario("S2b").script(TOPOLOGY, 1), TOPOLOGY)[CAPPED]
    path = tmp_path / "stock.json"
    path.write_text(plan.model_dump_json())
    assert StockPlan.load(path) == plan
    control = plan.control(TOPOLOGY)
    assert isinstance(control, CappedWeights)
    assert control.most.tolist()[2] == 2
    assert control == plan.control(TOPOLOGY) != replace(control, most=np.array([1, 1, 1]))
    with pytest.raises(ConfigError, match="of 3 groups and 3 servers"):
        plan.check(Topology((Group("a", "a", "GET", "/", 2.0, ("s:1",)),)))
    content = json.loads(path.read_text())
    for change, told in (
        ({"weights": [[1, 2, 3], [1, 2, 4], [1, 2, 3]]}, "one weight per server"),
        ({"max_conns": [1, 1]}, "different lengths"),
        ({"shared": False}, "without a shared upstream"),
        ({"weights": [[101, 1, 1]] * 3}, "less than or equal to 100"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(ConfigError, match=told) as caught:
            StockPlan.load(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot read"):
        StockPlan.load(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="not a regular file"):
        StockPlan.load(Path("/dev/zero"))


def test_upstream_blocks_have_weights_and_limits() -> None:
    plans = plans_of(scenario("S2b").script(TOPOLOGY, 1), TOPOLOGY)
    shared = upstream_lines(plans[CAPPED], TOPOLOGY)
    assert shared.count("upstream ") == 1
    assert "  server server-3:80 weight=25 max_conns=2;\n" in shared
    assert "  server server-1:80 weight=100;\n" in shared
    assert upstream_lines(plans[PER_TYPE], TOPOLOGY).count("upstream ") == 3


def test_servers_out_of_rotation_stay_out() -> None:
    script = scenario("S2b").script(TOPOLOGY, 1)
    everywhere = np.zeros(TOPOLOGY.shape, bool)
    everywhere[:, 0] = True
    plans = plans_of(script, TOPOLOGY, everywhere)
    # Without the first server the third one is not very slow: 0.57 of the mean of the two that are left.
    assert set(plans) == {PER_TYPE, SHARED}
    assert plans[PER_TYPE].weights == plans[SHARED].weights == ((0, 100, 40),) * 3
    for plan in plans.values():
        assert plan.control(TOPOLOGY).down.tolist() == everywhere.tolist()
        assert "  server server-1:80 down;\n" in upstream_lines(plan, TOPOLOGY)
    # One upstream for all types cannot leave a server out for one of them.
    once = everywhere & (np.arange(3) == 0)[:, None]
    (plan,) = plans_of(script, TOPOLOGY, once).values()
    assert plan.weights == ((0, 100, 40), (100, 62, 25), (100, 62, 25))
    with pytest.raises(ConfigError, match="every server is down"):
        StockPlan(shared=False, weights=((0, 0, 0), (1, 1, 1), (1, 1, 1))).control(TOPOLOGY)


def test_nothing_is_gained_from_a_fast_server_that_is_down() -> None:
    """Seeds are fixed: it repeats exactly."""
    recorded = Calibration.load(Path("tests/data/runs/calibration.json"))
    fast = tuple((*row[:2], 1.0) for row in recorded.parameters.service_ms)
    parameters = recorded.parameters.changed({"service_ms": fast})
    down = recorded.changed({"parameters": parameters, "down": ((False, False, True),) * 3})
    played = replace(calibrated(down), load_factor=0.5, duration_s=25.0)
    found = suggest(played, down.topology, today_rule(played), range(101, 103))
    assert {weights[2] for way in found.ways if way.plan is not None for weights in way.plan.weights} == {0}
    assert all(way.mean.value > 0.6 for way in found.ways)


def test_today_is_told_with_the_method_and_the_workers() -> None:
    recorded = Calibration.load(Path("tests/data/runs/calibration.json"))
    assert today_rule(calibrated(recorded)).name == "today's least_conn, one shared state"
    eight = recorded.changed({"method": "round_robin", "load_balancers": 8})
    assert today_rule(calibrated(eight)).name == "today's round_robin, 8 workers that share no state"


def test_after_the_change_all_workers_of_a_recorded_nginx_share_their_counts() -> None:
    """Then it makes no difference how many workers it has. Seeds are fixed: it repeats exactly."""
    recorded = Calibration.load(Path("tests/data/runs/calibration.json"))

    def relative_to_shared(load_balancers: int) -> list[float]:
        twin = calibrated(recorded.changed({"load_balancers": load_balancers}))
        found = suggest(replace(twin, duration_s=25.0), recorded.topology, today_rule(twin), range(101, 103))
        ways = {way.name: way.mean.value for way in found.ways}
        return [ways[PER_TYPE] / ways[SHARED], ways[LUA] / ways[SHARED]]

    assert relative_to_shared(8) == pytest.approx(relative_to_shared(1))


def test_weights_are_not_suggested_from_nothing(tmp_path: Path) -> None:
    path = tmp_path / "silent.yaml"
    path.write_text("name: silent\nload: 0.4\nduration_s: 20\nload_steps: [[0, 1], [5, 0]]\n")
    silent = scenario(str(path))
    with pytest.raises(DataError, match="no request was answered after the first 10 s"):
        suggest(silent, TOPOLOGY, today_rule(silent), range(101, 103))


def test_a_server_with_max_conns_never_has_more_in_flight() -> None:
    batch = SimulatedBatch(TOPOLOGY, 1, "shared_least_conn")
    batch.reset(0, scenario("S2b").script(TOPOLOGY, 1))
    batch.limit_connections(np.array([[100, 100, 1]]))
    most = 0
    for _ in range(200):
        window = batch.advance(0.01)
        most = max(most, int(window.active.sum(axis=1)[0, 2]))
    assert most == 1
    with pytest.raises(ConfigError, match="1 or more per server"):
        batch.limit_connections(np.array([[1, 1, 0]]))


def test_intervals_are_of_paired_ratios() -> None:
    ratio = ratio_of([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.5, 0.5, 0.5))
    wide = ratio_of([1.0, 1.0], [1.0, 2.0])
    assert wide.value == pytest.approx(0.5**0.5)
    assert wide.low < wide.value < wide.high


@pytest.mark.thorough
def test_the_suggestion_is_what_the_study_says() -> None:
    """Seeds are fixed: it repeats exactly."""
    strong, special = scenario("S2b", 60.0), scenario("S3", 60.0)
    found = suggest(strong, TOPOLOGY, today_rule(strong), range(101, 105))
    assert found.best is not None
    assert found.best.name in (SHARED, CAPPED)  # which differ by less than chance
    assert found.best.mean.high < 0.92
    by_name = {way.name: way for way in found.ways}
    assert by_name[LUA].mean.value < found.best.mean.value
    # Types that need different servers need upstreams of their own.
    found = suggest(special, TOPOLOGY, today_rule(special), range(101, 105))
    assert found.best is not None
    assert found.best.name == PER_TYPE
    assert {way.name: way for way in found.ways}[SHARED].mean.low > 1.05
    # One upstream alone is worth 3 % of the mean: it counts the requests of all types.
    equal = scenario("S1", 60.0)
    found = suggest(equal, TOPOLOGY, today_rule(equal), range(101, 105))
    assert found.best is not None
    assert found.best.name == SHARED
    assert 0.95 < found.best.mean.value < 0.99
