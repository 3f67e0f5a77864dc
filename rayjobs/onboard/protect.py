"""What admission would do for the recorded system when clients repeat: at more traffic, and at today's; simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import stdtrit

from actuators.contract.admission import Admission
from actuators.contract.arrays import FloatArray
from actuators.contract.script import Clients, Script
from actuators.options import Options
from envs.calibration.admission import calibrated_admission
from envs.calibration.options import AdmissionPlan
from envs.study.goodput import Goodput, play_admission
from envs.study.promise import Interval, Plan
from envs.study.promise_options import PromiseOptions
from envs.study.rules import Rule

PATIENCE, RETRIES, AFTER_FAILURE, AFTER_REFUSAL, BACKOFF_S = 5.0, 2, 0.75, 0.25, 0.35
"""What is assumed of the clients, whom no statistics show: the middle of family H."""
CLIENTS = (
    f"clients give up after {PATIENCE:g} × the deadline and make up to {RETRIES} further attempts,"
    f" {AFTER_FAILURE:.0%} of them after a failure and {AFTER_REFUSAL:.0%} after a refusal"
)
PAIRS = 10
LEAST_S, MOST_S, WARM_UP_S = 10.0, 60.0, 10.0
ATTEMPTS = 4e6
"""About as many are simulated: a few seconds. Busier systems are measured for a shorter time, but not below LEAST_S."""


class Protection(Options):
    """Importance is equal; figures are means over draws of the fitted system, with their 95 % intervals."""

    growth: float
    """Factor on today's traffic."""
    without: Interval
    """Share of the requests that are answered in time at that traffic."""
    admitted: Interval
    """The same with admission."""
    gain: Interval
    """The difference, paired."""
    refused: Interval
    """Share of the attempts that is refused at that traffic."""
    refused_today: Interval
    """Share of the attempts that would be refused at today's traffic."""
    deadlines_ms: tuple[float, ...]
    """By which answers are in time, per group."""

    def sentence(self) -> str:
        """For the terminal and the page."""
        return (
            f"At {self.growth:g} × your traffic, when {CLIENTS}: {_percent(self.without)} answered in time,"
            f" {_percent(self.admitted)} with admission ({_points(self.gain)}), which refuses {_percent(self.refused)}."
            f" At today's traffic it would refuse {_percent(self.refused_today)}. Simulated, with no bottleneck behind"
            " the servers."
        )


def protect(today: Rule, plan: Plan, growth: float) -> Protection:
    """Plays the fitted system with clients that repeat, with and without `aimd_thresh` with its default numbers."""
    calibration = plan.calibration
    rate_rps = (1 + 2 * growth) * float(calibration.rates_rps.sum())
    measure_s = float(np.clip(ATTEMPTS / PAIRS / rate_rps - WARM_UP_S, LEAST_S, MOST_S))
    short = replace(plan, options=PromiseOptions(measure_s=measure_s, warm_up_s=WARM_UP_S, pairs=PAIRS, growth=growth))
    admission = calibrated_admission(calibration, AdmissionPlan(), 100.0)

    def played(load: float, admitted: bool) -> Goodput:
        scripts = [_with_clients(script, admission) for script in short.scripts(load, 0)]
        admissions = [admission] * len(scripts) if admitted else None
        return play_admission(today, scripts, plan.topology, admissions, warm_up_s=WARM_UP_S)

    before, after, ordinary = played(growth, False), played(growth, True), played(1.0, True)
    return Protection(
        growth=growth, without=_interval(before.plain_shares()), admitted=_interval(after.plain_shares()),
        gain=_interval(after.plain_shares() - before.plain_shares()), refused=_interval(_refused(after)),
        refused_today=_interval(_refused(ordinary)), deadlines_ms=tuple(map(float, 1e3 * admission.deadlines_s)),
    )  # fmt: skip


def _with_clients(script: Script, admission: Admission) -> Script:
    deadlines_s: Sequence[float] = admission.deadlines_s.tolist()
    habits = (RETRIES, AFTER_FAILURE, AFTER_REFUSAL, BACKOFF_S)
    return replace(
        script, deadlines_s=tuple(deadlines_s), clients=tuple(Clients(PATIENCE * d, *habits) for d in deadlines_s)
    )  # fmt: skip


def _refused(played: Goodput) -> FloatArray:
    shares: FloatArray = played.refused.sum(axis=1) / np.maximum(played.offered.sum(axis=1), 1)
    return shares


def _interval(values: FloatArray) -> Interval:
    """Mean and 95 % interval (Student's t)."""
    mean = float(values.mean())
    half = float(stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(value=mean, low=mean - half, high=mean + half)


def _percent(share: Interval) -> str:
    low, high = max(share.low, 0.0), min(share.high, 1.0)
    return f"{100 * share.value:.2f} % ({100 * low:.2f} to {100 * high:.2f})"


def _points(share: Interval) -> str:
    return f"{100 * share.value:+.1f} points, {100 * share.low:+.1f} to {100 * share.high:+.1f}"
