"""One trial of a sweep: fits a mixture, trains, validates after every iteration and saves a bundle.

The driver of a sweep also imports this module. RLlib and torch take 6 s to import, so only trials import them.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.registry import register_env

from actuators.contract.arrays import FloatArray
from actuators.contract.script import Scenario
from actuators.contract.topology import Topology
from actuators.errors import DataError
from actuators.files import write_json
from envs.environment.phase import Observed, Watched, fit_problem
from envs.environment.vector_env import SimulatedVectorEnv
from envs.scenarios.lookup import training_mixture
from tuning.learning.scripts import ScriptSource
from tuning.live.metrics import TrialMetrics
from tuning.live.vector_env import make_environment
from tuning.policy.bundle import Bundle
from tuning.search.live_trial import LiveShare, LiveTrial
from tuning.search.space import TrialOptions, apply, structure

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    from tuning.learning.algorithm import Setting
    from tuning.learning.scoring import Validation
    from tuning.options import AlgorithmOptions, ModelOptions
    from tuning.policy.model import EquivariantNet

_ENVIRONMENT, _LIVE = "deepsched-trial", "deepsched-live-trial"
CHECKPOINT, BUNDLE, STATE = "algorithm", "bundle", "trial.json"
_LATE = ("tuning.learning.algorithm", "tuning.learning.scoring", "sklearn.mixture", "sklearn.metrics")


def import_all() -> None:
    """What a trial needs, ahead of time."""
    for name in _LATE:
        importlib.import_module(name)


@dataclass(frozen=True, eq=False)
class Shared:
    """Settings that all trials share; stored once in Ray's object store.

    Attributes:
        windows: windows of the observation phase, to which every trial fits a mixture.
        work_scale: factor on the work of the training scenarios.
        validation: scenario on which every trial is validated.
        validation_episodes: number of simulated validation episodes.
        first_episode: number of the first of them, from which their scripts follow.
        validation_s: simulated seconds per validation episode.
        live: settings of live testbeds; None trains on simulated ones.
        deadlines_s: ``[groups]`` of a recorded system; None derives them from the windows.
        provenance: provenance of the sweep, stored in the bundles.
    """

    windows: Watched
    topology: Topology
    base: TrialOptions
    work_scale: float
    validation: Scenario
    validation_episodes: int
    validation_s: float
    seed: int
    provenance: dict[str, Any]
    live: LiveShare | None = None
    deadlines_s: FloatArray | None = None
    first_episode: int = 0


def configured(options: AlgorithmOptions, model: ModelOptions, setting: Setting) -> AlgorithmConfig:
    """`tuning.learning.algorithm.algorithm_config`, imported when it is called."""
    from tuning.learning.algorithm import algorithm_config  # noqa: PLC0415 - as this file says

    return algorithm_config(options, model, setting)


class SweepTrial(tune.Trainable):
    """RLlib's algorithm under Tune's class interface; `config` maps dotted option paths to values."""

    @property
    def values(self) -> dict[str, Any]:
        """What this trial tries: dotted option path → value."""
        config: dict[str, Any] = self.config
        return config

    def setup(self, config: dict[str, Any], shared: Shared | None = None) -> None:
        """Builds the trial from the configuration. Tune calls it, with `shared` from the object store."""
        import torch  # noqa: PLC0415 - as this file says

        from tuning.learning.scoring import Validator  # noqa: PLC0415 - as this file says

        assert shared is not None
        self._shared = shared
        torch.set_num_threads(1)
        self._options = options = apply(shared.base, config)
        self._observed = self._fit()
        self._live, self._validator = None, None
        if shared.live is None:
            self._validator = Validator(
                self._observed.problem,
                shared.validation,
                options.training,
                shared.validation_episodes,
                shared.validation_s,
                shared.first_episode,
            )
        else:
            name, method = self.trial_name or "trial", options.training.method
            self._live = LiveTrial(shared.live, name, shared.topology, method, shared.seed)
            self._live.watch_reference(self._observed.problem, options.training.interval_s)
        self._metrics = TrialMetrics()
        self._steps = 0
        self._build(None)

    def step(self) -> dict[str, Any]:
        """Runs one training iteration and validates the network."""
        from tuning.learning.curve import TERMS  # noqa: PLC0415 - as this file says

        result = self._algorithm.train()
        self._steps = self._before + int(result["num_env_steps_sampled_lifetime"])
        sampled = result.get("env_runners", {})
        found = self._validate(sampled.get(TERMS, {}))
        self._metrics.report(found.score, self._steps)
        encoder = self._observed.problem.encoder
        return {
            "score": found.score,
            "art_per_request": found.art_per_request,
            "error_ratio": found.error_ratio,
            "steps_trained": self._steps,
            "episode_return": float(sampled.get("episode_return_mean", float("nan"))),
            "clusters": encoder.clusters,
            "bic": encoder.bic[encoder.clusters],
            "deadlines_ms": (self._observed.deadlines.seconds * 1e3).round(3).tolist(),
            tune.result.DONE: self._steps >= self._options.training.steps,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes RLlib's checkpoint, the bundle and the configuration that they belong to."""
        folder = Path(checkpoint_dir).absolute()
        self._algorithm.save_to_path(str(folder / CHECKPOINT))
        training = self._options.training
        own = {
            "trial": self.trial_name,
            "options": self.values,
            "steps": self._steps,
            "method": training.method,
            "interval_s": training.interval_s,
        }
        provenance = {**self._shared.provenance, **own}
        Bundle(self._net(), self._observed.problem, training.network, provenance).save(folder / BUNDLE)
        write_json(folder / STATE, {"config": self.values, "steps": self._steps})

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Resumes from a checkpoint; takes only the network if its hyperparameters differ (PBT).

        Raises:
            DataError: the checkpoint belongs to another problem or network; it might load with another meaning.
        """
        from tuning.learning.algorithm import module_path  # noqa: PLC0415 - as this file says

        folder = Path(checkpoint_dir).absolute()
        state = json.loads((folder / STATE).read_bytes())
        own = json.loads(json.dumps(self.values))
        if structure(state["config"]) != structure(own):
            raise DataError(
                "the checkpoint has another structure",
                where=str(folder),
                evidence=f"{structure(state['config'])} where this trial has {structure(own)}",
            )
        self._steps = state["steps"]
        if state["config"] == own:
            self._algorithm.restore_from_path(str(folder / CHECKPOINT))
            self._before = 0
        else:
            # A restored optimiser would keep its old learning rate.
            self._algorithm.stop()
            self._build(module_path(folder / CHECKPOINT))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts another trial in the same process, which saves 10 s of imports."""
        self.cleanup()
        self.config = new_config
        # `tune.with_parameters` replaces `setup` by one that takes no `shared`.
        SweepTrial.setup(self, new_config, self._shared)
        return True

    def cleanup(self) -> None:
        """Stops the algorithm, then closes the testbeds."""
        self._algorithm.stop()
        if self._live is not None:
            self._live.close()

    def _validate(self, terms: Mapping[str, float]) -> Validation:
        if self._live is not None:
            return self._live.validation(terms)
        assert self._validator is not None
        return self._validator.judge(self._net())

    def _fit(self) -> Observed:
        shared, options = self._shared, self._options
        decision = options.training.decision
        return fit_problem(shared.windows, shared.topology, decision, options.encoder, shared.seed, shared.deadlines_s)

    def _build(self, load_module: Path | None) -> None:
        from tuning.learning.algorithm import Setting  # noqa: PLC0415 - as this file says

        options = self._options.training
        # After a restart the environment must not repeat its random numbers.
        seed = self._shared.seed + self._steps
        environment, env_config, testbeds = self._environment(seed)
        setting = Setting(
            environment=environment,
            env_config=env_config,
            groups=self._observed.problem.topology.shape[0],
            num_envs=testbeds,
            native_vector=True,
            interval_s=options.interval_s if self._live else 0.0,
            seed=seed,
            action=self._observed.problem.options.action,
            load_module=load_module,
        )
        self._before = self._steps
        self._algorithm: Algorithm = configured(options.algorithm, options.network, setting).build_algo()

    def _environment(self, seed: int) -> tuple[str, dict[str, Any], int]:
        """Name in RLlib's registry, configuration, and number of testbeds."""
        options, problem, shared = self._options.training, self._observed.problem, self._shared
        if self._live is not None:
            assert shared.live is not None
            register_env(_LIVE, make_environment)
            config = self._live.environment(problem, options.interval_s, options.episode_steps)
            return _LIVE, {**config, "seed": seed}, shared.live.testbeds
        register_env(_ENVIRONMENT, _make)
        scenario = training_mixture(options.scenarios, options.script_s, shared.work_scale)
        config = {
            "problem": problem,
            "next_script": ScriptSource(scenario, problem.topology),
            "method": options.method,
            "interval_s": options.interval_s,
            "episode_steps": options.episode_steps,
            "seed": seed,
            "paired": options.paired,
        }
        return _ENVIRONMENT, config, options.environments

    def _net(self) -> EquivariantNet:
        net: EquivariantNet = self._algorithm.learner_group._learner.module["default_policy"].policy_net()
        return net


def _make(context: dict[str, Any]) -> SimulatedVectorEnv:
    config = dict(context)
    return SimulatedVectorEnv(config.pop("problem"), config.pop("num_envs"), config.pop("next_script"), **config)
