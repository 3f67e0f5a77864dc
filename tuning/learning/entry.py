"""Trains a learned part of admission with PPO on family H, and puts it to the proof (docs/admission-learning.md).

The task, its observation and its environment are in `envs.environment.entry`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.tune.registry import register_env

from actuators.contract.arrays import FloatArray
from actuators.contract.script import Script
from actuators.contract.topology import Topology
from envs.environment.actions import ActionOptions
from envs.environment.entry import WINDOW_S, EntryTask, LearnedEntry
from envs.environment.entry_env import EntryVectorEnv
from envs.mixture.fit import fit_encoder
from envs.observation.encoder import Encoder, EncoderOptions
from envs.observation.entry import REGIME_NAMES, row_size
from envs.scenarios.family import KINDS
from envs.scenarios.lookup import scenario
from envs.simulator.batch import SimulatedBatch
from envs.study.entry import learned_steering
from envs.study.goodput import Goodput, play_admission
from envs.study.rules import RULES
from tuning.learning.algorithm import Setting, algorithm_config
from tuning.learning.curve import CurveRow, row_of
from tuning.learning.proof import ResidualProof, prove_by
from tuning.learning.scoring import Best
from tuning.learning.scripts import HELD_OUT_SEED, PROOF_SEED, ScriptSource
from tuning.learning.trainer import read_net
from tuning.options import AlgorithmOptions, ModelOptions
from tuning.policy.model import EquivariantNet

ENVIRONMENTS, EPISODE_STEPS = 64, 99
_NAME = "deepsched-entry"
_MODEL = ModelOptions(hidden=16, initial_log_std=-1.4)
_ALGORITHM = AlgorithmOptions(
    learning_rate=2e-3, discount=0.95, gae_lambda=0.9, epochs=4, batch_steps=ENVIRONMENTS * EPISODE_STEPS,
    minibatch_steps=1056,
)  # fmt: skip


@dataclass(frozen=True)
class EntryTraining:
    """How long is trained, and on how many episodes it is judged.

    Attributes:
        iterations: of 64 episodes each.
        look_every: iterations between two plays of the `look_episodes`; the best network on them is kept.
        proof_episodes: shared equally by the kinds of family H.
    """

    iterations: int = 50
    look_every: int = 10
    look_episodes: int = 96
    proof_episodes: int = 1600
    threads: int = 1


class NetPolicy:
    """A network of admission, without exploration."""

    def __init__(self, net: EquivariantNet) -> None:
        self._net = net

    def actions(self, rows: NDArray[np.float32]) -> FloatArray:
        """Rows ``[n, groups, row]`` → actions ``[n, groups]``."""
        return self._net.outputs(rows)[..., 0].astype(np.float64)


def train_entry(
    task: EntryTask, training: EntryTraining, seed: int, report: Callable[[CurveRow], None] = lambda row: None
) -> EquivariantNet:
    """The best network of a training on family H; never uses seeds of held-out or proof episodes."""
    net = untrained(task, seed)
    register_env(_NAME, _make)
    setting = Setting(
        environment=_NAME,
        env_config={
            "task": task, "next_script": ScriptSource(scenario("H"), task.topology), "seed": seed,
            "episode_steps": EPISODE_STEPS, "threads": training.threads,
        },
        groups=1, num_envs=ENVIRONMENTS, native_vector=True, interval_s=0.0, seed=seed, action=ActionOptions(),
    )  # fmt: skip
    scripts = [scenario("H").script(task.topology, HELD_OUT_SEED + index) for index in range(training.look_episodes)]
    # The network is tiny: a second thread does not help, and on a busy machine it is ten times slower.
    torch.set_num_threads(1)
    algo = algorithm_config(_ALGORITHM, _MODEL, setting).build_algo()
    try:
        return _best(algo, net, task, training, scripts, report)
    finally:
        algo.stop()


def untrained(task: EntryTask, seed: int = 0) -> EquivariantNet:
    """A network whose actions are all 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EquivariantNet(row_size(task.encoder), 1, _MODEL)


def learned_goodput(
    task: EntryTask, net: EquivariantNet | None, scripts: Sequence[Script], threads: int = 1
) -> Goodput:
    """Goodput over `least_conn` with this network, or without one."""
    policy = None if net is None else NetPolicy(net)
    rule = replace(RULES["least_conn"], steering=lambda: learned_steering(task, policy))
    return play_admission(rule, scripts, task.topology, None, interval_s=WINDOW_S, threads=threads)


def prove_entry(net: EquivariantNet, task: EntryTask, training: EntryTraining) -> tuple[EquivariantNet, ResidualProof]:
    """As `tuning.learning.proof.prove_some`, by goodput: no kind of family H may lose more than 0.2 points."""
    kinds = [KINDS[index % len(KINDS)] for index in range(training.proof_episodes)]
    scripts = [
        scenario(f"H-{kind}").script(task.topology, PROOF_SEED + index) for index, kind in enumerate(kinds)
    ]  # fmt: skip
    base = learned_goodput(task, None, scripts, training.threads).shares()
    return prove_by(net, kinds, lambda some: learned_goodput(task, some, scripts, training.threads).shares() - base)


def fit_regimes(topology: Topology, clusters: int, seed: int, systems: int = 128) -> Encoder:
    """A mixture over the windows of family H under `aimd_thresh` without anything learned."""
    task = EntryTask(topology)
    draw, generator = ScriptSource(scenario("H"), topology), np.random.default_rng([seed, 0x6D])
    scripts = [draw(generator) for _ in range(systems)]
    batch = SimulatedBatch(topology, systems, "least_conn", options=RULES["least_conn"].options)
    for index, script in enumerate(scripts):
        batch.reset(index, script)
    entry = LearnedEntry(task, scripts)
    entry.begin(batch)
    samples = []
    for _ in range(EPISODE_STEPS):
        entry.observe(batch.advance(WINDOW_S))
        samples.append(entry.regime)
    options = EncoderOptions(kind="joint", clusters=(clusters,), restarts=1, features_version=1)
    return fit_encoder(np.concatenate(samples), REGIME_NAMES, options, seed)


def _best(
    algo: Algorithm, net: EquivariantNet, task: EntryTask, training: EntryTraining, scripts: Sequence[Script],
    report: Callable[[CurveRow], None],
) -> EquivariantNet:  # fmt: skip
    best, score = Best(), np.nan
    for number in range(training.iterations + 1):
        if number % training.look_every == 0:
            score = float(learned_goodput(task, read_net(algo, net), scripts, training.threads).shares().mean())
            best.offer(score, net)
        if number < training.iterations:
            result = algo.train()
            report(row_of("simulated", int(result["num_env_steps_sampled_lifetime"]), result, score))
    net.load_state_dict(best.state)
    return net


def _make(context: dict[str, object]) -> EntryVectorEnv:
    config = dict(context)
    return EntryVectorEnv(config.pop("task"), config.pop("num_envs"), config.pop("next_script"), **config)  # type: ignore[arg-type]
