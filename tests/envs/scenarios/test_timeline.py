"""An excerpt goes on exactly where the scenario would be at that moment."""

from __future__ import annotations

import numpy as np
import pytest

from actuators.contract.script import Script
from actuators.contract.script_check import check_script
from actuators.contract.topology import social_network
from envs.heuristics.controllers import FixedController
from envs.scenarios.catalogue import STUDY
from envs.scenarios.lookup import scenario
from envs.scenarios.timeline import rates_rps, server_speeds
from envs.simulator.testbed import SimulatedTestbed
from tuning.judging.judge import Judge
from tuning.judging.plan import Excerpt, JudgeOptions, from_moment

TOPOLOGY = social_network()


@pytest.mark.parametrize("name", STUDY)
def test_load_and_speeds_are_those_of_the_whole_script_at_every_later_moment(name: str) -> None:
    whole = scenario(name).script(TOPOLOGY, 3)
    rest = from_moment(whole, 123.4)
    assert rest.duration_s == pytest.approx(whole.duration_s - 123.4)
    assert [b.at_s for b in rest.behaviours] == sorted(b.at_s for b in rest.behaviours)
    for later_s in np.linspace(0.01, rest.duration_s - 1, 40):
        assert np.array_equal(server_speeds(rest, later_s), server_speeds(whole, 123.4 + later_s))
        assert np.array_equal(rates_rps(rest, later_s), rates_rps(whole, 123.4 + later_s))


def stage_speeds(script: Script, at_s: float) -> list[float]:
    """Speed of every stage at a time."""
    speeds = [1.0] * len(script.stages)
    for change in script.stage_behaviours:
        if change.at_s <= at_s:
            speeds[change.stage] = change.speed
    return speeds


@pytest.mark.parametrize("name", ["H-slow-stage", "H-flush", "H-mixed"])
def test_stages_behave_as_in_the_whole_script_at_every_later_moment(name: str) -> None:
    slow_at_once = 0
    for seed in range(10):
        whole = scenario(name).script(TOPOLOGY, seed)
        for moment_s in (6.0, 20.0, 34.0):
            rest = from_moment(whole, moment_s)
            check_script(rest, TOPOLOGY)
            assert [c.at_s for c in rest.stage_behaviours] == sorted(c.at_s for c in rest.stage_behaviours)
            flushes = [c.at_s - moment_s for c in whole.stage_behaviours if c.flush and c.at_s > moment_s]
            assert [c.at_s for c in rest.stage_behaviours if c.flush] == pytest.approx(flushes)
            slow_at_once += stage_speeds(rest, 0.0) != [1.0] * len(rest.stages)
            for later_s in np.linspace(0.01, rest.duration_s, 40):
                assert stage_speeds(rest, later_s) == stage_speeds(whole, moment_s + later_s)
    assert slow_at_once > 0 or name != "H-slow-stage"


def test_seeds_choose_moments_and_short_blocks_see_what_happens_late() -> None:
    excerpt = Excerpt(scenario("S4"), 10.0)
    assert excerpt.script(TOPOLOGY, 5) == excerpt.script(TOPOLOGY, 5)
    scripts = [excerpt.script(TOPOLOGY, seed) for seed in range(20)]
    assert all(script.duration_s >= 10.0 for script in scripts)
    disturbed = [any(b.speed < 1 and b.at_s < 10 for b in script.behaviours) for script in scripts]
    assert 10 <= sum(disturbed) <= 20
    short = Excerpt(scenario("S4", duration_s=5.0), 10.0)
    assert short.script(TOPOLOGY, 1) == scenario("S4", duration_s=5.0).script(TOPOLOGY, 1)


def test_a_block_that_begins_while_a_server_is_down_is_judged_like_any_other() -> None:
    excerpt = Excerpt(scenario("S7", work_scale=4.0), 3.0)
    down = (s for s in range(100) if any(b.at_s == 0 and b.refused for b in _played(excerpt, s).behaviours))
    options = JudgeOptions(rounds=1, warm_up_s=0, measure_s=3.0, seed=next(down))
    policies = [FixedController("least_conn", "least_conn")]
    evaluation = Judge(SimulatedTestbed(TOPOLOGY), policies, excerpt, np.array([0.2, 0.1, 0.1]), options).run()
    (block,) = evaluation.blocks
    assert block.usable
    assert np.isfinite(block.utilisation).all()
    assert min(block.utilisation) < 0.1 < max(block.utilisation)


def _played(excerpt: Excerpt, seed: int) -> Script:
    """What the only block of an evaluation with this seed plays."""
    return excerpt.script(TOPOLOGY, int(np.random.SeedSequence([seed, 0]).generate_state(2)[0]))
