"""A search algorithm, a scheduler and a callback of your own in Ray Tune, on a cheap objective of this project.

python docs/examples/tune_own_parts.py [TRIALS]
"""

import sys
from typing import Any

import gymnasium
import numpy as np
import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher


def objective(config: dict[str, float]) -> None:
    """How good fixed weights are on S3: the specialist of each request type gets `factor` times the others."""
    env = gymnasium.make_vec("envs:DeepScheduling/Scenario-v0", num_envs=4, scenario="S3", episode_steps=60)
    specialists = np.log(config["factor"]) * np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0]], dtype=np.float32)
    action = np.tile((specialists - specialists.max() / 2).ravel() / 2.0, (4, 1)).clip(-1, 1)
    env.reset(seed=1)
    for _ in range(6):
        tune.report({"score": float(np.mean([env.step(action)[1].mean() for _ in range(10)]))})


class Halving(Searcher):
    """Draws from the whole range first, then from half of it around the best value so far, then from a quarter, …"""

    def __init__(self, low: float, high: float, trials: int) -> None:
        super().__init__(metric="score", mode="max")
        self._range, self._left, self._generator = (np.log(low), np.log(high)), trials, np.random.default_rng(1)
        self._tried: dict[str, float] = {}
        self._best: tuple[float, float] | None = None

    def suggest(self, trial_id: str) -> dict[str, float] | str | None:
        """The next trial's configuration; FINISHED when there are enough."""
        if self._left == 0:
            return Searcher.FINISHED
        self._left -= 1
        low, high = self._range
        if self._best is not None:
            width = (high - low) * 0.5 ** (len(self._tried) / 4)
            low, high = max(low, self._best[1] - width / 2), min(high, self._best[1] + width / 2)
        self._tried[trial_id] = float(self._generator.uniform(low, high))
        return {"factor": float(np.exp(self._tried[trial_id]))}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Remembers the best."""
        if result and (self._best is None or result["score"] > self._best[0]):
            self._best = result["score"], self._tried[trial_id]


class GiveUpEarly(FIFOScheduler):
    """Ends a trial whose first result is clearly worse than the best first result so far."""

    def __init__(self, tolerance: float) -> None:
        super().__init__()
        self._tolerance, self._best = tolerance, -np.inf

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Tune asks after every result."""
        if result["training_iteration"] > 1:
            return TrialScheduler.CONTINUE
        self._best = max(self._best, result["score"])
        return TrialScheduler.CONTINUE if result["score"] > self._best - self._tolerance else TrialScheduler.STOP


class Diary(tune.Callback):
    """Writes a line per finished trial."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune calls it."""
        last = trial.last_result
        print(f"factor {trial.config['factor']:.2f}: {last['score']:.3f} in {last['training_iteration']} results")


def main(trials: int = 12, folder: str | None = None) -> tune.ResultGrid:
    """Searches; Ray must be running."""
    tuner = tune.Tuner(
        objective,
        tune_config=tune.TuneConfig(
            metric="score", mode="max", num_samples=-1, search_alg=Halving(1.0, 50.0, trials),
            scheduler=GiveUpEarly(0.2), max_concurrent_trials=2,
        ),
        run_config=tune.RunConfig(name="own-parts", storage_path=folder, callbacks=[Diary()], verbose=0),
    )  # fmt: skip
    return tuner.fit()


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    best = main(*map(int, sys.argv[1:])).get_best_result()
    print(f"best factor {best.config['factor']:.2f}: {best.metrics['score']:.3f}")
    ray.shutdown()
