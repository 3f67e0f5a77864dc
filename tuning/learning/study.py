"""Trains policies on the scenarios of docs/studies.md#scenarios; `envs.study.judge` compares them with baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from actuators.contract.control import BalancingMethod
from actuators.contract.topology import Topology
from envs.environment.problem import DecisionOptions, DecisionProblem
from envs.environment.study_setup import PLAIN, SHARED_MEMORY
from envs.mixture.fit import fit_encoder
from envs.observation.encoder import EncoderOptions
from envs.observation.observer import Observer, sample_names, samples_of
from envs.scenarios.catalogue import STUDY, Rotation, randomised
from envs.scenarios.lookup import scenario, training_mixture
from envs.simulator.batch import SimulatedBatch, SimulationOptions
from envs.study.judge import deadlines_s
from envs.study.rules import Rule, policy_steering
from tuning.learning.proof import ResidualProof
from tuning.learning.scripts import HELD_OUT_SEED
from tuning.learning.trainer import CurveRow, Trainer
from tuning.options import AlgorithmOptions, HeldOutOptions, ImitationOptions, TrainingOptions
from tuning.policy.learned import LearnedPolicy
from tuning.policy.model import EquivariantNet

_OBSERVED_STEPS = 60
_ROWS_PER_SCENARIO = 2


@dataclass(frozen=True)
class TrainingArm:
    """One policy to train: its observation and action, balancing method, scenarios and training length."""

    name: str
    decision: DecisionOptions
    method: BalancingMethod
    scenarios: tuple[str, ...] = STUDY
    steps: int = 40_000
    clusters: int = 8
    imitation_steps: int = 0
    algorithm: AlgorithmOptions = field(default_factory=AlgorithmOptions)
    paired: bool = False
    proof_episodes: int = 0
    work_scale: float | None = None
    """Factor on the work of every request, as on the testbed where the policy is to act; None: the scenarios' own."""

    @property
    def simulation(self) -> SimulationOptions:
        """Simulated NGINX settings for this method (docs/studies.md#how-the-studies-simulate)."""
        return SHARED_MEMORY if self.method == "expected_delay" else PLAIN


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained arm and the rules made of it."""

    arm: TrainingArm
    problem: DecisionProblem
    net: EquivariantNet
    curve: Sequence[CurveRow]
    proof: ResidualProof | None = None

    @property
    def rule(self) -> Rule:
        """The rule for the topology that the arm was trained on."""
        return self.rule_on(self.problem.topology)

    def rule_on(self, topology: Topology) -> Rule:
        """The rule for another topology, with any number of servers."""
        problem = replace(self.problem, topology=topology)
        policy = LearnedPolicy(self.net, problem)
        return Rule(self.arm.name, self.arm.method, lambda: policy_steering(policy, problem), self.arm.simulation)


def train(
    arm: TrainingArm,
    topology: Topology,
    seed: int,
    folder: Path,
    *,
    report: Callable[[CurveRow, int], None] = lambda row, steps: None,
    held_out: bool = True,
) -> Trained:
    """Observes the arm's scenarios, fits the mixture and trains; never uses the seeds of the evaluation."""
    problem = study_problem(arm, topology, seed)
    options = TrainingOptions(
        steps=arm.steps,
        environments=24,
        episode_steps=100,
        algorithm=arm.algorithm,
        method=arm.method,
        decision=arm.decision,
        paired=arm.paired,
        proof_episodes=arm.proof_episodes,
        held_out=HeldOutOptions(
            every_steps=max(arm.steps // 6, 1) if held_out else 0, patience=6, episodes=2 * len(set(arm.scenarios))
        ),
        imitation=ImitationOptions(steps=arm.imitation_steps),
        checkpoint_steps=arm.steps,
    )
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(problem, options, folder, seed, report, arm.simulation)
    mixture = training_mixture(arm.scenarios, duration_s=110.0, work_scale=arm.work_scale)
    # Early stopping plays every scenario equally often.
    held_out_scenarios = Rotation(tuple(dict.fromkeys(mixture.scenarios)), HELD_OUT_SEED)
    trainer.train_simulated(mixture, held_out_scenarios)
    return Trained(arm, problem, trainer.net(), trainer.curve, trainer.proof)


def study_problem(arm: TrainingArm, topology: Topology, seed: int) -> DecisionProblem:
    """Problem with the deadlines of nominal S1 and a mixture of `arm.clusters`, fitted under weights from {1, 3, 5}."""
    deadline_s = deadlines_s(scenario("S1", work_scale=arm.work_scale), topology)
    scripts = [
        randomised(scenario(name, work_scale=arm.work_scale), _OBSERVED_STEPS + 1.0).script(
            topology, 10_000 * (seed + 1) + row
        )
        for name in dict.fromkeys(arm.scenarios)
        for row in range(max(_ROWS_PER_SCENARIO, 12 // len(arm.scenarios)))
    ]
    batch = SimulatedBatch(topology, len(scripts), arm.method, options=arm.simulation)
    for row, script in enumerate(scripts):
        batch.reset(row, script)
    observer = Observer(topology, deadline_s, None, (len(scripts),))
    generator = np.random.default_rng(seed)
    seen = []
    for step in range(_OBSERVED_STEPS):
        if step % 5 == 0:
            batch.set_weights(generator.choice([1, 3, 5], (len(scripts), *topology.shape)))
        window = batch.advance(1.0)
        seen.append(observer.observe(window, 1.0, window.weight).features)
    names = sample_names(topology, "server")
    samples = samples_of(np.array(seen), "server").reshape(-1, len(names))
    encoder = fit_encoder(samples, names, EncoderOptions(clusters=(arm.clusters,), restarts=1), seed)
    return DecisionProblem(topology, deadline_s, encoder, arm.decision)
