"""The observation phase: windows under equal weights → deadlines, scaler and Gaussian mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import Field

from actuators.control import BalancingMethod
from actuators.options import Options
from actuators.script import Scenario
from actuators.testbed import Testbed
from actuators.topology import Topology
from actuators.window import Window
from envs.deadlines import Deadlines, derive_deadlines
from envs.decision import DecisionOptions, DecisionProblem
from envs.encoding import EncoderOptions
from envs.mixture import fit_from_windows


class ObserveOptions(Options):
    """How long the system is watched before anything is learned, and what is fitted to it."""

    duration_s: float = Field(default=20.0, gt=0)
    """Seconds of observation under equal weights."""
    skip_s: float = Field(default=2.0, ge=0)
    """Seconds at the start that are not used: queues are still filling."""
    interval_s: float = Field(default=0.5, gt=0)
    """Seconds per window."""
    encoder: EncoderOptions = EncoderOptions()
    """The Gaussian mixture."""


@dataclass(frozen=True, eq=False)
class Observed:
    """What an observation phase gave: its windows, the deadlines, and the problem they define."""

    windows: tuple[Window, ...]
    deadlines: Deadlines
    problem: DecisionProblem


def watch(
    testbed: Testbed,
    scenario: Scenario,
    method: BalancingMethod,
    options: ObserveOptions,
    seed: int,
    on_window: Callable[[Window, float], None] = lambda window, fraction: None,
) -> tuple[Window, ...]:
    """Windows of the scenario under equal weights, the skipped start left out, the load drained after.

    Args:
        on_window: called after every window with the share of the phase that is over, 0…1.
    """
    testbed.set_method(method)
    testbed.reset(scenario, seed)
    windows, steps = [], max(round((options.skip_s + options.duration_s) / options.interval_s), 1)
    skipped = round(options.skip_s / options.interval_s)
    for step in range(steps):
        window = testbed.advance(options.interval_s)
        if step >= skipped:
            windows.append(window)
        on_window(window, (step + 1) / steps)
    testbed.drain()
    return tuple(windows)


def fit_problem(
    windows: Sequence[Window], topology: Topology, decision: DecisionOptions, encoder: EncoderOptions, seed: int
) -> Observed:
    """Deadlines and mixture from the windows. Raises DataError when the phase was too short or disturbed."""
    deadlines = derive_deadlines(windows, topology)
    mixture = fit_from_windows(windows, topology, deadlines.seconds, encoder, seed)
    return Observed(tuple(windows), deadlines, DecisionProblem(topology, deadlines.seconds, mixture, decision))
