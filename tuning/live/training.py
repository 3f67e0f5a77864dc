"""Trains one policy on several live testbeds at once; continues when testbeds, actors or env runners die."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.tune.registry import register_env
from torch.utils.tensorboard import SummaryWriter

from actuators.contract.script import Scenario
from actuators.errors import ConfigError, TestbedError
from actuators.files import write_atomic
from envs.environment.problem import DecisionProblem
from tuning.learning.algorithm import Setting, algorithm_config, check_room, rllib_seed
from tuning.learning.curve import TAKEN
from tuning.live.relay import repair_limit_s
from tuning.live.testbeds import Testbeds
from tuning.live.vector_env import make_environment
from tuning.options import ParallelOptions, RunnerOptions, TrainingOptions
from tuning.policy.model import EquivariantNet

_ENVIRONMENT = "deepsched-parallel"
RUNNER_RESTART_S = 60.0
"""Allowance for the restart of an env runner, whose imports take about 10 s on an idle machine."""


@dataclass(frozen=True)
class ParallelRow:
    """One training iteration; values that RLlib did not report are nan.

    Attributes:
        step: control intervals so far, over all testbeds.
        seconds: wall-clock time since training began.
        faults: intervals lost to faults so far.
        late: intervals that came too late for their iteration and were not learned from, so far.
    """

    step: int
    seconds: float
    faults: int
    late: int
    episode_return: float
    policy_loss: float
    value_loss: float
    entropy: float


@dataclass
class ParallelTraining:
    """One training run on `Testbeds`.

    Args:
        folder: receives `progress-live.csv`, TensorBoard events and `checkpoints/live`.
        start: checkpoint folder of the RLModule to start from; None starts from an untrained network.
        report: called after every iteration.
        say: called with a line of text for every fault, repair and restart.
    """

    problem: DecisionProblem
    training: TrainingOptions
    options: ParallelOptions
    folder: Path
    seed: int
    start: Path | None = None
    report: Callable[[ParallelRow], None] = lambda row: None
    say: Callable[[str], None] = lambda text: None
    rows: list[ParallelRow] = field(default_factory=list)
    _restarts: int = 0
    _faults: int = 0
    _late: int = 0
    _taken: dict[str, int] = field(default_factory=dict)

    def run(self, testbeds: Testbeds, scenario: Scenario) -> EquivariantNet:
        """Trains for `options.steps` control intervals and returns the trained network.

        Args:
            scenario: played in every episode, each time with a new seed.

        Raises:
            CapacityError: the cluster has fewer CPUs than there are env runners.
            ConfigError: the testbeds cannot be divided evenly among the env runners.
            TestbedError: no step arrived for longer than repairs and restarts may take.
        """
        check_room(RunnerOptions(num_env_runners=self.options.env_runners), "parallel.env_runners")
        config = self.config(testbeds, scenario)
        patience_s = float(config.sample_timeout_s) + RUNNER_RESTART_S
        algo = config.build_algo()
        try:
            with SummaryWriter(str(self.folder)) as events:
                began_s = last_s = time.monotonic()
                done = 0
                while done < self.options.steps:
                    result = algo.train()
                    self._tell(testbeds, result)
                    steps = int(result.get("num_env_steps_sampled_lifetime", done))
                    self._count_late(result, steps, float(config.sample_timeout_s))
                    if steps > done:
                        done, last_s = steps, time.monotonic()
                        self._note(_row(done, last_s - began_s, self._faults, self._late, result), events)
                    elif time.monotonic() - last_s > patience_s:
                        what = f"no step arrived from the env runners for {patience_s:.0f} s"
                        raise TestbedError(what, remedy="see Ray's worker logs")
            return self._keep(algo)
        finally:
            algo.stop()

    def config(self, testbeds: Testbeds, scenario: Scenario) -> AlgorithmConfig:
        """RLlib's configuration, with timeouts derived from interval and fragment. Raises ConfigError."""
        register_env(_ENVIRONMENT, make_environment)
        options, interval_s, count = self.options, self.training.interval_s, len(testbeds.conductors)
        fragment = max(options.algorithm.batch_steps // count, 1)
        env_config = {
            "problem": self.problem,
            "leaser": testbeds.leaser,
            "scenario": scenario,
            "interval_s": interval_s,
            "episode_steps": options.episode_steps,
        }
        setting = Setting(
            environment=_ENVIRONMENT,
            env_config=env_config,
            groups=self.problem.topology.shape[0],
            num_envs=_share(count, options.env_runners),
            native_vector=True,
            interval_s=interval_s,
            seed=self.seed,
            action=self.training.decision.action,
            load_module=self.start,
        )
        config = algorithm_config(options.algorithm, self.training.model, setting)
        # RLlib silently discards samples that arrive later; the first sample includes the start of the testbeds.
        timeout_s = fragment * interval_s * 2 + repair_limit_s(setting.num_envs) + RUNNER_RESTART_S
        config.debugging(seed=rllib_seed(self.seed, options.env_runners))
        return config.env_runners(
            num_env_runners=options.env_runners, rollout_fragment_length=fragment, sample_timeout_s=timeout_s
        ).fault_tolerance(restart_failed_env_runners=True, restart_failed_sub_environments=True)

    def _tell(self, testbeds: Testbeds, result: dict[str, Any]) -> None:
        for news in testbeds.news():
            self._faults += news.lost
            self.say(f"{news.testbed}: {news.text}")
        restarts = int(result.get("fault_tolerance", {}).get("num_remote_worker_restarts", self._restarts))
        if restarts > self._restarts:
            self.say(f"{restarts - self._restarts} env runner(s) died and restarted; their testbeds are leased again")
        self._restarts = restarts

    def _count_late(self, result: Mapping[str, Any], received: int, timeout_s: float) -> None:
        """What env runners have taken and the learner has not received: RLlib drops late samples without a word."""
        for runner, taken in result.get("env_runners", {}).get(TAKEN, {}).items():
            # An iteration without a sample has nan.
            if math.isfinite(taken):
                self._taken[runner] = max(self._taken.get(runner, 0), int(taken))
        late = sum(self._taken.values()) - received
        if late > self._late:
            self.say(
                f"{late - self._late} control intervals came more than {timeout_s:g} s after they were asked for and"
                " were not learned from; use fewer testbeds per env runner, or smaller batches"
            )
            self._late = late

    def _note(self, row: ParallelRow, events: SummaryWriter) -> None:
        self.rows.append(row)
        for name, value in asdict(row).items():
            if isinstance(value, float) and math.isfinite(value):
                events.add_scalar(f"live/{name}", value, row.step)
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(ParallelRow.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(each) for each in self.rows)
        write_atomic(self.folder / "progress-live.csv", text.getvalue().encode())
        self.report(row)

    def _keep(self, algo: Algorithm) -> EquivariantNet:
        target = (self.folder / "checkpoints" / "live").resolve()
        target.mkdir(parents=True, exist_ok=True)
        algo.save_to_path(str(target))
        net: EquivariantNet = algo.get_module().policy_net()
        return net


def _share(testbeds: int, env_runners: int) -> int:
    runners = max(env_runners, 1)
    if testbeds % runners:
        raise ConfigError(
            f"{testbeds} testbeds for {runners} env runners",
            where="parallel.testbeds",
            remedy="set a multiple of the number of env runners",
        )
    return testbeds // runners


def _row(step: int, seconds: float, faults: int, late: int, result: dict[str, Any]) -> ParallelRow:
    learner = result.get("learners", {}).get("default_policy", {})
    runners = result.get("env_runners", {})
    losses = (float(learner.get(name, math.nan)) for name in ("policy_loss", "vf_loss", "entropy"))
    return ParallelRow(step, seconds, faults, late, float(runners.get("episode_return_mean", math.nan)), *losses)
