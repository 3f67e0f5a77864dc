"""The training loop, on simulated testbeds and then on a live one: curve, checkpoints, network."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.tune.registry import register_env
from safetensors.torch import load_file, save
from torch.utils.tensorboard import SummaryWriter

from actuators.contract.script import Scenario
from actuators.files import write_atomic, write_json
from envs.environment.problem import DecisionProblem
from envs.environment.vector_env import SimulatedVectorEnv
from envs.simulator.testbed import SimulationOptions
from tuning.learning.algorithm import (
    UPDATES_PER_ITERATION,
    Setting,
    algorithm_config,
    check,
    check_room,
    module_path,
)
from tuning.learning.curve import EPISODES, CurveRow, as_csv, read_csv, row_of
from tuning.learning.imitation import imitate
from tuning.learning.proof import ResidualProof, check_episodes, prove_some
from tuning.learning.replay import load_replay, save_replay
from tuning.learning.scoring import Best, HeldOut
from tuning.learning.scripts import ScriptSource
from tuning.options import OFF_POLICY, AlgorithmOptions, RunnerOptions, TrainingOptions
from tuning.policy.model import EquivariantNet, net_for


@dataclass(frozen=True)
class Saved:
    """A checkpoint of a run: its phase, the steps done in it, RLlib's folder, the best network so far.

    Attributes:
        planned: steps that the phase was to have.
    """

    phase: str
    step: int
    planned: int
    finished: bool
    path: Path
    best: Best


class Checkpoints:
    """Checkpoints in `folder`; `PHASE.json` names the newest one and is replaced only when that is complete.

    A checkpoint never overwrites another: a kill leaves the old one or the new one whole.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def save(self, algo: Algorithm, phase: _Phase, step: int, best: Best, *, finished: bool) -> Path:
        """Saves a checkpoint, deletes older ones of the phase and returns the folder that RLlib restores from."""
        name = phase.name
        target = self._new_folder(f"{name}-{step}")
        algo.save_to_path(str(target))
        if phase.algorithm.name in OFF_POLICY:
            save_replay(algo, target)
        if best.state:
            write_atomic(self._folder / f"{target.name}-best.safetensors", save(best.state))
        state = {"phase": name, "step": step, "planned": phase.steps, "finished": finished, "path": target.name}
        state |= {"best_score": best.score, "looks_since": best.looks_since} if best.state else {}
        write_json(self._folder / f"{name}.json", state)
        for old in self._folder.glob(f"{name}*"):
            if old.name not in (f"{name}.json", target.name, f"{target.name}-best.safetensors"):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        return target

    def latest(self, phase: str) -> Saved | None:
        """The newest checkpoint of a phase, or None."""
        path = self._folder / f"{phase}.json"
        if not path.exists():
            return None
        state = json.loads(path.read_bytes())
        best = Best()
        if "best_score" in state:
            tensors = load_file(self._folder / f"{state['path']}-best.safetensors")
            best = Best(state["best_score"], state["looks_since"], tensors)
        step, path = state["step"], self._folder / state["path"]
        # Checkpoints of 0.1 lack the planned steps.
        return Saved(state["phase"], step, state.get("planned", step), state["finished"], path, best)

    def _new_folder(self, name: str) -> Path:
        """One that no checkpoint is in, and no rest of one."""
        number = 1
        while True:
            path = self._folder / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(parents=True)
                return path
            except FileExistsError:
                number += 1


__all__ = ["CurveRow", "Trainer"]

_SIMULATED, _LIVE = "deepsched-simulated", "deepsched-live"
_live_environments: dict[str, Callable[[], gym.Env[Any, Any]]] = {}


class Trainer:
    """Trains one network in phases; every phase starts from the checkpoint of the previous one.

    Args:
        folder: run folder; receives `checkpoints/`, `episodes.jsonl`, `progress.csv` and TensorBoard events.
        report: called after every iteration with the row and the steps of the phase.
        simulation: options of the simulated testbeds; None for the defaults.
        start: network of this problem to start from; None starts from an untrained one.

    Raises:
        ConfigError: the algorithm does not support the problem's action kind.
    """

    def __init__(
        self,
        problem: DecisionProblem,
        options: TrainingOptions,
        folder: Path,
        seed: int,
        report: Callable[[CurveRow, int], None] = lambda row, steps: None,
        simulation: SimulationOptions | None = None,
        start: EquivariantNet | None = None,
    ) -> None:
        check(options.algorithm, problem.options.action)
        squashed = options.algorithm.name in ("sac", "cql")
        model = options.model.model_copy(update={"squashed": squashed})
        self.options = options.model_copy(update={"model": model})
        self.problem, self.folder, self.seed = problem, folder, seed
        self.curve: list[CurveRow] = []
        self.checkpoint: Path | None = None
        self.proof: ResidualProof | None = None
        self.report = report
        self._simulation = simulation
        self._scenario: Scenario | None = None
        self._checkpoints = Checkpoints(folder / "checkpoints")
        with torch.random.fork_rng(devices=[]):
            # Imitation starts from these parameters, so they must depend on the run's seed only.
            torch.manual_seed(seed)
            self._net = net_for(problem, model)
        self._begun = start is not None
        if start is not None:
            self._net.load_state_dict(start.state_dict())

    def train_simulated(self, scenario: Scenario, held_out: Scenario | None = None) -> None:
        """Trains on `options.environments` simulated testbeds for `options.steps` steps, a new script per episode.

        Resumes from the newest checkpoint in `folder`, if there is one, on new episodes. Where early stopping ended the
        training, it resumes only if `options.steps` are more than then; the patience begins anew.

        Args:
            scenario: scenario that the scripts are drawn from.
            held_out: scenario of the early-stopping episodes, `scenario` when None; their seeds are never trained on.

        Raises:
            ConfigError: see `tuning.learning.proof.check_episodes` and `tuning.learning.algorithm.algorithm_config`.
            TestbedError: no step arrives from the env runners (`tuning.learning.stall`).
        """
        check_episodes(self.options.proof_episodes, scenario)
        options, saved = self.options, self._checkpoints.latest("simulated")
        register_env(_SIMULATED, _make_simulated)
        env_config = {
            "problem": self.problem,
            "next_script": ScriptSource(scenario, self.problem.topology),
            "method": options.method,
            "interval_s": options.interval_s,
            "episode_steps": options.episode_steps,
            "seed": self.seed,
            "simulation": self._simulation,
            "paired": options.paired,
            "threads": options.threads,
            EPISODES: str(self.folder / "episodes.jsonl"),
        }
        judge = HeldOut(self.problem, held_out or scenario, options, self._simulation)
        phase = _Phase(
            "simulated", _SIMULATED, env_config, options.algorithm, options.environments, options.steps, 0.0,
            options.runners,
        )  # fmt: skip
        self._run(phase, judge if options.held_out.every_steps else None, saved)

    def train_live(self, make_env: Callable[[], gym.Env[Any, Any]], steps: int, algorithm: AlgorithmOptions) -> None:
        """Trains on one live testbed from the last checkpoint; the caller closes the testbed."""
        register_env(_LIVE, _make_live)
        key = str(self.folder)
        _live_environments[key] = make_env
        try:
            self._run(_Phase("live", _LIVE, {"key": key}, algorithm, 1, steps, self.options.interval_s))
        finally:
            del _live_environments[key]

    def net(self) -> EquivariantNet:
        """The trained network: the best one on the held-out episodes if early stopping is on, else the last one."""
        return self._net

    def prove(self) -> None:
        """Keeps the largest part of the residual that is proven in simulation, where that was asked for
        (`proof_episodes`). Every phase of training ends with it; after live training elsewhere it is called again.
        """
        if self.options.proof_episodes and self._scenario is not None:
            proven, self.proof = prove_some(self._net, self.problem, self._scenario, self.options, self._simulation)
            write_json(self.folder / "proof.json", self.proof.to_json())
            self._net.load_state_dict(proven.state_dict())

    def _run(self, phase: _Phase, judge: HeldOut | None = None, saved: Saved | None = None) -> None:
        with self._built(phase, saved) as algo, SummaryWriter(str(self.folder)) as events:
            if saved is None and phase.name == "simulated":
                self._imitate(algo)
            progress = _Progress(0, Best()) if saved is None else _Progress(saved.step, saved.best)
            if saved is not None and saved.finished and phase.steps > saved.planned:
                progress.best.looks_since = 0
            if judge is not None and saved is None and phase.steps >= self.options.held_out.every_steps:
                self._look(algo, judge, progress)
            while progress.step < phase.steps and progress.best.looks_since < self.options.held_out.patience:
                self._iterate(algo, phase, progress, judge, events)
            read_net(algo, self._net)
            if progress.best.state:
                self._net.load_state_dict(progress.best.state)
                _write(algo, self._net)
            # What goes on from here, with more steps or live, goes on from what was learned, not from what was proven.
            self.checkpoint = self._checkpoints.save(algo, phase, progress.step, progress.best, finished=True)
            if phase.name == "simulated":
                self._scenario = phase.env_config["next_script"].scenario
        self.prove()

    def _iterate(
        self, algo: Algorithm, phase: _Phase, progress: _Progress, judge: HeldOut | None, events: SummaryWriter
    ) -> None:
        before, result = progress.step, algo.train()
        if phase.algorithm.offline:
            progress.step += UPDATES_PER_ITERATION * phase.algorithm.batch_steps
        else:
            progress.step = int(result["num_env_steps_sampled_lifetime"])
        held_out = math.nan
        if judge is not None and _passed(before, progress.step, self.options.held_out.every_steps):
            held_out = self._look(algo, judge, progress)
        self._note(row_of(phase.name, progress.step, result, held_out), phase.steps, events)
        if _passed(before, progress.step, self.options.checkpoint_steps) and progress.step < phase.steps:
            self._checkpoints.save(algo, phase, progress.step, progress.best, finished=False)

    def _imitate(self, algo: Algorithm) -> None:
        if self.options.imitation.steps:
            config = algo.config.env_config
            imitate(self._net, self.problem, config["next_script"], self.options, self.seed)
        if self.options.imitation.steps or self._begun:
            _write(algo, self._net)

    def _look(self, algo: Algorithm, judge: HeldOut, progress: _Progress) -> float:
        score = judge.score(read_net(algo, self._net))
        progress.best.offer(score, self._net)
        return score

    def _note(self, row: CurveRow, steps: int, events: SummaryWriter) -> None:
        self.curve.append(row)
        for name, value in row.numbers():
            if math.isfinite(value):
                events.add_scalar(f"{row.phase}/{name}", value, row.step)
        write_atomic(self.folder / "progress.csv", as_csv(self.curve))
        self.report(row, steps)

    @contextmanager
    def _built(self, phase: _Phase, saved: Saved | None) -> Iterator[Algorithm]:
        setting = Setting(
            environment=phase.environment,
            env_config=phase.env_config,
            groups=self.problem.topology.shape[0],
            num_envs=phase.num_envs,
            native_vector=phase.environment == _SIMULATED,
            interval_s=phase.interval_s,
            # A resumed run must not repeat earlier episodes.
            seed=self.seed + (0 if saved is None else saved.step),
            action=self.problem.options.action,
            problem=self.problem,
            runners=phase.runners,
            load_module=None if self.checkpoint is None else module_path(self.checkpoint),
            simulated_s=self.options.interval_s if phase.environment == _SIMULATED else 0.0,
        )
        # The network is tiny: a second thread does not help, and on a busy machine it is ten times slower.
        torch.set_num_threads(1)
        check_room(phase.runners)
        algo = algorithm_config(phase.algorithm, self.options.model, setting).build_algo()
        try:
            if saved is not None:
                algo.restore_from_path(str(saved.path))
                if phase.algorithm.name in OFF_POLICY:
                    load_replay(algo, saved.path)
                self.curve = [row for row in read_csv(self.folder / "progress.csv") if row.step <= saved.step]
            yield algo
        finally:
            algo.stop()


@dataclass(frozen=True)
class _Phase:
    """One training run in an environment, starting from the checkpoint of the previous phase.

    Attributes:
        environment: name in RLlib's registry.
        env_config: configuration of that environment.
        interval_s: real seconds per step, 0 when simulated.
        runners: further processes.
    """

    name: str
    environment: str
    env_config: dict[str, Any]
    algorithm: AlgorithmOptions
    num_envs: int
    steps: int
    interval_s: float
    runners: RunnerOptions = field(default_factory=RunnerOptions)


@dataclass
class _Progress:
    step: int
    best: Best


def _passed(before: int, now: int, every: int) -> bool:
    return every > 0 and before // every < now // every


def read_net(algo: Algorithm, net: EquivariantNet) -> EquivariantNet:
    """Copies the learner's current parameters to `net`."""
    # Several learners have the same parameters.
    first, *_ = algo.learner_group.foreach_learner(lambda learner: _learners_net(learner).state_dict())
    net.load_state_dict(first.get())
    return net


def _write(algo: Algorithm, net: EquivariantNet) -> None:
    """Copies the parameters of `net` to the learner and the env runners, of which offline algorithms have none."""
    state = net.state_dict()
    algo.learner_group.foreach_learner(lambda learner: _learners_net(learner).load_state_dict(state))
    if algo.env_runner_group is not None:
        algo.env_runner_group.sync_weights(from_worker_or_learner_group=algo.learner_group)


def _learners_net(learner: Any) -> EquivariantNet:
    net: EquivariantNet = learner.module["default_policy"].unwrapped().policy_net()
    return net


def _make_simulated(context: dict[str, Any]) -> SimulatedVectorEnv:
    config = dict(context)
    config.pop(EPISODES, None)
    return SimulatedVectorEnv(config.pop("problem"), config.pop("num_envs"), config.pop("next_script"), **config)


def _make_live(context: dict[str, Any]) -> gym.Env[Any, Any]:
    # The environment holds a testbed of this process, so it cannot be pickled into the config.
    return _live_environments[context["key"]]()
