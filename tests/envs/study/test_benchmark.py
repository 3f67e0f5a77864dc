"""The benchmark: what a version fixes does not change, scores lie where they should, and the bound is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actuators.errors import ConfigError, DataError
from envs.study.benchmark import (
    SUITES,
    Played,
    bound,
    entry_named,
    oracle,
    play_suite,
    points,
    reference,
    suite_named,
    without_waiting,
)
from envs.study.judge import judge
from envs.study.program import program_rule

DIGESTS = {"social-1": "83a580dee2d56358", "wide-1": "63e8ec0678cdf617"}
"""What each version fixes. Where this test fails, scores are no longer comparable: make another version."""
SMALL = replace(SUITES["social-1"], scenarios=("S3", "S7"), seconds=40.0)


@pytest.mark.thorough
@pytest.mark.parametrize("name", SUITES)
def test_what_a_version_fixes_never_changes(name: str) -> None:
    assert SUITES[name].digest() == DIGESTS[name]


def test_search_and_held_out_seeds_have_nothing_in_common() -> None:
    for suite in SUITES.values():
        assert not set(suite.search_seeds) & set(suite.held_out_seeds)
        assert len(suite.held_out_seeds) >= 10


@pytest.mark.thorough
def test_the_references_have_scores_0_and_1_and_nothing_passes_the_bound() -> None:
    seeds = (1, 2)
    low, high, best = (reference(SMALL, name, seeds) for name in ("least_conn", "oracle", "bound"))
    assert points(SMALL, low, low, high).total == 0.0
    assert points(SMALL, high, low, high).total == pytest.approx(1.0)
    ours = play_suite(SMALL, entry_named("late_binding"), seeds)
    for played in (low, high, ours):
        assert (played.index >= best.index).all()
        assert (played.goodput <= best.goodput).all()
    found = points(SMALL, ours, low, high)
    assert 0.3 < found.total < 1.5
    assert found.interval[0] <= found.total <= found.interval[1]
    assert set(found.scenarios) == {"S3", "S7"}


def test_without_waiting_every_server_is_the_fastest_one() -> None:
    script = SMALL.played()[1].script(SMALL.topology, 1)
    free = without_waiting(script)
    assert script.behaviours
    assert not free.behaviours
    assert free.streams == script.streams
    speeds = np.array([server.speeds for server in script.servers])
    for server in free.servers:
        assert (np.array(server.speeds) >= speeds.max(axis=0)).all()


def test_scores_are_parts_of_the_oracles_gain() -> None:
    low = Played(np.full((1, 3), 0.8), np.full((1, 3), 2.0))
    high = Played(np.full((1, 3), 0.9), np.full((1, 3), 1.0))
    half = Played(np.full((1, 3), 0.85), np.full((1, 3), np.sqrt(2.0)))
    suite = replace(SMALL, scenarios=("S3",))
    found = points(suite, half, low, high)
    assert (found.goodput, found.index, found.total) == pytest.approx((0.5, 0.5, 0.5))
    assert found.interval == pytest.approx((0.5, 0.5))


def test_the_interval_of_a_score_is_students_over_the_seeds() -> None:
    """The parts of the seeds are 0.2 to 0.8; Student's t of three degrees of freedom is 3.182."""
    parts = np.array([[0.2, 0.4, 0.6, 0.8]])
    low, high = Played(np.full((1, 4), 0.8), np.full((1, 4), 2.0)), Played(np.full((1, 4), 0.9), np.full((1, 4), 1.0))
    suite = replace(SMALL, scenarios=("S3",))
    half = 3.182 * np.sqrt(0.2 / 3) / 2
    for factor in (1.0, -1.0):
        played = Played(0.8 + 0.1 * factor * parts, 2.0 ** (1 - factor * parts))
        found = points(suite, played, low, high)
        assert found.total == pytest.approx(0.5 * factor)
        assert found.interval == pytest.approx((0.5 * factor - half, 0.5 * factor + half), abs=1e-3)


@pytest.mark.parametrize("seeds", [4, 10])
def test_95_of_100_intervals_cover_the_true_score(seeds: int) -> None:
    """Where the oracle's gain differs between seeds as well. The draws are fixed: it repeats exactly."""
    generator, suite, covered, repeats = np.random.default_rng(1), replace(SMALL, scenarios=("S3",)), 0, 2000
    for _ in range(repeats):
        most, more = generator.normal(0.1, 0.02, (1, seeds)), generator.normal(0.05, 0.02, (1, seeds))
        low = Played(np.full((1, seeds), 0.5), np.ones((1, seeds)))
        found = points(suite, Played(0.5 + more, np.exp(-more)), low, Played(0.5 + most, np.exp(-most)))
        covered += found.interval[0] <= 0.5 <= found.interval[1]
    assert 0.93 < covered / repeats < 0.97


def test_a_wrong_name_and_a_file_without_a_rule_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="social-1"):
        suite_named("socal-1")
    with pytest.raises(ConfigError, match="expected_delay"):
        entry_named("expected_dealy")
    each = SMALL.played()[0]
    assert entry_named("idle")(each, SMALL.topology).name == "expected_delay", "a former name"
    (tmp_path / "rule.py").write_text("def weight(seen, memory):\n    return 1\n")
    with pytest.raises(DataError, match="no function `weights`"):
        program_rule(tmp_path / "rule.py")


@pytest.mark.thorough
def test_a_function_of_equal_weights_is_least_conn(tmp_path: Path) -> None:
    path = tmp_path / "rule.py"
    path.write_text("import numpy as np\ndef weights(seen, memory):\n    return np.ones(seen['requests'].shape)\n")
    each = SMALL.played()[0]
    ours, rule = judge(program_rule(path), each, SMALL.topology, (1,)), entry_named("least_conn")(each, SMALL.topology)
    assert ours.index == pytest.approx(judge(rule, each, SMALL.topology, (1,)).index, rel=0.02)


def test_oracle_and_bound_are_played_on_the_seeds_that_are_asked_for() -> None:
    tiny = replace(SMALL, scenarios=("S3",), seconds=15.0)
    assert oracle(tiny, (1, 2, 3)).index.shape == (1, 3)
    assert bound(tiny, (1, 2, 3)).goodput.shape == (1, 3)
