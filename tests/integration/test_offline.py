"""BC learns from files of collected snapshots, by `deepsched train`, what whoever steered then did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from recordings import record

from actuators.control import Weights
from actuators.topology import social_network
from actuators.window import Window
from envs.scenarios import scenario
from envs.simulation import SimulatedTestbed
from rayjobs.cli import main
from tuning.bundle import Bundle, load_bundle

pytestmark = pytest.mark.ray

TOPOLOGY = social_network()
SECONDS = 120
SPEEDS = np.array([1.3, 1.0, 0.7])
"""Of S2; on round robin, equal weights nearly overload the slowest server."""

Choose = Callable[[np.random.Generator], np.ndarray]


def files(folder: Path, choose: Choose, count: int = 6) -> Path:
    """Recordings of S2 on round robin under weights that `choose` draws anew for every second."""
    folder.mkdir()
    for number in range(count):
        generator = np.random.default_rng(number)

        def steer(window: Window, generator: np.random.Generator = generator) -> Weights:
            return Weights.from_shares(TOPOLOGY, choose(generator))

        record(folder / f"part-{number}.json", scenario("S2", SECONDS + 5.0), 300 + number, steer, SECONDS)
    return folder


def towards(power: float, spread: float) -> Choose:
    """Weights ∝ speed to this power, with some noise: 1 is right, 0 equal, below that harmful."""
    return lambda generator: SPEEDS**power * np.exp(generator.normal(0.0, spread, (3, 3)))


def train(folder: Path, out: Path, *more: str) -> Bundle:
    """What `deepsched train` makes of the files; the bundle it leaves."""
    words = [
        "--scenario=S2", f"--records={folder}", f"--out={out}", "--seed=3",
        *(f"--set={text}" for text in (
            "training.method=round_robin", "training.scenarios=[S2]", "training.decision.action.kind=continuous",
            "training.decision.observation=features", "training.held_out.every_steps=0", "judge.rounds=2",
            "judge.measure_s=10", "observe.duration_s=60", "observe.explore_s=30", "observe.encoder.clusters=[2]",
            "training.algorithm.learning_rate=0.003", "training.algorithm.batch_steps=256", *more,
        )),
    ]  # fmt: skip
    assert main(["train", *words]) == 0
    (run,) = out.iterdir()
    return load_bundle(run / "bundle")


def power(bundle: Bundle) -> float:
    """How the policy's weights follow the speeds on a recording it has not seen: 1 in proportion, 0 not at all."""
    with SimulatedTestbed(TOPOLOGY, "round_robin") as testbed:
        testbed.reset(scenario("S2", 60.0), 900)
        observer, policy = bundle.problem.observer(), bundle.policy()
        found = []
        for _ in range(40):
            control = policy.act(observer.observe_window(testbed.advance(1.0))).as_weights()
            testbed.apply(control)
            logs = np.log(control.values)
            found.append([np.polyfit(np.log(SPEEDS), row, 1)[0] for row in logs])
    return float(np.mean(found[5:]))


@pytest.mark.slow
def test_bc_imitates_whoever_steered(tmp_path: Path) -> None:
    bundle = train(
        files(tmp_path / "records", towards(1.0, 0.1)), tmp_path / "runs", "training.algorithm.name=bc",
        "training.steps=100000",
    )  # fmt: skip
    assert power(bundle) == pytest.approx(1.0, abs=0.25)
