"""Scenarios of the catalogue: what they promise, equal scripts from equal seeds, and how methods fare on them.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

from actuators.contract.script import Script
from actuators.contract.topology import Group, Topology, social_network
from actuators.errors import ConfigError
from envs.scenarios.catalogue import SCENARIOS, STUDY, TRACED, TYPES, randomised
from envs.scenarios.lookup import scenario, training_mixture
from envs.scenarios.timeline import change_times, load_ratio, rates_rps, server_speeds
from envs.study.judge import judge
from envs.study.rules import rule_named

TOPOLOGY = social_network()


def rate_rps(script: Script, at_s: float = 0.0) -> float:
    return float(rates_rps(script, at_s).sum())


@pytest.mark.parametrize("name", [*SCENARIOS, *TRACED])
def test_equal_seeds_give_equal_scripts_that_survive_json_and_ray(name: str) -> None:
    script = scenario(name).script(TOPOLOGY, 5)
    assert scenario(name).script(TOPOLOGY, 5) == script
    assert Script.from_json(script.to_json()) == script
    assert pickle.loads(pickle.dumps(script)) == script
    assert cloudpickle.loads(cloudpickle.dumps(scenario(name))).script(TOPOLOGY, 5) == script
    assert scenario(name).script(TOPOLOGY, 6) != script


@pytest.mark.parametrize("name", [*SCENARIOS, *TRACED])
@pytest.mark.parametrize("servers", [1, 2, 5, 12])
def test_every_scenario_fits_any_number_of_servers(name: str, servers: int) -> None:
    topology = social_network(tuple(f"s{i}:80" for i in range(servers)))
    for played in (scenario(name), randomised(scenario(name))):
        script = played.script(topology, 1)
        assert len(script.servers) == servers
        assert all(change.server < servers for change in script.behaviours)
        times = [change.at_s for change in script.behaviours]
        assert times == sorted(times)


def test_rates_are_the_studys() -> None:
    # 12 workers at 5.43 ms mean work: 2210 requests/s are 100 %.
    assert rate_rps(scenario("S1").script(TOPOLOGY, 1)) == pytest.approx(0.70 * 2209.9, rel=1e-3)
    assert rate_rps(scenario("S3").script(TOPOLOGY, 1)) == pytest.approx(0.65 * 2209.9, rel=1e-3)
    demo = scenario("demo").script(TOPOLOGY, 1)
    assert rate_rps(demo) == pytest.approx(718, abs=1)
    assert demo.mean_service_s == pytest.approx((0.036, 0.0088, 0.0066))
    assert rates_rps(demo, 0.0) / rate_rps(demo) == pytest.approx([share for _, share in TYPES.values()])
    assert load_ratio(scenario("S2").script(TOPOLOGY, 1), 0.0) == pytest.approx(0.65)


def test_overload_and_surges_stay_in_their_ranges() -> None:
    overload = scenario("S8").script(TOPOLOGY, 101)
    assert {round(load_ratio(overload, t), 2) for t in change_times(overload)} == {0.55, 0.98}
    assert len({len(stream.steps) for stream in overload.streams}) == 2  # only one type is overloaded
    surges = scenario("S6").script(TOPOLOGY, 101)
    levels = [load_ratio(surges, t) for t in change_times(surges)]
    assert max(levels) <= 0.9
    assert min(levels) == 0.0


def test_servers_are_slowed_in_turn() -> None:
    script = scenario("S10").script(TOPOLOGY, 1)
    for t in np.arange(0.5, 599, 3.1):
        speeds = server_speeds(script, t)
        assert sorted(speeds) == [0.5, 1.0, 1.0]
        assert speeds[int(t / (20 / 3)) % 3] == 0.5


def test_a_crashed_server_warms_up_and_only_one_is_ill_at_a_time() -> None:
    script = scenario("S7").script(TOPOLOGY, 103)
    crashes = [change for change in script.behaviours if change.refused]
    assert crashes
    for t in change_times(script):
        assert (server_speeds(script, t) < 1).sum() <= 1
    first = crashes[0]
    after = [c for c in script.behaviours if c.server == first.server and c.at_s > first.at_s]
    assert 10 <= after[0].at_s - first.at_s <= 25
    assert (after[0].speed, after[0].error_ratio) == (0.2, 0.2)
    assert any(c.speed == pytest.approx(1.0) and c.at_s - after[0].at_s == pytest.approx(40) for c in after)


def test_training_variants_spread_around_the_study() -> None:
    training = randomised(scenario("S2"))
    scripts = [training.script(TOPOLOGY, seed) for seed in range(200)]
    loads = np.array([load_ratio(script, 0.0) for script in scripts])
    assert loads.min() >= 0.65 - 0.12 - 1e-9
    assert loads.max() <= 0.65 + 0.06 + 1e-9
    assert np.ptp(loads) > 0.15
    fastest = [int(np.argmax([profile.speeds[0] for profile in script.servers])) for script in scripts]
    assert set(fastest) == {0, 1, 2}
    assert all(script.duration_s == 100 for script in scripts)
    periods = {randomised(scenario("S10")).script(TOPOLOGY, seed).behaviours[1].at_s * 3 for seed in range(50)}
    assert 16 <= min(periods) < 18 < 22 < max(periods) <= 25


def test_the_mixture_plays_every_scenario() -> None:
    played = {training_mixture().script(TOPOLOGY, seed).name for seed in range(200)}
    assert played == set(STUDY)


def test_names_are_forgiving_about_case_and_nothing_else() -> None:
    assert scenario("s2B").name == "S2b"
    with pytest.raises(ConfigError, match="did you mean 'demo'"):
        scenario("dmeo")


OWN = """
name: mine
load: 0.4
speeds: {compose: [2, 1], home_read: [1, 2]}
load_steps: [[0, 1], [20, 1.5]]
surging_type: home_read
behaviours:
  - {at_s: 5, server: 1, speed: 0.5}
  - {at_s: 9, server: 1, refused: true}
duration_s: 40
"""


def test_a_users_own_scenario(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(OWN)
    script = scenario(str(path)).script(TOPOLOGY, 1)
    assert [profile.speeds for profile in script.servers] == [(2, 1, 1), (1, 2, 1), (2, 1, 1)]
    assert [b.refused for b in script.behaviours] == [False, True]
    assert [len(stream.steps) for stream in script.streams] == [1, 2, 1]
    assert judge(rule_named("least_conn"), scenario(str(path)), TOPOLOGY, [1]).requests > 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lod: 0.3", "did you mean 'load'"),
        ("speeds: []", "empty"),
        ("speeds: [1, 0]", "not positive"),
        ("disturbance: {kind: antagonist, speed: [0.9, 0.5]}", "disturbance.speed"),
        ("load_steps: [[5, 1]]", "ascend from 0"),
        ("disturbance: {kind: periodically}", "periodic"),
        ("surging_type: home_raed\nload_steps: [[0, 1], [5, 2]]", "did you mean 'home_read'"),
        ("surging_type: home_read", "surging_type"),
        ("disturbance: {kind: periodic, period_s: 0.1}\nduration_s: 1e7", "disturbance.period_s"),
        ("on_off: {on_s: 0.02, off_s: 0.02}\nduration_s: 1e7", "on_off"),
        ("disturbance: {kind: telegraph}\nbehaviours: [{at_s: 1, server: 0}]", "behaviours"),
        ("disturbance: {kind: telegraph, period_s: 5}", "disturbance.period_s"),
        ("disturbance: {kind: degraded, speed: [0.5, 0.9]}", "disturbance.speed"),
        ("service_cv: 2\nservice: exponential", "service_cv"),
        ("service_cv: 2\nservice: constant", "service_cv"),
        ("service: [", "not valid YAML: line 3"),
    ],
)
def test_mistakes_in_it_get_one_clear_line(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    key = change.split(":", maxsplit=1)[0]
    kept = [line for line in ("name: mine", "load: 0.4") if not line.startswith(f"{key}:")]
    path.write_text("\n".join([*kept, change]))
    with pytest.raises(ConfigError, match=message):
        scenario(str(path)).script(TOPOLOGY, 1)


def test_the_length_that_is_played_counts(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nload: 0.4\ndisturbance: {kind: periodic, period_s: 1}\nduration_s: 50\n")
    with pytest.raises(ConfigError, match=r"disturbance\.period_s.*100000 are the most"):
        scenario(str(path), duration_s=1e7)
    path.write_text(path.read_text().replace("duration_s: 50", "duration_s: 1e7"))
    assert scenario(str(path), duration_s=50.0).script(TOPOLOGY, 1).duration_s == 50


def test_groups_of_other_types_get_their_share() -> None:
    servers = ("a:1", "b:1")
    other = Topology((Group("x", "search", "GET", "/s", 2.0, servers), Group("y", "cart", "POST", "/c", 2.0, servers)))
    script = replace(scenario("S8"), duration_s=50.0).script(other, 1)
    rates = rates_rps(script, 0.0)
    assert rates[0] == rates[1] > 0
    assert load_ratio(script, 0.0) == pytest.approx(0.55)


def test_the_judge_repeats_itself_and_ranks_the_rules() -> None:
    played = scenario("S3", 60.0)
    scores = {name: judge(rule_named(name), played, TOPOLOGY, [1, 2]) for name in ("least_conn", "true_times")}
    assert judge(rule_named("least_conn"), played, TOPOLOGY, [1, 2]) == scores["least_conn"]
    ratio = scores["true_times"].over(scores["least_conn"])
    assert ratio.mean_ms < 0.8
    assert ratio.p99_ms < 0.7
    assert ratio.art < 0.6
    assert scores["least_conn"].index > scores["least_conn"].art > 0
    with pytest.raises(ConfigError, match="did you mean 'least_conn'"):
        rule_named("least_con")
