"""The table of learners: ratios to the reference, intervals over trainings, and what a file holds comes back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from envs.study.judge import Score
from rayjobs.bench.learner.learners import Found, Over, markdown


def found(index: float, seconds: float = 0.0) -> Found:
    score = Score(mean_ms=10 * index, p99_ms=50 * index, art=0.1, index=index, error_ratio=0.0, requests=1000,
                  goodput=0.9)  # fmt: skip
    return Found((score, score), seconds)


def test_a_ratio_is_the_geometric_mean_over_trainings_with_students_interval() -> None:
    over = Over.of([[found(0.5), found(2.0)]], [found(1.0)], "index")
    half = 12.706 * math.log(2) * math.sqrt(2) / math.sqrt(2)
    assert over.middle == pytest.approx(1.0)
    assert math.log(over.high) == pytest.approx(half, rel=1e-3)
    assert over.interval.startswith("95 %: ")
    assert Over.of([[found(0.5)]], [found(1.0)], "index").interval == ""


def test_scenarios_count_equally() -> None:
    assert Over.of([[found(0.25)], [found(1.0)]], [found(1.0), found(1.0)], "index").middle == pytest.approx(0.5)


def test_the_table_has_a_row_per_policy() -> None:
    base = {"S2": found(1.0), "S3": found(1.0)}
    rows = {name: [found(0.8, 9.0), found(0.9, 11.0)] for name in base}
    head, _, heuristic, learned = markdown({"rule": base_rows(base), "RLlib PPO": rows}, base).splitlines()
    assert head == "| policy | S2 | S3 | J, all | mean, all | p99, all | seconds of a training |"
    assert heuristic == "| rule | 1.000 | 1.000 | 1.000 | 1.000 | 1.000 |  |"
    assert learned.startswith("| RLlib PPO | 0.849 (0.402 to 1.793) |")
    assert learned.endswith("| 10 |")


def base_rows(base: dict[str, Found]) -> dict[str, list[Found]]:
    return {name: [one] for name, one in base.items()}


def test_a_training_is_kept_and_read_again(tmp_path: Path) -> None:
    found(0.7, 12.5).write(tmp_path / "one.json")
    again = Found.read(tmp_path / "one.json")
    assert again.seconds == 12.5
    assert [score.index for score in again.scores] == [0.7, 0.7]
