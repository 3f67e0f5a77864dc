"""Dead servers: found within five windows, kept at 1 %, back at once; a healthy server is hardly ever called dead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from actuators.contract.control import Weights
from actuators.contract.topology import Group, Topology
from actuators.contract.window import Window
from tests.support.steering_cases import EQUAL, UNEVEN, Run, advice, options
from tests.support.windows import TOPOLOGY, window
from tuning.steering.silence import SilenceWatch

NOBODY = np.zeros(TOPOLOGY.shape, bool)
ALL = window(10.0, 30)


def without_answer(server: int, requests: int = 30, *, failing: int = 0, down: bool = False) -> Window:
    """A window in which this server answers nothing: silent, or with failed attempts that others answered."""
    counts, errors = np.full(TOPOLOGY.shape, requests), np.zeros(TOPOLOGY.shape, np.int64)
    counts[:, server] = errors[:, server] = failing
    shown = NOBODY.copy()
    shown[:, server] = down
    return replace(window(10.0, counts, errors=errors), down=shown)


def watch(*windows: Window, due: float = 11.5) -> SilenceWatch:
    found = SilenceWatch(TOPOLOGY, due)
    for seen in windows:
        found.see(seen, NOBODY)
    return found


@pytest.mark.parametrize(
    "failing", [0, 7], ids=["a released vts counts final answers only", "the newest every attempt"]
)
def test_a_server_that_dies_gets_one_percent_within_five_windows_and_is_back_at_once(failing: int) -> None:
    run = Run(options(guards={"largest_step": 100.0}))
    run.until_steering(ALL, advice())
    dead = without_answer(0, failing=failing)
    hidden = replace(dead, client_errors=0)
    decisions = run.steps([hidden] * 5, advice())
    assert (decisions[-1].control.shares()[:, 0] <= 0.01).all()
    assert "silent" in [guard for d in decisions for guard in d.guards]
    assert "compose_backend answers nothing" in decisions[-1].alarms[0]
    assert {d.source for d in decisions} == {"policy"}
    run.steps([hidden] * 30, advice())
    back = run.step(ALL, advice())
    assert back.change
    assert back.control == UNEVEN


def test_the_baseline_spares_it_too_and_an_order_does_not() -> None:
    run = Run(options(guards={"reference_windows": 50}))
    run.steps([ALL] * 3, advice())
    assert run.steps([without_answer(1)] * 4, advice())[-1].control.shares()[0, 1] <= 0.01
    assert run.decisions[-1].source == "baseline"
    run.steering.override = "reverted"
    assert run.step(without_answer(1), advice()).control == EQUAL


def test_a_dead_server_of_the_first_window_on_is_found() -> None:
    assert watch(*[without_answer(2)] * 4).dead[:, 2].all()
    assert not watch(*[without_answer(2)] * 2).dead.any(), "a short pause is no death"


def test_what_nginx_itself_shows_as_down_needs_less() -> None:
    few = [window(10.0, 6)] * 10 + [without_answer(0, 3, down=True)] * 3
    assert watch(*few).dead[:, 0].all()
    assert not watch(*[window(10.0, 6)] * 10, *[without_answer(0, 3)] * 3).dead.any()
    # vts shows servers with max_fails=0 as down although they answer.
    lies = [replace(window(10.0, 6), down=np.eye(3, dtype=bool)[[0, 0, 0]])] * 10 + [
        without_answer(0, 3, down=True)
    ] * 3
    assert not watch(*lies).dead.any()


def test_servers_that_need_not_answer_are_not_dead() -> None:
    silent = without_answer(0)
    backup = replace(silent, backup=np.eye(3, dtype=bool)[[0, 0, 0]])
    assert not watch(*[backup] * 20).dead.any()
    found = SilenceWatch(TOPOLOGY, 11.5)
    for _ in range(20):
        found.see(silent, np.eye(3, dtype=bool)[[0, 0, 0]])
    assert not found.dead.any(), "taken out by the administrator"
    assert not watch(*[window(10.0, 0)] * 20).dead.any(), "no traffic at all"
    assert not watch(*[window(10.0, 30, errors=30)] * 20).dead.any(), "everything fails everywhere"


def test_a_slow_server_of_least_conn_is_not_dead() -> None:
    """It gets a twelfth of what its weight says, so that one window in twelve has none for it."""
    generator, found = np.random.default_rng(1), SilenceWatch(TOPOLOGY, 11.5)
    for _ in range(3000):
        requests = np.tile([40, 40, 0], (3, 1))
        requests[:, 2] = generator.poisson(2.5, 3)
        found.see(window(10.0, requests, spread=0.0), NOBODY)
        assert not found.dead.any()


@pytest.mark.parametrize("per_window", [4.0, 12.0, 60.0])
def test_a_healthy_server_is_called_dead_less_than_once_in_100_000_windows(per_window: float) -> None:
    """Requests that choose a server independently, which spreads them less evenly than round robin."""
    groups = 40
    topology = Topology(
        tuple(Group(f"g{g}", f"t{g}", "GET", "/", 2.0, ("a:1", "b:1", "c:1")) for g in range(groups))
    )  # fmt: skip
    generator, found = np.random.default_rng(3), SilenceWatch(topology, 11.5)
    template = window(10.0, 0, topology=topology)
    deaths, nobody = 0, np.zeros(topology.shape, bool)
    for _ in range(2500):
        requests: NDArray[np.int64] = generator.poisson(per_window / 3, topology.shape)
        before = found.dead
        found.see(replace(template, requests=requests), nobody)
        deaths += int((found.dead & ~before).sum())
    assert deaths <= 3, "300 000 windows of a server"


def test_low_traffic_probes_more_often() -> None:
    few = watch(*[window(10.0, 1)] * 5, *[without_answer(0, 1)] * 60)
    assert few.dead[:, 0].all()
    assert 0.01 < few.spared(EQUAL).shares()[0, 0] <= 0.1
    many = watch(*[window(10.0, 50)] * 5, *[without_answer(0, 50)] * 5)
    assert 0 < many.spared(EQUAL).shares()[0, 0] <= 0.01
    assert many.spared(EQUAL).shares()[0, 1:] == pytest.approx(0.5, abs=0.01)


def test_down_servers_stay_down_beside_a_dead_one() -> None:
    down = np.eye(3, dtype=bool)[[1, 1, 1]]
    spared = watch(*[without_answer(0)] * 5).spared(Weights(TOPOLOGY, np.full(TOPOLOGY.shape, 7), down))
    assert np.array_equal(spared.down, down)
    assert spared.shares()[0, 0] <= 0.01
