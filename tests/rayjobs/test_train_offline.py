"""BC, MARWIL and CQL learn from files of collected snapshots, by `deepsched train`: to do what whoever steered then
did, what turned out well of it, and what would have turned out better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import Weights
from actuators.contract.topology import social_network
from actuators.contract.window import Window
from envs.scenarios.lookup import scenario
from envs.simulator.testbed import SimulatedTestbed
from rayjobs.cli.main import main
from tests.support.recordings import record
from tuning.policy.bundle import Bundle, load_bundle

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray")]

TOPOLOGY = social_network()
SECONDS = 120
SPEEDS = np.array([1.3, 1.0, 0.7])
"""Of S2; on round robin, equal weights nearly overload the slowest server."""

Choose = Callable[[np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Recordings:
    """Files of snapshots, and the mean response time in the windows that they hold."""

    folder: Path
    mean_ms: float


def files(folder: Path, choose: Choose, count: int = 6) -> Recordings:
    """Recordings of S2 on round robin under weights that `choose` draws anew for every second."""
    folder.mkdir()
    windows: list[Window] = []
    for number in range(count):
        generator = np.random.default_rng(number)

        def steer(window: Window, generator: np.random.Generator = generator) -> Weights:
            return Weights.from_shares(TOPOLOGY, choose(generator))

        windows += record(folder / f"part-{number}.json", scenario("S2", SECONDS + 5.0), 300 + number, steer, SECONDS)
    return Recordings(folder, mean_ms(windows))


def towards(power: float, spread: float) -> Choose:
    """Weights ∝ speed to this power, with some noise: 1 is right, 0 equal, below that harmful."""
    return lambda generator: SPEEDS**power * np.exp(generator.normal(0.0, spread, (3, 3)))


def unsteady(generator: np.random.Generator) -> np.ndarray:
    """A little better than equal weights on the whole, but harmful in a third of all seconds."""
    return towards(generator.normal(0.3, 0.8), 0.1)(generator)


def half_right(generator: np.random.Generator) -> np.ndarray:
    """Right in one half of all seconds, as far wrong in the other: equal weights on the whole."""
    return towards(generator.choice([-1.0, 1.0]), 0.1)(generator)


def train(records: Recordings, out: Path, **algorithm: object) -> Bundle:
    """What `deepsched train` makes of the files; the bundle it leaves."""
    words = [
        "--scenario=S2", f"--records={records.folder}", f"--out={out}", "--seed=3",
        *(f"--set={text}" for text in (
            "method=round_robin", "training.scenarios=[S2]", "training.decision.action.kind=continuous",
            "training.decision.observation=features", "training.held_out.every_steps=0", "judge.rounds=2",
            "judge.measure_s=10", "observe.duration_s=60", "observe.explore_s=30", "observe.encoder.clusters=[2]",
            "training.algorithm.learning_rate=0.003",
            *(f"training.{'' if name == 'steps' else 'algorithm.'}{name}={value}" for name, value in algorithm.items()),
        )),
    ]  # fmt: skip
    assert main(["train", *words]) == 0
    (run,) = out.iterdir()
    return load_bundle(run / "bundle")


@dataclass(frozen=True)
class Steered:
    """How a policy steers S2 with seeds that nobody has learned from.

    Attributes:
        power: how its weights follow the speeds: 1 in proportion, 0 not at all.
        mean_ms: mean response time.
    """

    power: float
    mean_ms: float


def steered(bundle: Bundle, seeds: Sequence[int] = (900, 901, 902)) -> Steered:
    powers: list[float] = []
    windows: list[Window] = []
    for seed in seeds:
        with SimulatedTestbed(TOPOLOGY, "round_robin") as testbed:
            testbed.reset(scenario("S2", 60.0), seed)
            observer, policy = bundle.problem.observer(), bundle.policy()
            for second in range(40):
                window = testbed.advance(1.0)
                control = policy.act(observer.observe_window(window)).as_weights()
                testbed.apply(control)
                if second >= 5:
                    powers += [np.polyfit(np.log(SPEEDS), row, 1)[0] for row in np.log(control.values)]
                    windows.append(window)
    return Steered(float(np.mean(powers)), mean_ms(windows))


def mean_ms(windows: Sequence[Window]) -> float:
    return float(sum(w.response_ms_sum.sum() for w in windows) / sum(w.requests.sum() for w in windows))


def test_bc_imitates_whoever_steered(tmp_path: Path) -> None:
    records = files(tmp_path / "records", towards(1.0, 0.1))
    bundle = train(records, tmp_path / "runs", name="bc", steps=100_000, batch_steps=256)
    assert steered(bundle).power == pytest.approx(1.0, abs=0.25)


def test_marwil_prefers_what_turned_out_well_where_bc_imitates_all_of_it(tmp_path: Path) -> None:
    records = files(tmp_path / "records", half_right)
    common = {"steps": 75_000, "batch_steps": 128}
    imitating = steered(train(records, tmp_path / "bc", name="bc", **common))
    choosing = steered(train(records, tmp_path / "marwil", name="marwil", discount=0.5, gae_lambda=0.0, **common))
    # Equal weights are at the edge of an overload, which whoever imitates may or may not tip over.
    assert imitating.power < 0.2
    assert choosing.power > 0.4
    assert choosing.mean_ms < 0.7 * imitating.mean_ms
    assert choosing.mean_ms < 0.3 * records.mean_ms


def test_cql_steers_better_than_whoever_steered(tmp_path: Path) -> None:
    """Values say which way better weights lie: it goes there, and further than most of what was recorded."""
    records = files(tmp_path / "records", unsteady)
    bundle = train(
        records, tmp_path / "runs", name="cql", steps=16_000, batch_steps=64, imitated_updates=40, discount=0.5,
        conservatism=0.2,
    )  # fmt: skip
    learned = steered(bundle)
    assert 0.5 < learned.power < 2.0
    assert learned.mean_ms < 0.5 * records.mean_ms
