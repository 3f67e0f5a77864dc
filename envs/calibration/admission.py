"""What admission control believes of a recorded system: deadlines, idle response times and rates of its groups."""

from __future__ import annotations

import numpy as np

from actuators.contract.admission import NEVER, Admission, AdmissionNumbers
from actuators.contract.arrays import FloatArray
from actuators.errors import ConfigError, closest
from envs.admission.tuned import TunedNumbers
from envs.calibration.options import AdmissionPlan
from envs.calibration.result import Calibration, derived_deadline_ms

DEVIATIONS = 6.0
"""An answer is late for admission after the mean and so many standard deviations of what was observed, where no
deadline was given: fewer than one request in a hundred at ordinary times."""


def calibrated_admission(calibration: Calibration, plan: AdmissionPlan, percent: float) -> Admission:
    """A rule for the groups of a calibration.

    The idle response time of a group is the mean over its servers, weighted as their requests were shared, of the
    service time without waiting, plus the overhead; its rate is the mean of the recording, which is of one NGINX, times
    the machines that share the traffic. Deadlines are those of `patient_deadlines_s`.

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
    observed_s = patient_deadlines_s(calibration)
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
        calibration.rates_rps * plan.load_balancers, _numbers(calibration, plan), plan.load_balancers, percent,
    )  # fmt: skip


def _numbers(calibration: Calibration, plan: AdmissionPlan) -> AdmissionNumbers:
    """Raises ConfigError for numbers of another rule or system."""
    if plan.numbers_file is None:
        return plan.numbers
    tuned, where = TunedNumbers.load(plan.numbers_file), str(plan.numbers_file)
    if tuned.rule != plan.rule:
        raise ConfigError(f"numbers of {tuned.rule}", where=where, remedy=f"set the rule to {tuned.rule}")
    if tuned.groups != calibration.groups:
        what = f"numbers for the groups {', '.join(tuned.groups)[:200]}"
        raise ConfigError(what, where=where, remedy="search those of this system with: deepsched admission tune")
    return tuned.numbers


def patient_deadlines_s(calibration: Calibration) -> FloatArray:
    """``[groups]`` seconds: the deadlines that were given to the calibration, and wider ones in place of those that it
    derived; nan where nothing was observed.

    A deadline of tardiness (docs/glossary.md#deadline) is missed by a tenth of the requests at ordinary times. Limits
    that follow lateness would refuse then, which helps nobody.
    """
    if not calibration.response_times:
        return np.full(len(calibration.groups), np.nan)
    found = []
    for group, times in zip(calibration.topology.groups, calibration.response_times, strict=True):
        derived_ms = derived_deadline_ms(times.mean_ms, times.deviation_ms, group.priority)
        given = not np.isclose(times.deadline_ms, derived_ms, rtol=1e-6)
        patient_ms = max(times.mean_ms + DEVIATIONS * times.deviation_ms, times.deadline_ms)
        found.append((times.deadline_ms if given else patient_ms) / 1e3)
    return np.array(found)
