"""What is judged of a play: every window that begins after the warm-up, and no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actuators.contract.topology import social_network
from actuators.errors import ConfigError
from envs.scenarios.lookup import scenario
from envs.study.judge import check_windows, judge, play
from envs.study.rules import rule_named

TOPOLOGY = social_network()


@pytest.mark.parametrize(("interval_s", "begins_s"), [(20.0, 20.0), (3.0, 12.0), (2.0, 10.0), (0.1, 10.0)])
def test_no_part_of_the_warm_up_is_judged(interval_s: float, begins_s: float) -> None:
    scripts = [scenario("S3", 60.0).script(TOPOLOGY, 1)]
    rule = rule_named("least_conn")
    found = play(rule, scripts, TOPOLOGY, 60.0, interval_s=interval_s)
    # Without steering the length of the windows changes nothing but what they are added up to.
    expected = play(rule, scripts, TOPOLOGY, 60.0, warm_up_s=begins_s, interval_s=1.0)
    np.testing.assert_array_equal(found.counts, expected.counts)


def test_what_nothing_has_answered_has_no_mean(tmp_path: Path) -> None:
    path = tmp_path / "gone.yaml"
    refusing = "".join(f"  - {{at_s: 1, server: {server}, refused: true}}\n" for server in range(3))
    path.write_text(f"name: gone\nload: 0.4\nduration_s: 20\nbehaviours:\n{refusing}")
    score = judge(rule_named("least_conn"), scenario(str(path)), TOPOLOGY, [1])
    assert np.isnan(score.mean_ms)
    assert (score.error_ratio, score.goodput) == (1.0, 0.0)
    path.write_text("name: silent\nload: 0.4\nduration_s: 20\nload_steps: [[0, 1], [5, 0]]\n")
    assert np.isnan(judge(rule_named("least_conn"), scenario(str(path)), TOPOLOGY, [1]).goodput)


def test_a_play_needs_a_window_after_the_warm_up() -> None:
    check_windows(11.0, 1.0)
    check_windows(40.0, 20.0)
    for duration_s, interval_s, least in ((10.4, 1.0, "11 s"), (20.0, 20.0, "40 s"), (200.0, 500.0, "1000 s")):
        with pytest.raises(ConfigError, match=f"play at least {least}"):
            check_windows(duration_s, interval_s)
    with pytest.raises(ConfigError, match="no interval of 1 s"):
        judge(rule_named("least_conn"), scenario("S3", 10.4), TOPOLOGY, [1])
