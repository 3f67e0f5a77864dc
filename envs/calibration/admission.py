"""What admission control believes of a recorded system: deadlines, idle response times and rates of its groups."""

from __future__ import annotations

import numpy as np

from actuators.contract.admission import NEVER, Admission
from actuators.errors import ConfigError, closest
from envs.calibration.options import AdmissionPlan
from envs.calibration.result import Calibration


def calibrated_admission(calibration: Calibration, plan: AdmissionPlan, percent: float) -> Admission:
    """A rule for the groups of a calibration.

    The idle response time of a group is the mean over its servers, weighted as their requests were shared, of the
    service time without waiting, plus the overhead; its rate is the mean of the recording.

    Args:
        percent: 0 … 100, of the requests beyond the limit; with 0 they are only counted.

    Raises ConfigError for a group that the calibration lacks, and for a calibration without deadlines.
    """
    topology, best = calibration.topology, calibration.parameters
    named = {"importance": plan.importance, "never_refused": plan.never_refused, "deadlines_ms": plan.deadlines_ms}
    for where, given in named.items():
        for name in given:
            if name not in calibration.groups:
                remedy = closest(name, calibration.groups)
                raise ConfigError(f"no group '{name}' in the calibration", where=where, remedy=remedy)
    observed_s = calibration.deadlines_s
    if observed_s is None:
        observed_s = np.full(len(calibration.groups), np.nan)
    deadlines_s = np.array(
        [plan.deadlines_ms.get(name, 1e3 * observed_s[g]) / 1e3 for g, name in enumerate(calibration.groups)]
    )
    if np.isnan(deadlines_s).any():
        name = calibration.groups[int(np.argmax(np.isnan(deadlines_s)))]
        raise ConfigError(f"the calibration has no deadline of '{name}'", where="deadlines_ms", remedy="give it")
    service_s = best.service_array_ms / 1e3
    worth = {**dict.fromkeys(calibration.groups, 1.0), **plan.importance, **dict.fromkeys(plan.never_refused, NEVER)}
    return Admission(
        topology, plan.rule, deadlines_s,
        np.array([worth[name] for name in calibration.groups]),
        (calibration.today.shares() * service_s).sum(axis=1) + best.overhead_ms / 1e3,
        np.maximum([float(np.mean([rate for _, rate in each.steps])) for each in calibration.arrivals], 1e-6),
        plan.numbers, plan.load_balancers, percent,
    )  # fmt: skip
