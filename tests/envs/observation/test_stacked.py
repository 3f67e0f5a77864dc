"""Windows of many testbeds in one pass: the same observations, rewards and service times as one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from actuators.contract.window import DelayWindow, Window
from actuators.contract.window_stack import WindowStack
from actuators.errors import DataError
from envs.environment.problem import DecisionOptions
from tests.support.problems import problem
from tests.support.windows import window

EXACT = ("features", "groups", "posterior", "novelty", "latency_s")


def test_one_pass_sees_what_one_by_one_does() -> None:
    """Also a testbed that begins anew, and one without a window, whose next episode is not touched by it."""
    made, size = problem(), 4
    together, alone = made.observer((size,)), [made.observer() for _ in range(size)]
    for step in range(5):
        windows = {row: window(8.0 + 3 * row + step, seed=10 * step + row) for row in range(size)}
        if step == 2:
            together.reset(1)
            alone[1].reset()
        if step == 3:
            del windows[2]
        rows = np.array(sorted(windows))
        stack = WindowStack.spread(size, [(rows, WindowStack.of([windows[row] for row in rows]))])
        seen = together.observe(stack, stack.duration_s, stack.weight)
        values, terms = made.reward(stack, seen)
        array = made.array(seen)
        for row in rows:
            single = alone[row].observe_window(windows[row])
            for name in EXACT:
                assert np.allclose(getattr(seen, name)[row], getattr(single, name), rtol=1e-12), name
            assert np.allclose(array[row], made.array(single))
            value, own = made.reward(windows[row], single)
            assert values[row] == pytest.approx(float(value))
            assert {name: float(term[row]) for name, term in terms.items()} == pytest.approx(
                {name: float(term) for name, term in own.items()}
            )
        if step == 3:
            assert terms["requests"][2] == 0
            together.reset(2)
            alone[2].reset()


def timed(seed: int) -> Window:
    """A window of a balancer in memory."""
    plain = window(10.0, seed=seed)
    some = np.full(plain.requests.shape, 3 + seed)
    delay = DelayWindow(some, some, some * 0.01, some * 0.001, some * 0.01, np.full(some.shape, 0.01))
    return replace(plain, delay=delay)


def test_service_times_are_learned_in_one_pass() -> None:
    options = DecisionOptions.model_validate({"action": {"kind": "residual", "baseline": "idle"}})
    made = replace(problem(), options=options)
    together, alone = made.observer((2,)), [made.observer() for _ in range(2)]
    for step in range(3):
        windows = [timed(step), timed(step + 5)]
        stack = WindowStack.of(windows)
        seen = together.observe(stack, stack.duration_s, stack.weight)
        for row, each in enumerate(windows):
            single = alone[row].observe_window(each)
            assert seen.tau_s is not None
            assert single.tau_s is not None
            assert np.allclose(seen.tau_s[row], single.tau_s, rtol=1e-9)


def test_what_differs_is_refused_and_what_one_lacks_none_has() -> None:
    first, other = (
        window(10.0),
        replace(window(10.0), bounds_ms=(1, 2), latency_histogram=np.zeros((3, 3, 3), np.int64)),
    )
    with pytest.raises(DataError, match="make them alike"):
        WindowStack.of([first, other])
    with pytest.raises(DataError, match="make them alike"):
        WindowStack.spread(2, [(np.array([0]), WindowStack.of([first])), (np.array([1]), WindowStack.of([other]))])
    assert WindowStack.of([timed(1), first]).delay is None
    both = WindowStack.spread(
        3, [(np.array([2]), WindowStack.of([timed(1)])), (np.array([0]), WindowStack.of([timed(2)]))]
    )
    assert both.delay is not None
    assert both.delay.requests[:, 0, 0].tolist() == [5, 0, 4]
    assert both.duration_s[1] == 1.0
    assert both.requests[1].sum() == 0
