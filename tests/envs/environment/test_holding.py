"""Learned late binding: without actions it is the rule, actions move what they should, and rows are sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actuators.contract.arrays import FloatArray
from actuators.contract.late_binding import LateBindingNumbers
from actuators.contract.script import Script
from actuators.contract.topology import social_network
from envs.environment.holding import (
    FIRST_REFUSE,
    MOST_IMPORTANCE,
    MOST_SLOTS,
    MOST_THETA,
    REFUSE_RANGE,
    REFUSES_FROM,
    WINDOW_S,
    HoldingTask,
    LearnedHolding,
)
from envs.environment.holding_env import HoldingVectorEnv, cost_table
from envs.environment.study_setup import SHARED_MEMORY
from envs.mixture.fit import fit_encoder
from envs.observation.encoder import EncoderOptions
from envs.observation.holding import MOVES, REGIME_NAMES, ROW_SIZE, HoldingObserver
from envs.scenarios.lookup import scenario
from envs.simulator.batch import SimulatedBatch
from envs.study.holding import play_moved
from envs.study.judge import play
from envs.study.rules import Learning, late_binding

TOPOLOGY = social_network()
TASK = HoldingTask(TOPOLOGY, np.array([0.05, 0.02, 0.02]))


OVERLOADED = replace(scenario("S2", 40.0), load=1.05, work_scale=4.0)


def draws(count: int = 3) -> list[Script]:
    return [OVERLOADED.script(TOPOLOGY, 500 + seed) for seed in range(count)]


def next_script(generator: np.random.Generator) -> Script:
    return OVERLOADED.script(TOPOLOGY, int(generator.integers(1000)))


class Always:
    """A policy with the same actions for every type at all times."""

    def __init__(self, *moves: float) -> None:
        self._moves = moves

    def actions(self, rows: Any) -> FloatArray:
        return np.tile(np.repeat(self._moves, rows.shape[1]), (len(rows), 1))


def begun(task: HoldingTask, scripts: Sequence[Script]) -> tuple[SimulatedBatch, LearnedHolding]:
    batch = SimulatedBatch(TOPOLOGY, len(scripts), "late_binding", options=SHARED_MEMORY)
    for index, script in enumerate(scripts):
        batch.reset(index, script)
    holding = LearnedHolding(task, scripts)
    holding.begin(batch)
    return batch, holding


def test_without_actions_it_is_the_rule() -> None:
    scripts = draws()
    plain = play(
        late_binding(TASK.deadlines_s, TASK.numbers, Learning("levelled"), SHARED_MEMORY), scripts, TOPOLOGY, 40.0
    )
    for policy in (None, Always(0.0, 0.0, 0.0, 0.0)):
        moved = play_moved(TASK, policy, scripts, 40.0)
        assert np.array_equal(plain.counts, moved.counts)
        assert np.array_equal(plain.failed, moved.failed)


def test_a_binding_has_what_the_actions_say_within_bounds() -> None:
    workers, still = np.array([1.0, 2.0, 4.0]), np.zeros((3, MOVES))
    plain = TASK.binding(workers, 1, still)
    assert plain.numbers == LateBindingNumbers()
    assert (plain.slots.tolist(), plain.importance.tolist()) == ([2, 4, 8], [1.0, 1.0, 1.0])
    most = TASK.binding(workers, 1, np.ones((3, MOVES)))
    assert most.numbers.theta == pytest.approx(1.4 * np.exp(MOST_THETA))
    assert most.slots.tolist() == [int(np.ceil(2 * np.exp(MOST_SLOTS) * c)) for c in workers]
    assert most.importance == pytest.approx(np.full(3, np.exp(MOST_IMPORTANCE)))
    assert most.numbers.refuse_factor == pytest.approx(FIRST_REFUSE * np.exp(-REFUSE_RANGE))
    least = TASK.binding(workers, 1, -np.ones((3, MOVES)))
    # θ below 1 prefers the wait at a busy server, and slots below the workers leave servers idle.
    assert (least.numbers.theta, least.numbers.refuse_factor) == (1.0, None)
    assert (least.slots >= workers).all()
    # The three numbers that are not of a type are the mean of what the types say.
    some = still.copy()
    some[0, 3] = 3 * REFUSES_FROM + 0.3
    assert TASK.binding(workers, 1, some).numbers.refuse_factor == pytest.approx(
        FIRST_REFUSE * np.exp(-REFUSE_RANGE * 0.1 / (1 - REFUSES_FROM))
    )


def test_importance_moves_what_a_type_waits_and_refusing_refuses() -> None:
    scripts = draws(count=4)

    class First:
        def actions(self, rows: Any) -> FloatArray:
            actions = np.zeros((len(rows), MOVES * 3))
            actions[:, 0] = 3.0
            return actions

    plain, moved = (play_moved(TASK, policy, scripts, 40.0) for policy in (None, First()))
    before_s, after_s = ((one.seconds.sum(axis=0) / one.counts.sum(axis=(0, 2)))[0] for one in (plain, moved))
    assert after_s < 0.9 * before_s
    # The last type is never held for so long that it is refused for that.
    assert plain.failed[:, 2].sum() == 0
    assert play_moved(TASK, Always(0.0, 0.0, 0.0, 3.0), scripts, 40.0).failed[:, 2].sum() > 0


def test_what_is_held_is_counted_by_type() -> None:
    batch, _ = begun(TASK, draws(count=2))
    held, oldest_s = batch.in_line()
    assert (held.sum(), oldest_s.sum()) == (0, 0.0)
    most = np.zeros(3)
    for _ in range(40):
        batch.advance(0.5)
        held, oldest_s = batch.in_line()
        assert ((held > 0) == (oldest_s > 0)).all()
        most = np.maximum(most, held.max(axis=0))
    assert most.sum() > 0


def test_rows_do_not_depend_on_the_order_of_the_types() -> None:
    """The network is shared by all types, so that what it sees of a type must not tell which one it is."""
    order = [2, 0, 1]
    batch, holding = begun(TASK, draws())
    observer = HoldingObserver(TASK.deadlines_s[order], np.array([TASK.workers(script) for script in draws()]))
    for _ in range(8):
        window = batch.advance(WINDOW_S)
        rows, tau_s = holding.observe(batch, window), batch.service_times()
        held, oldest_s = batch.in_line()
        names = ("latency_counts", "latency_s_sum", "planned", "failed")
        turned = replace(window, **{name: getattr(window, name)[:, order] for name in names})
        observer.observe(turned, held[:, order], oldest_s[:, order], tau_s[:, order])
    assert observer.rows(np.zeros((3, 3, MOVES))) == pytest.approx(rows[:, order], abs=1e-5)


def test_the_posterior_of_a_mixture_is_seen_beside() -> None:
    generator = np.random.default_rng(1)
    samples = np.concatenate([generator.normal(centre, 1.0, (200, len(REGIME_NAMES))) for centre in (-3.0, 3.0)])
    options = EncoderOptions(kind="joint", clusters=(2,), restarts=1, features_version=1)
    task = replace(TASK, encoder=fit_encoder(samples, REGIME_NAMES, options, 1))
    batch, holding = begun(task, draws())
    rows = holding.observe(batch, batch.advance(WINDOW_S))
    assert rows.shape == (3, 3, ROW_SIZE + 2)
    assert rows[..., ROW_SIZE:].sum(axis=-1) == pytest.approx(1.0)


def test_the_environment_repeats_and_rewards_only_what_actions_change() -> None:
    def steps(threads: int, scale: float) -> list[tuple[Any, Any, list[bool]]]:
        env = HoldingVectorEnv(TASK, 3, next_script, episode_steps=4, threads=threads)
        first, _ = env.reset(seed=5)
        assert env.observation_space.contains(first)
        generator, found = np.random.default_rng(1), []
        for _ in range(7):
            rows, reward, _, truncated, _ = env.step(scale * generator.normal(0, 1, (3, MOVES * 3)))
            found.append((rows, reward, truncated.tolist()))
        assert len(env.ledger.take_episodes()) == 6
        assert {"cost", "failed"} == set(env.ledger.take_means())
        return found

    once, again = steps(1, 1.0), steps(2, 1.0)
    assert all(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in zip(once, again, strict=True))
    assert [step[2] for step in once] == [[index == 3] * 3 for index in range(7)]
    assert any(step[1].any() for step in once)
    assert not any(step[1].any() for step in steps(1, 0.0))


def test_costs_are_response_times_over_deadlines_and_lateness() -> None:
    good, failed = cost_table(np.array([0.1, 0.5]))
    assert failed == pytest.approx([10.0 + 9.0, 2.0 + 1.0])
    late = good[0, -1] / good[1, -1]
    assert late == pytest.approx(5.0, rel=0.01)
    assert good[1, 10] == pytest.approx(10.5e-6 / 0.5, rel=0.1)
