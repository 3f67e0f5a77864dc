"""Learned admission: without actions it is the plain rule, actions move what they should, and rows are sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actuators.contract.arrays import FloatArray
from actuators.contract.script import Script
from actuators.contract.topology import social_network
from envs.environment.entry import LEAK, MOST_RATE_Z, MOST_Z, STEP, WINDOW_S, EntryTask, LearnedEntry
from envs.environment.entry_env import REWARD_SCALE, EntryVectorEnv
from envs.environment.rates import LEAST_RATE, RateNumbers
from envs.mixture.fit import fit_encoder
from envs.observation.encoder import EncoderOptions
from envs.observation.entry import REGIME_NAMES, ROW_SIZE, EntryObserver
from envs.scenarios.family import KINDS
from envs.scenarios.lookup import scenario
from envs.simulator.batch import SimulatedBatch
from envs.study.entry import learned_steering
from envs.study.goodput import Goodput, play_admission
from envs.study.rules import RULES, BatchController

TOPOLOGY = social_network()
TASK = EntryTask(TOPOLOGY)
BUCKETS = EntryTask(TOPOLOGY, RateNumbers(late_share=0.1, cut=0.77, rise=0.12, most=1.15, burst_s=0.03))
STILL = RateNumbers(late_share=-1.0, cut=0.5, most=1.0, burst_s=0.5)


def draws(count: int = 8, duration_s: float = 30.0) -> list[Script]:
    family = replace(scenario("H"), duration_s=duration_s)
    return [family.script(TOPOLOGY, 500 + seed) for seed in range(count)]


def next_script(generator: np.random.Generator) -> Script:
    return scenario("H").script(TOPOLOGY, int(generator.integers(1000)))


def play(steering: BatchController | None, scripts: Sequence[Script], admissions: Any = None) -> Goodput:
    rule = replace(RULES["least_conn"], steering=None if steering is None else lambda: steering)
    return play_admission(rule, scripts, TOPOLOGY, admissions, interval_s=WINDOW_S)


class Always:
    """A policy with the same actions at all times."""

    def __init__(self, *actions: float) -> None:
        self._actions = np.array(actions)

    def actions(self, rows: Any) -> FloatArray:
        return np.broadcast_to(self._actions, rows.shape[:2])


def begun(task: EntryTask, scripts: Sequence[Script]) -> tuple[SimulatedBatch, LearnedEntry]:
    batch = SimulatedBatch(TOPOLOGY, len(scripts), "least_conn")
    for index, script in enumerate(scripts):
        batch.reset(index, script)
    entry = LearnedEntry(task, scripts)
    entry.begin(batch)
    return batch, entry


def test_without_actions_it_is_the_rule() -> None:
    scripts = draws()
    plain = play(None, scripts, [TASK.admission(script) for script in scripts])
    learned = play(learned_steering(TASK, None), scripts)
    assert np.array_equal(plain.good, learned.good)
    assert np.array_equal(plain.refused, learned.refused)
    assert plain.refused.sum() > 0


def test_factors_move_the_limits_at_once_and_stay_bounded() -> None:
    batch, entry = begun(TASK, draws(2))
    entry.observe(batch.advance(WINDOW_S))
    before = batch.advance(WINDOW_S).attempts.limits
    entry.act(batch, np.array([[9.0, 0.0, -9.0]] * 2))
    ticked = batch.advance(WINDOW_S / 5).attempts.limits  # no tick comes in between
    assert ticked == pytest.approx(np.maximum(before * np.exp([STEP, 0.0, -STEP]), 1.0), rel=1e-6)
    for _ in range(60):
        entry.act(batch, np.array([[9.0, 0.0, -9.0]] * 2))
    rows = entry.observe(batch.advance(WINDOW_S))
    assert rows[..., ROW_SIZE - 1].max() == pytest.approx(MOST_Z)
    entry.act(batch, np.zeros((2, 3)))
    rows = entry.observe(batch.advance(WINDOW_S))
    assert rows[..., ROW_SIZE - 1].max() == pytest.approx(LEAK * MOST_Z)  # what is not held up is forgotten


def test_a_type_whose_limit_falls_loses_and_the_others_gain() -> None:
    scripts = [script for script, kind in zip(draws(16), KINDS * 2, strict=True) if kind in ("surge", "permanent")]
    plain, moved = (play(learned_steering(TASK, policy), scripts) for policy in (None, Always(0.0, -0.35, 0.0)))
    gained = (moved.good / moved.planned - plain.good / plain.planned).mean(axis=0)
    assert gained[1] < -0.02 < 0.02 < min(gained[0], gained[2])


def test_a_factor_on_rates_is_that_of_the_buckets() -> None:
    scripts = draws(4)
    batch, entry = begun(replace(BUCKETS, rates=STILL), scripts)
    nominal_rps = np.array([BUCKETS.admission(script).rates_rps for script in scripts])
    entry.observe(batch.advance(WINDOW_S))
    for factor, action in ((0.5 * np.exp(-MOST_RATE_Z), -9.0), (0.25 * np.exp(MOST_RATE_Z), 9.0)):
        # The rule halves its rates with every window, down to the least.
        entry.act(batch, np.full((4, 3), action))
        batch.advance(1.0)  # what was saved
        window = batch.advance(4.0)
        entered_rps = (window.attempts.offered - window.attempts.refused) / 4.0
        assert entered_rps == pytest.approx(factor * nominal_rps, rel=0.05, abs=1.0)
        rows = entry.observe(window)
        offered_rps = window.attempts.offered / WINDOW_S
        assert rows[..., ROW_SIZE - 1] == pytest.approx(np.log(factor * nominal_rps / offered_rps), abs=1e-3)
    for _ in range(9):
        entry.act(batch, np.full((4, 3), -9.0))
        window = batch.advance(WINDOW_S)
        entry.observe(window)
    entry.act(batch, np.full((4, 3), -9.0))
    counts = batch.advance(10.0).attempts
    assert (counts.offered - counts.refused) / 10.0 == pytest.approx(LEAST_RATE * nominal_rps, rel=0.1, abs=0.3)


def test_rates_follow_lateness_within_their_bounds() -> None:
    batch, _ = begun(TASK, draws(1))
    counts = batch.advance(1.0).attempts
    nominal_rps = np.array([[100.0, 100.0, 100.0]])
    numbers = RateNumbers(late_share=0.1, cut=0.5, rise=0.2, most=1.5)
    seen = replace(
        counts, finished=np.array([[10, 10, 0]]), late=np.array([[1, 0, 0]]), failed=np.array([[0, 2, 0]]),
        inside=np.array([[5, 5, 5]]), offered=np.array([[400, 10, 10]]),
    )  # fmt: skip
    assert numbers.first(nominal_rps).tolist() == [[150.0] * 3]
    # A late share at the limit rises; failures and silence are late.
    assert numbers.after(numbers.first(nominal_rps), seen, nominal_rps, 1.0).tolist() == [[170.0, 75.0, 75.0]]
    assert numbers.after(np.full((1, 3), 590.0), seen, nominal_rps, 1.0).tolist() == [[600.0, 150.0, 150.0]]
    assert numbers.after(np.full((1, 3), 6.0), seen, nominal_rps, 1.0).tolist() == [[26.0, 5.0, 5.0]]


def test_rates_end_a_collapse() -> None:
    scripts = [script for script, kind in zip(draws(16), KINDS * 2, strict=True) if kind in ("surge", "permanent")]
    open_, limited = play(None, scripts), play(learned_steering(BUCKETS, None), scripts)
    assert open_.refused.sum() == 0 < limited.refused.sum()
    assert limited.shares().mean() > open_.shares().mean() + 0.1


def test_rows_do_not_depend_on_the_order_of_the_types() -> None:
    """The network is shared by all types, so that what it sees of a type must not tell which one it is."""
    batch, entry = begun(TASK, draws(3))
    order = [2, 0, 1]
    for _ in range(8):
        window = batch.advance(WINDOW_S)
        rows = entry.observe(window)
    believed = [TASK.admission(script) for script in draws(3)]
    turned = [
        replace(
            one, **{name: getattr(one, name)[order] for name in ("deadlines_s", "importance", "idle_s", "rates_rps")}
        )
        for one in believed
    ]
    batch, _ = begun(TASK, draws(3))
    observer = EntryObserver(turned, WINDOW_S)
    for _ in range(8):
        counts = batch.advance(WINDOW_S).attempts
        names = ("offered", "refused", "finished", "late", "failed", "inside", "response_s")
        observer.observe(replace(counts, **{name: getattr(counts, name)[:, order] for name in names}))
    assert observer.rows(np.zeros((3, 3))) == pytest.approx(rows[:, order], abs=1e-5)


def test_the_posterior_of_a_mixture_is_seen_beside() -> None:
    generator = np.random.default_rng(1)
    samples = np.concatenate([generator.normal(centre, 1.0, (200, len(REGIME_NAMES))) for centre in (-3.0, 3.0)])
    options = EncoderOptions(kind="joint", clusters=(2,), restarts=1, features_version=1)
    task = replace(TASK, encoder=fit_encoder(samples, REGIME_NAMES, options, 1))
    batch, entry = begun(task, draws(3))
    rows = entry.observe(batch.advance(WINDOW_S))
    assert rows.shape == (3, 3, ROW_SIZE + 2)
    assert rows[..., ROW_SIZE:].sum(axis=-1) == pytest.approx(1.0)


@pytest.mark.parametrize("task", [TASK, BUCKETS], ids=["limits", "rates"])
def test_the_environment_repeats_and_restarts(task: EntryTask) -> None:
    def rewards(threads: int) -> tuple[Any, list[Any]]:
        env = EntryVectorEnv(task, 3, next_script, episode_steps=4, threads=threads)
        first, _ = env.reset(seed=5)
        generator, steps = np.random.default_rng(1), []
        for _ in range(7):
            rows, reward, _, truncated, _ = env.step(generator.normal(0, 1, (3, 3)))
            steps.append((rows, reward, truncated.tolist()))
        assert env.observation_space.contains(first)
        return env, steps

    env, once = rewards(1)
    _, again = rewards(2)
    assert all(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in zip(once, again, strict=True))
    assert [step[2] for step in once] == [[index == 3] * 3 for index in range(7)]
    assert not once[4][1].any()  # the step that restarts
    assert len(env.ledger.take_episodes()) == 6
    means = env.ledger.take_means()
    assert means["goodput"] == pytest.approx(1 + np.mean([s[1] for s in once[:4] + once[5:]]) / REWARD_SCALE)
