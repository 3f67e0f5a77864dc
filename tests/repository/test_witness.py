"""Numbers and bundles of before the move into rooms come out the same (the training: tests/rayjobs/test_train.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayjobs.cli.main import main
from tests.support.witness import EVALUATION, EVALUATION_2, WITNESS, evaluation_numbers, unequal
from tuning.policy.adviser import Adviser, Recent
from tuning.policy.bundle import load_bundle
from tuning.steering import control_json, window_json
from tuning.steering.window_json import WindowModel

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize(("part", "command"), [("evaluation", EVALUATION), ("evaluation_2", EVALUATION_2)])
def test_a_short_evaluation_gives_the_recorded_numbers(part: str, command: list[str], tmp_path: Path) -> None:
    assert main([*command, "--out", str(tmp_path)]) == 0
    (run,) = tmp_path.iterdir()
    assert unequal(part, evaluation_numbers(run)) == []


@pytest.mark.parametrize("kind", ["weights", "service_times"])
def test_a_bundle_of_before_acts_as_it_did(kind: str) -> None:
    """Window by window: the action, what a residual of 0 would have done, and the state."""
    adviser = Adviser(load_bundle(WITNESS / kind), workers=4.0)
    recent, found = Recent(adviser.frames), []
    recorded = [json.loads(line) for line in (WITNESS / f"{kind}.jsonl").read_text().splitlines()]
    for line in recorded:
        window = WindowModel.model_validate(line["window"])
        advice = recent.ask(adviser, window_json.from_json(window, adviser.topology))
        assert advice.policy is not None, advice.problem
        found.append(
            {
                "window": line["window"],
                "action": control_json.to_json(advice.policy),
                "baseline": control_json.to_json(advice.baseline),
                "cluster": advice.state.cluster.tolist(),
                "novelty": advice.state.novelty.tolist(),
            }
        )
    assert len(found) >= 10
    assert unequal(kind, found, recorded) == []
