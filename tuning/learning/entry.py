"""Trains a learned part of admission with PPO on family H, and puts it to the proof (docs/admission-learning.md).

The task, its observation and its environment are in `envs.environment.entry`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from actuators.contract.script import Script
from actuators.contract.topology import Topology
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
from tuning.learning.curve import CurveRow
from tuning.learning.proof import ResidualProof, prove_by
from tuning.learning.scripts import HELD_OUT_SEED, PROOF_SEED, ScriptSource
from tuning.learning.windowed import EPISODE_STEPS, NetPolicy, WindowedTraining, train_net, untrained_net
from tuning.policy.model import EquivariantNet


def train_entry(
    task: EntryTask, training: WindowedTraining, seed: int, report: Callable[[CurveRow], None] = lambda row: None
) -> EquivariantNet:
    """The best network of a training on family H; never uses seeds of held-out or proof episodes."""
    scripts = [scenario("H").script(task.topology, HELD_OUT_SEED + index) for index in range(training.look_episodes)]

    def score(net: EquivariantNet) -> float:
        return float(learned_goodput(task, net, scripts, training.threads).shares().mean())

    config = {"task": task, "next_script": ScriptSource(scenario("H"), task.topology)}
    return train_net(untrained(task, seed), "deepsched-entry", EntryVectorEnv, config, score, training, seed, report)


def untrained(task: EntryTask, seed: int = 0) -> EquivariantNet:
    """A network whose actions are all 0."""
    return untrained_net(row_size(task.encoder), 1, seed)


def learned_goodput(
    task: EntryTask, net: EquivariantNet | None, scripts: Sequence[Script], threads: int = 1
) -> Goodput:
    """Goodput over `least_conn` with this network, or without one."""
    policy = None if net is None else NetPolicy(net)
    rule = replace(RULES["least_conn"], steering=lambda: learned_steering(task, policy))
    return play_admission(rule, scripts, task.topology, None, interval_s=WINDOW_S, threads=threads)


def prove_entry(
    net: EquivariantNet, task: EntryTask, training: WindowedTraining
) -> tuple[EquivariantNet, ResidualProof]:
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
