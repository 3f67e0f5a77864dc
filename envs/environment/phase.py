"""The observation phase: windows under equal and exploring weights → deadlines, scaler and Gaussian mixture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from pydantic import Field

from actuators.contract.arrays import FloatArray
from actuators.contract.control import BalancingMethod, Control, ServiceTimes, Weights
from actuators.contract.script import Scenario
from actuators.contract.testbed import Testbed
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.options import Moved, Options
from envs.environment.problem import DecisionOptions, DecisionProblem
from envs.estimators.base import FIRST_GUESS_S
from envs.observation.deadlines import MIN_REQUESTS, Deadlines, derive_deadlines
from envs.observation.encoder import EncoderOptions

MAX_STRETCH = 2


class ObserveOptions(Options):
    """Length of the observation phase before training, and the mixture that is fitted to it."""

    moved: ClassVar = {"interval_s": Moved("window_s")}

    duration_s: float = Field(default=15.0, gt=0)
    """Seconds of observation under equal weights; deadlines are derived from them."""
    explore_s: float = Field(default=10.0, ge=0)
    """Seconds of observation under changing weights after that, so that the mixture also covers uneven traffic."""
    skip_s: float = Field(default=2.0, ge=0)
    """Seconds at the start that are discarded while queues are still filling."""
    window_s: float = Field(default=0.5, gt=0)
    """Seconds per window."""
    encoder: EncoderOptions = EncoderOptions()
    """The Gaussian mixture."""


@dataclass(frozen=True, eq=False)
class Watched:
    """Windows of an observation phase, under equal and under exploring weights."""

    equal: tuple[Window, ...]
    exploring: tuple[Window, ...]


@dataclass(frozen=True, eq=False)
class Observed:
    """Result of an observation phase: its windows, the deadlines, and the decision problem that they define."""

    windows: Watched
    deadlines: Deadlines
    problem: DecisionProblem


def watch(
    testbed: Testbed,
    scenario: Scenario,
    method: BalancingMethod,
    options: ObserveOptions,
    seed: int,
    on_window: Callable[[Window, float], None] = lambda window, fraction: None,
) -> Watched:
    """Records windows of the scenario after the skipped start, then drains the load.

    Exploring weights are drawn from {1, 3, 5} per group and server, independently for every window. Each part lasts
    until it has as many usable windows as fit into its time, but at most twice its time: other processes on the
    machine may disturb some windows.

    Args:
        on_window: called after every window with the completed share of the phase, 0 to 1.
    """
    testbed.set_method(method)
    testbed.reset(scenario, seed)
    skipped, equal, exploring = (
        round(seconds / options.window_s) for seconds in (options.skip_s, options.duration_s, options.explore_s)
    )
    found: tuple[list[Window], list[Window]] = ([], [])
    generator = np.random.default_rng(seed)
    for _ in range(skipped):
        on_window(testbed.advance(options.window_s), 0.0)
    for phase, wanted in enumerate((equal, exploring)):
        while _missing(found[phase], wanted):
            if phase == 1:
                testbed.apply(_explored(testbed.topology, method, generator))
            found[phase].append(testbed.advance(options.window_s))
            on_window(found[phase][-1], min(sum(map(len, found)) / (equal + exploring), 1.0))
    testbed.drain()
    return Watched(tuple(found[0]), tuple(found[1]))


def _explored(topology: Topology, method: BalancingMethod, generator: np.random.Generator) -> Control:
    ratios = generator.choice([1, 3, 5], topology.shape)
    if method == "expected_delay":
        return ServiceTimes(topology, FIRST_GUESS_S / ratios, np.ones(topology.shape[1]))
    return Weights(topology, ratios)


def _missing(windows: list[Window], wanted: int) -> bool:
    """Whether more windows are needed: too few are usable, and less than MAX_STRETCH times the planned number exist."""
    return sum(window.usable for window in windows) < wanted and len(windows) < MAX_STRETCH * wanted


def fit_problem(
    windows: Watched,
    topology: Topology,
    decision: DecisionOptions,
    encoder: EncoderOptions,
    seed: int,
    deadlines_s: FloatArray | None = None,
) -> Observed:
    """Derives deadlines and fits the mixture. Raises DataError when the phase was too short or too disturbed.

    Args:
        deadlines_s: ``[groups]``, known ones of a recorded system, in place of those that are derived.
    """
    from envs.mixture.fit import fit_from_windows  # noqa: PLC0415 - `--help` reads the options above and must answer at once

    deadlines = derive_deadlines(windows.equal, topology, MIN_REQUESTS if deadlines_s is None else 1)
    if deadlines_s is not None:
        deadlines = replace(deadlines, seconds=deadlines_s)
    seen = [*windows.equal, *windows.exploring]
    mixture = fit_from_windows(seen, topology, deadlines.seconds, encoder, seed)
    return Observed(windows, deadlines, DecisionProblem(topology, deadlines.seconds, mixture, decision))
