"""Trains a learned part of late binding with PPO on S1 to S10, and puts it to the proof.

docs/late-binding-learning.md tells what it adds; the task and its observation are in `envs.environment.holding`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.script import Script
from actuators.contract.topology import Topology
from envs.environment.holding import WINDOW_S, HoldingTask, LearnedHolding
from envs.environment.holding_env import HoldingVectorEnv
from envs.environment.study_setup import SHARED_MEMORY
from envs.mixture.fit import fit_encoder
from envs.observation.encoder import Encoder, EncoderOptions
from envs.observation.holding import MOVES, REGIME_NAMES, row_size
from envs.scenarios.catalogue import STUDY, randomised
from envs.scenarios.lookup import scenario, training_mixture
from envs.simulator.batch import SimulatedBatch
from envs.study.holding import play_moved
from envs.study.judge import WARM_UP_S, Totals, deadlines_s
from tuning.learning.curve import CurveRow
from tuning.learning.proof import LENGTH, ResidualProof, prove_by
from tuning.learning.scripts import HELD_OUT_SEED, PROOF_SEED, ScriptSource
from tuning.learning.windowed import EPISODE_STEPS, NetPolicy, WindowedTraining, train_net, untrained_net
from tuning.policy.model import EquivariantNet

EPISODE_S = (EPISODE_STEPS + 1) * WINDOW_S
_AT_ONCE = 48


def holding_task(topology: Topology, encoder: Encoder | None = None) -> HoldingTask:
    """With the deadlines of S1 in nominal conditions."""
    return HoldingTask(topology, deadlines_s(scenario("S1"), topology), encoder=encoder)


def train_holding(
    task: HoldingTask, training: WindowedTraining, seed: int, report: Callable[[CurveRow], None] = lambda row: None
) -> EquivariantNet:
    """The best network of a training on randomised S1 to S10; never uses seeds of held-out or proof episodes."""
    names = [STUDY[index % len(STUDY)] for index in range(training.look_episodes)]
    scripts = _scripts(task, names, HELD_OUT_SEED, EPISODE_S + WARM_UP_S)
    base = log_costs(task, None, scripts, EPISODE_S, training.threads)

    def score(net: EquivariantNet) -> float:
        return float((base - log_costs(task, net, scripts, EPISODE_S, training.threads)).mean())

    draws = ScriptSource(training_mixture(STUDY, EPISODE_S + WARM_UP_S), task.topology)
    config, net = {"task": task, "next_script": draws}, untrained(task, seed)
    return train_net(net, "deepsched-holding", HoldingVectorEnv, config, score, training, seed, report)


def untrained(task: HoldingTask, seed: int = 0) -> EquivariantNet:
    """A network whose actions are all 0."""
    return untrained_net(row_size(task.encoder), MOVES, seed)


def played(
    task: HoldingTask, net: EquivariantNet | None, scripts: Sequence[Script], duration_s: float, threads: int = 1
) -> Totals:
    """What came of these scripts with this network, or without one."""
    policy = None if net is None else NetPolicy(net)
    parts = [
        play_moved(task, policy, scripts[first : first + _AT_ONCE], duration_s, threads)
        for first in range(0, len(scripts), _AT_ONCE)
    ]
    columns = ((getattr(part, name) for part in parts) for name in ("counts", "seconds", "failed"))
    return Totals(*(np.concatenate(list(column)) for column in columns))


def log_costs(
    task: HoldingTask, net: EquivariantNet | None, scripts: Sequence[Script], duration_s: float, threads: int = 1
) -> FloatArray:
    """Natural logarithm of every play's J, ``[scripts]``."""
    scores = played(task, net, scripts, duration_s, threads).scores(task.deadlines_s)
    return np.log([score.index for score in scores])


def prove_holding(
    net: EquivariantNet, task: HoldingTask, training: WindowedTraining
) -> tuple[EquivariantNet, ResidualProof]:
    """As `tuning.learning.proof.prove_some`, by J, on randomised S1 to S10 twice as long as in training."""
    names = [STUDY[index % len(STUDY)] for index in range(training.proof_episodes)]
    duration_s = LENGTH * EPISODE_S
    scripts = _scripts(task, names, PROOF_SEED, duration_s + WARM_UP_S)
    base = log_costs(task, None, scripts, duration_s, training.threads)
    return prove_by(net, names, lambda some: base - log_costs(task, some, scripts, duration_s, training.threads))


def fit_regimes(topology: Topology, clusters: int, seed: int, systems: int = 128) -> Encoder:
    """A mixture over the windows of randomised S1 to S10 under late binding without anything learned."""
    task = holding_task(topology)
    draw = ScriptSource(training_mixture(STUDY, EPISODE_S + WARM_UP_S), topology)
    generator = np.random.default_rng([seed, 0x6C])
    scripts = [draw(generator) for _ in range(systems)]
    batch = SimulatedBatch(topology, systems, "late_binding", options=SHARED_MEMORY)
    for index, script in enumerate(scripts):
        batch.reset(index, script)
    holding = LearnedHolding(task, scripts)
    holding.begin(batch)
    samples = []
    for _ in range(EPISODE_STEPS):
        holding.observe(batch, batch.advance(WINDOW_S))
        samples.append(holding.regime)
    options = EncoderOptions(kind="joint", clusters=(clusters,), restarts=1, features_version=1)
    return fit_encoder(np.concatenate(samples), REGIME_NAMES, options, seed)


def _scripts(task: HoldingTask, names: Sequence[str], first: int, duration_s: float) -> list[Script]:
    return [
        randomised(scenario(name), duration_s).script(task.topology, first + index) for index, name in enumerate(names)
    ]
