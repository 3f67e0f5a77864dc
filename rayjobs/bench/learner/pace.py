"""Environment steps, training steps and decisions, each beside the same without our part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from actuators.contract.topology import social_network
from envs.environment.problem import DecisionOptions, DecisionProblem
from envs.environment.vector_env import SimulatedVectorEnv
from envs.heuristics.weights import InverseLatency
from envs.observation.observer import Observation
from envs.scenarios.lookup import training_mixture
from envs.simulator.batch import SimulatedBatch
from rayjobs.bench.parts.bars import Bar, BenchContext, at_most, figure
from rayjobs.bench.parts.serve import some_windows
from tuning.learning.scripts import ScriptSource
from tuning.learning.study import TrainingArm, study_problem, train
from tuning.options import AlgorithmOptions, ModelOptions
from tuning.policy.learned import LearnedPolicy
from tuning.policy.model import net_for

TOPOLOGY = social_network()
ARM = TrainingArm("learner", DecisionOptions(), "least_conn", ("S2",))
"""S2 randomised asks for about 1300 requests a second."""
ENVIRONMENTS = 24
BATCH_STEPS = 1200


def measure(context: BenchContext) -> Sequence[Bar]:
    """Environment steps, training step, policy inference (docs/results.md#bench-learner)."""
    problem = study_problem(ARM, TOPOLOGY, context.seed)
    return [*_environment(context, problem), *_training(context), *_inference(context, problem)]


def _environment(context: BenchContext, problem: DecisionProblem) -> Iterator[Bar]:
    ticks, repeats = (30, 3) if context.quick else (100, 7)
    whole, alone = [], []
    for repeat in range(repeats):
        whole.append(_env_rate(problem, context.seed + repeat, ticks))
        alone.append(_simulator_rate(context.seed + repeat, ticks))
    how = f"{ENVIRONMENTS} testbeds at once, 1 s each at about 1300 requests/s, median of {repeats} turns by turns"
    yield figure(
        "environment steps: simulation, mixture, observation, reward", float(np.median(whole)), "per s", how=how,
        reference=f"the simulator alone {np.median(alone):.0f}",
    )  # fmt: skip


def _env_rate(problem: DecisionProblem, seed: int, ticks: int) -> float:
    source = ScriptSource(training_mixture(ARM.scenarios, duration_s=ticks + 10.0), TOPOLOGY)
    env = SimulatedVectorEnv(problem, ENVIRONMENTS, source, seed=seed, episode_steps=ticks + 5)
    env.reset()
    actions = np.zeros((ENVIRONMENTS, *problem.action_space.shape))
    return _rate(lambda: env.step(actions), ticks)


def _simulator_rate(seed: int, ticks: int) -> float:
    batch = SimulatedBatch(TOPOLOGY, ENVIRONMENTS, ARM.method)
    source = ScriptSource(training_mixture(ARM.scenarios, duration_s=ticks + 10.0), TOPOLOGY)
    generator = np.random.default_rng(seed)
    for index in range(ENVIRONMENTS):
        batch.reset(index, source(generator))
    batch.advance(1.0)
    return _rate(lambda: batch.advance(1.0), ticks)


def _rate(step: Callable[[], object], ticks: int) -> float:
    began_s = time.perf_counter()
    for _ in range(ticks):
        step()
    return ENVIRONMENTS * ticks / (time.perf_counter() - began_s)


def _training(context: BenchContext) -> Iterator[Bar]:
    from rayjobs.runs.local_ray import local_ray

    with local_ray():
        own_s, default_s = (_iteration_s(context, array_runner) for array_runner in (True, False))
    yield figure(
        f"training step: {BATCH_STEPS} environment steps and PPO's update", own_s, "s",
        how="median iteration, arrays of whole steps (tuning.learning.env_runner)",
        reference=f"with RLlib's own env runner {default_s:.2f}",
    )  # fmt: skip


def _iteration_s(context: BenchContext, array_runner: bool) -> float:
    marks: list[float] = []
    iterations = 3 if context.quick else 8
    arm = TrainingArm(
        ARM.name, ARM.decision, ARM.method, ARM.scenarios, iterations * BATCH_STEPS,
        algorithm=AlgorithmOptions(batch_steps=BATCH_STEPS, array_runner=array_runner),
    )  # fmt: skip
    folder = context.work_dir / f"runner-{array_runner}"
    context.log(f"training, array runner: {array_runner}")
    train(arm, TOPOLOGY, context.seed, folder, report=lambda row, steps: marks.append(time.perf_counter()),
          held_out=False)  # fmt: skip
    return float(np.median([later - earlier for earlier, later in pairwise(marks)]))


def _inference(context: BenchContext, problem: DecisionProblem) -> Iterator[Bar]:
    learned, simple = LearnedPolicy(net_for(problem, ModelOptions()), problem), InverseLatency(problem.codec)
    observation = problem.observer().observe_window(some_windows(TOPOLOGY)[0])
    own_ms, simple_ms = _act_ms(learned.act, observation), _act_ms(simple.act, observation)
    yield at_most(
        "decision: observation to weights, 3 servers in 3 groups, median", own_ms, 0.5, "ms", how="one thread",
        reference=f"inverse latency {simple_ms:.3f}",
    )  # fmt: skip


def _act_ms(act: Callable[[Observation], object], observation: Observation, times: int = 2000) -> float:
    took_s = []
    for _ in range(times):
        began_s = time.perf_counter()
        act(observation)
        took_s.append(time.perf_counter() - began_s)
    return 1e3 * float(np.median(took_s[times // 10 :]))
