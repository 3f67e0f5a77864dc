"""Every file of docs/examples runs as the page says; the quick tests give each a tiny budget."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import gymnasium
import numpy as np
import pandas as pd
import pytest
from ray.cloudpickle import register_pickle_by_value

from actuators.errors import DataError
from tests.support.paths import ROOT
from tuning.judging.parquet import write_results

FOLDER = ROOT / "docs" / "examples"


def example(name: str) -> ModuleType:
    """The file as a module; what it defines can be pickled by name."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_every_example_is_on_the_page_and_tested_here() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")}
    page = (FOLDER / "index.md").read_text()
    assert set(re.findall(r"\]\((\w+)\.py\)", page)) == files
    assert set(re.findall(r'--8<-- "docs/examples/(\w+)\.py"', page)) == files
    assert set(re.findall(r'example\("(\w+)"\)', Path(__file__).read_text())) == files


@pytest.mark.slow
@pytest.mark.thorough
def test_sb3_runs() -> None:
    assert example("sb3_ppo").main(steps=16, episodes=1).shape == (1,)


@pytest.mark.slow
def test_sb3_improves_on_equal_weights() -> None:
    """On episodes never trained on; the interval is over five trainings."""
    sb3 = example("sb3_ppo")
    gains = np.array([sb3.main(seed=seed).mean() for seed in range(1, 6)])
    low = gains.mean() - 2.776 * gains.std(ddof=1) / np.sqrt(len(gains))
    assert low > 0, gains


def test_cleanrl_runs() -> None:
    cleanrl = example("cleanrl_ppo")
    curve = cleanrl.main(cleanrl.Args(steps=2 * 4 * 10, envs=4, rollout=10, minibatch=20, epochs=1))
    assert len(curve) == 2
    assert np.isfinite(curve).all()


@pytest.mark.slow
def test_cleanrl_learns() -> None:
    cleanrl = example("cleanrl_ppo")
    curve = cleanrl.main(cleanrl.Args())
    assert np.mean(curve[-5:]) > np.mean(curve[:5])


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray")
def test_rllib_trains_with_its_default_module() -> None:
    assert np.isfinite(example("rllib_default_module").main(1)).all()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray")
def test_rllib_trains_with_a_module_of_ones_own() -> None:
    assert np.isfinite(example("rllib_own_module").main(1)).all()


@pytest.mark.ray
@pytest.mark.usefixtures("ray")
@pytest.mark.slow
def test_tune_searches_with_parts_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = example("tune_own_parts")
    # As a script it is `__main__`, which Ray sends to its workers; a module they would have to import.
    register_pickle_by_value(own)
    results = own.main(trials=4, folder=str(tmp_path))
    assert len(results) == 4
    assert not results.errors
    assert capsys.readouterr().out.count("factor ") == 4


@pytest.mark.thorough
def test_a_reward_of_ones_own_is_what_is_paid() -> None:
    own = example("own_reward")
    paid, plain = own.LateAndFailed(gymnasium.make(own.ID, scenario="S7")), gymnasium.make(own.ID, scenario="S7")
    paid.reset(seed=3)
    plain.reset(seed=3)
    for _ in range(20):
        reward, terms = paid.step(np.zeros(9, np.float32))[1], plain.step(np.zeros(9, np.float32))[4]["terms"]
        assert reward == pytest.approx(-terms["art"] - 10.0 * terms["error_ratio"])
    assert own.main(steps=60, judged=20) < 0.0


@pytest.mark.thorough
def test_a_heuristic_of_ones_own_is_judged() -> None:
    told = example("own_heuristic").main(rounds=2).to_json()
    assert set(told["policies"]) == {"round_robin", "least_conn", "fewest_errors"}
    assert told["policies"]["fewest_errors"]["changes_per_minute"] > 0


@pytest.mark.thorough
def test_rules_are_scored_between_least_conn_and_the_oracle(tmp_path: Path) -> None:
    evaluator = example("evaluator")
    assert example("initial_rule").weights
    good = evaluator.evaluate(str(FOLDER / "initial_rule.py"), seeds=[1])
    assert set(good) == {"score", "goodput", "index", *evaluator.SUITE.scenarios}
    assert 0.1 < good["score"] < 1.0
    rule = tmp_path / "rule.py"
    rule.write_text("import numpy as np\ndef weights(seen, memory):\n    return np.ones(seen['requests'].shape)\n")
    assert abs(evaluator.evaluate(str(rule), seeds=[1])["score"]) < 0.02
    rule.write_text("def weights(seen, memory):\n    return [1.0]\n")
    with pytest.raises(DataError, match="return positive numbers"):
        evaluator.evaluate(str(rule), seeds=[1])


def test_results_are_read_into_pandas(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "train-1"
    run.mkdir(parents=True)
    content = json.loads((ROOT / "tests/data/runs/evaluation.json").read_bytes())
    write_results([content], run / "evaluation.parquet")
    (run / "progress.csv").write_text("phase,step,episode_return\nsimulated,100,1.5\n")
    pd.DataFrame({"trial": ["trial-a"], "score": [1.0]}).to_parquet(run / "sweep.parquet")
    several = tmp_path / "runs" / "evaluate-1"
    for folder in (several, several / "S2-simulated", several / "S2-live"):
        folder.mkdir()
        write_results([content], folder / "evaluation.parquet")
    read = example("results_pandas").main
    found = read(str(tmp_path / "runs"))
    assert {kind: set(table["run"]) for kind, table in found.items()} == {
        "curves": {"train-1"}, "judged": {"train-1", "evaluate-1"}, "trials": {"train-1"},
    }  # fmt: skip
    assert found["curves"]["episode_return"].tolist() == [1.5]
    assert {"policy", "metric", "value"} <= set(found["judged"].columns)
    assert (
        len(read(str(several))["judged"]) == len(found["judged"]) / 2 == len(read(str(several / "S2-live"))["judged"])
    )
