"""The training loop: PPO on simulated testbeds, then on a live one; curve, checkpoints, network."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.tune.registry import register_env
from torch.utils.tensorboard import SummaryWriter

from actuators.files import write_atomic
from actuators.script import Scenario, Script
from actuators.topology import Topology
from envs.decision import DecisionProblem
from envs.vector import SimulatedVectorEnv
from tuning.algorithm import module_path, ppo_config
from tuning.model import EquivariantNet
from tuning.options import AlgorithmOptions, TrainingOptions

_SIMULATED, _LIVE = "deepsched-simulated", "deepsched-live"
_live_environments: dict[str, Callable[[], gym.Env[Any, Any]]] = {}


@dataclass(frozen=True)
class CurveRow:
    """One training iteration; the return is nan until an episode has ended."""

    phase: str
    step: int
    episode_return: float
    policy_loss: float
    value_loss: float
    entropy: float


@dataclass(frozen=True)
class _Phase:
    """One training run in an environment; it starts from the last phase's checkpoint.

    Attributes:
        environment: registered name; env_config goes with it.
        interval_s: real seconds per step, 0 when simulated.
    """

    name: str
    environment: str
    env_config: dict[str, Any]
    algorithm: AlgorithmOptions
    num_envs: int
    steps: int
    interval_s: float


class ScriptSource:
    """Draws the script of an episode from a scenario; travels with RLlib's configuration."""

    def __init__(self, scenario: Scenario, topology: Topology) -> None:
        self._scenario, self._topology = scenario, topology

    def __call__(self, generator: np.random.Generator) -> Script:
        return self._scenario.script(self._topology, int(generator.integers(2**31)))


class Trainer:
    """Trains one network, phase after phase; every phase starts from the last one's checkpoint.

    Args:
        folder: run folder; gets `checkpoints/`, `progress.csv` and TensorBoard events.
        report: called after every iteration with the row and the steps of the phase.
    """

    def __init__(
        self,
        problem: DecisionProblem,
        options: TrainingOptions,
        folder: Path,
        seed: int,
        report: Callable[[CurveRow, int], None] = lambda row, steps: None,
    ) -> None:
        self.problem, self.options, self.folder, self.seed = problem, options, folder, seed
        self.curve: list[CurveRow] = []
        self.checkpoint: Path | None = None
        self.report = report
        self._net = EquivariantNet(problem.row_size, problem.topology.shape[0], options.model)

    def train_simulated(self, scenario: Scenario) -> None:
        """PPO on `options.environments` simulated testbeds for `options.steps` steps; each episode a new script."""
        options = self.options
        register_env(_SIMULATED, _make_simulated)
        env_config = {
            "problem": self.problem,
            "next_script": ScriptSource(scenario, self.problem.topology),
            "method": options.method,
            "interval_s": options.interval_s,
            "episode_steps": options.episode_steps,
            "seed": self.seed,
        }
        self._run(
            _Phase("simulated", _SIMULATED, env_config, options.algorithm, options.environments, options.steps, 0.0)
        )

    def train_live(self, make_env: Callable[[], gym.Env[Any, Any]], steps: int, algorithm: AlgorithmOptions) -> None:
        """PPO on one live testbed, from the last checkpoint; whoever made the testbed closes it."""
        register_env(_LIVE, _make_live)
        key = str(self.folder)
        _live_environments[key] = make_env
        try:
            self._run(_Phase("live", _LIVE, {"key": key}, algorithm, 1, steps, self.options.interval_s))
        finally:
            del _live_environments[key]

    def net(self) -> EquivariantNet:
        """The network as trained so far."""
        return self._net

    def _run(self, phase: _Phase) -> None:
        config = ppo_config(
            phase.algorithm,
            self.options.model,
            environment=phase.environment,
            env_config=phase.env_config,
            groups=self.problem.topology.shape[0],
            num_envs=phase.num_envs,
            native_vector=phase.environment == _SIMULATED,
            interval_s=phase.interval_s,
            seed=self.seed,
            load_module=None if self.checkpoint is None else module_path(self.checkpoint),
        )
        with _built(config) as algo, SummaryWriter(str(self.folder)) as events:
            done = 0
            while done < phase.steps:
                result = algo.train()
                done = int(result["num_env_steps_sampled_lifetime"])
                self._note(_row(phase.name, done, result), phase.steps, events)
            self._keep(algo, phase.name)

    def _note(self, row: CurveRow, steps: int, events: SummaryWriter) -> None:
        self.curve.append(row)
        for name, value in asdict(row).items():
            if isinstance(value, float) and math.isfinite(value):
                events.add_scalar(f"{row.phase}/{name}", value, row.step)
        write_atomic(self.folder / "progress.csv", _as_csv(self.curve))
        self.report(row, steps)

    def _keep(self, algo: Algorithm, phase: str) -> None:
        target = (self.folder / "checkpoints" / phase).resolve()
        target.mkdir(parents=True, exist_ok=True)
        self.checkpoint = Path(algo.save_to_path(str(target)))
        module = algo.get_module()
        self._net.load_state_dict(module.net.state_dict())


def _make_simulated(context: dict[str, Any]) -> SimulatedVectorEnv:
    config = dict(context)
    return SimulatedVectorEnv(config.pop("problem"), config.pop("num_envs"), config.pop("next_script"), **config)


def _make_live(context: dict[str, Any]) -> gym.Env[Any, Any]:
    # The environment holds a testbed of this very process, so it cannot travel in the config.
    return _live_environments[context["key"]]()


@contextmanager
def _built(config: Any) -> Iterator[Algorithm]:
    algo = config.build_algo()
    try:
        yield algo
    finally:
        algo.stop()


def _row(phase: str, step: int, result: dict[str, Any]) -> CurveRow:
    learner = result.get("learners", {}).get("default_policy", {})
    return CurveRow(
        phase,
        step,
        float(result.get("env_runners", {}).get("episode_return_mean", math.nan)),
        float(learner.get("policy_loss", math.nan)),
        float(learner.get("vf_loss", math.nan)),
        float(learner.get("entropy", math.nan)),
    )


def _as_csv(rows: list[CurveRow]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(CurveRow.__dataclass_fields__))
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue().encode()
