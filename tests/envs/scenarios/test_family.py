"""Family H: loads, events and clients of the drawn systems; scripts with and without hidden parts as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from actuators.contract.script import Script, StageBehaviour
from actuators.contract.script_check import check_live, check_script
from actuators.contract.topology import Group, Topology, social_network
from actuators.errors import ConfigError
from envs.admission.nominal import idle_moments_s
from envs.scenarios.catalogue import STUDY
from envs.scenarios.family import FAMILY, KINDS
from envs.scenarios.lookup import scenario, training_mixture
from envs.scenarios.timeline import change_times

TOPOLOGY = social_network()
TEN = social_network(tuple(f"s{i}:80" for i in range(10)))
FIVE = Topology((*TOPOLOGY.groups, *(Group(n, n, "GET", "/", 2.0, TOPOLOGY.servers) for n in ("x", "y"))))
ONE = Topology((Group("a", "a", "POST", "/", 2.0, ("s:80",)),))


def loads(script: Script) -> tuple[float, list[float]]:
    """Of the servers and of each stage at the first rates."""
    rates_rps = np.array([stream.steps[0].rate_rps for stream in script.streams])
    stages, held = [], 0.0
    for stage in script.stages:
        visits = np.array(stage.visits)
        if stage.cache:
            visits = visits * np.where(stage.cache.cached, 1 - stage.cache.hit, 1)
        busy = float(rates_rps @ (visits * np.array(stage.work_s)))
        stages.append(busy / stage.connections)
        held += busy * script.servers[0].blocking
    workers = sum(profile.workers for profile in script.servers)
    return (float(rates_rps @ np.array(script.mean_service_s)) + held) / workers, stages


@pytest.mark.parametrize("topology", [TOPOLOGY, TEN, FIVE, ONE], ids=["three", "ten servers", "five types", "one"])
@pytest.mark.parametrize("name", FAMILY)
def test_every_seed_draws_a_system_that_can_be_played(name: str, topology: Topology) -> None:
    for seed in range(8):
        script = scenario(name).script(topology, seed)
        check_script(script, topology)
        assert script == scenario(name).script(topology, seed)
        assert Script.from_json(json.loads(json.dumps(script.to_json()))) == script
        assert script != scenario(name).script(topology, seed + 8)
        if script.servers[0].blocking:
            with pytest.raises(ConfigError, match="blocking servers cannot be played live"):
                check_live(script)
        else:
            check_live(script)


@pytest.mark.parametrize("topology", [TOPOLOGY, TEN], ids=["three", "ten servers"])
def test_something_is_tight_and_nothing_is_overloaded(topology: Topology) -> None:
    tight = []
    for seed in range(100):
        servers, stages = loads(scenario("H-steady").script(topology, seed))
        assert servers < 0.86
        assert all(0.19 < load < 0.86 for load in stages)
        assert max(servers, *stages) > 0.54
        tight.append(max(stages) < 0.55)
    assert 8 <= sum(tight) <= 35


def test_rates_deadlines_and_clients() -> None:
    for seed in range(50):
        script = scenario("H-steady").script(TOPOLOGY, seed)
        assert sum(stream.steps[0].rate_rps for stream in script.streams) == pytest.approx(600)
        mean_s, deviation_s = idle_moments_s(script)
        ratio = np.array(script.deadlines_s) / (mean_s + 2 * deviation_s)
        assert ((ratio >= 1) & (ratio <= 5)).all()
        assert all(1 <= importance <= 5 for importance in script.importance)
        for habits, deadline_s in zip(script.clients, script.deadlines_s, strict=True):
            assert max(0.25, 3 * deadline_s) <= habits.patience_s <= max(0.25, 8 * deadline_s)
            assert habits.retries <= 2


def test_kinds_differ_only_in_what_happens() -> None:
    for seed in range(20):
        steady = scenario("H-steady").script(TOPOLOGY, seed)
        assert steady.behaviours == steady.stage_behaviours == ()
        for kind in KINDS[1:]:
            script = scenario(f"H-{kind}").script(TOPOLOGY, seed)
            assert change_times(script) != [0.0, 50.0]
            if kind != "flush":
                same = {"name": "", "streams": (), "behaviours": (), "stage_behaviours": ()}
                assert replace(script, **same) == replace(steady, **same)  # type: ignore[arg-type]
            else:
                assert script.stages[0].cache is not None
                assert [change.flush for change in script.stage_behaviours] == [True]


def test_kinds_come_in_turn() -> None:
    for number, kind in enumerate(KINDS):
        own = scenario(f"H-{kind}").script(TOPOLOGY, 800 + number)
        assert replace(scenario("H").script(TOPOLOGY, 800 + number), name="") == replace(own, name="")


def test_surges_are_of_all_types_and_flashes_of_one() -> None:
    for seed in range(20):
        surge, flash = (scenario(f"H-{kind}").script(TOPOLOGY, seed).streams for kind in ("surge", "flash"))
        factors = [[step.rate_rps / stream.steps[0].rate_rps for step in stream.steps] for stream in surge]
        assert 1.5 <= factors[0][1] <= 3
        assert all(row == pytest.approx(factors[0]) for row in factors)
        factors = [[step.rate_rps / stream.steps[0].rate_rps for step in stream.steps] for stream in flash]
        assert sorted(max(row) > 1 for row in factors) == [False, False, True]
        assert factors[0][2] == 1


def test_events_are_repeated_and_a_flush_keeps_the_stage_as_slow_as_it_is() -> None:
    long = scenario("H-slow-server", 200.0).script(TOPOLOGY, 3)
    assert len(long.behaviours) == 8
    assert len(scenario("H-permanent", 200.0).script(TOPOLOGY, 3).streams[0].steps) == 2
    for seed in range(200):
        speeds = {0: 1.0, 1: 1.0}
        for change in scenario("H-mixed").script(TOPOLOGY, seed).stage_behaviours:
            assert isinstance(change, StageBehaviour)
            if change.flush:
                assert change.speed == speeds[change.stage]
            speeds[change.stage] = change.speed


def test_the_family_can_be_named_everywhere() -> None:
    assert scenario("h-SURGE").name == "H-surge"
    assert "H" not in STUDY
    names = {training_mixture(("H", "H-flash"), 60.0).script(TOPOLOGY, seed).name for seed in range(20)}
    assert names == {"H", "H-flash"}
    with pytest.raises(ConfigError, match="H-surge"):
        scenario("H-surg")


def test_scripts_without_hidden_parts_are_written_as_ever() -> None:
    data = scenario("S2").script(TOPOLOGY, 1).to_json()
    assert [*data] == [
        "name", "seed", "duration_s", "streams", "servers", "mean_service_s", "service_distribution", "service_cv",
        "behaviours", "load_balancers", "overhead_s",
    ]  # fmt: skip
    assert [*data["servers"][0]] == ["speeds", "workers", "queue_limit"]
