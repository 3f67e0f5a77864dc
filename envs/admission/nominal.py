"""What admission believes of a simulated system: idle response times and rates at ordinary times, from its script."""

from __future__ import annotations

import numpy as np

from actuators.contract.admission import Admission, AdmissionNumbers, AdmissionRule
from actuators.contract.arrays import FloatArray
from actuators.contract.script import Script
from actuators.contract.topology import Topology
from actuators.errors import ConfigError


def nominal_admission(
    script: Script,
    topology: Topology,
    rule: AdmissionRule,
    numbers: AdmissionNumbers | None = None,
    factor: float = 1.0,
) -> Admission:
    """The script's deadlines and importance, its idle response times, and its first rates.

    Args:
        factor: on the idle response times: how wrong they are believed to be.

    Raises ConfigError for a script without deadlines.
    """
    if not script.deadlines_s:
        raise ConfigError("there are no deadlines", where=f"script '{script.name}'", remedy="give deadlines_s")
    importance = np.array(script.importance) if script.importance else np.ones(len(script.deadlines_s))
    first = {stream.request_type: stream.steps[0].rate_rps for stream in script.streams}
    rates_rps = np.array([max(first.get(request_type, 0.0), 1e-3) for request_type in topology.request_types])
    return Admission(
        topology, rule, np.array(script.deadlines_s), importance, idle_moments_s(script)[0] * factor, rates_rps,
        numbers or AdmissionNumbers(),
    )  # fmt: skip


def idle_moments_s(script: Script) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of the response times without any waiting, ``[groups]`` in seconds."""
    cv = {"constant": 0.0, "exponential": 1.0, "lognormal": script.service_cv}[script.service_distribution]
    speeds = np.array([profile.speeds for profile in script.servers])
    work_s = np.array(script.mean_service_s) / speeds
    mean_s = work_s.mean(axis=0)
    variance = (work_s**2).mean(axis=0) * (1 + cv**2) - mean_s**2
    for stage in script.stages:
        share, stage_s = np.array(stage.visits), np.array(stage.work_s)
        if stage.cache is not None:
            share = share * np.where(stage.cache.cached, 1 - stage.cache.hit, 1.0)
        mean_s = mean_s + share * stage_s
        variance = variance + share * stage_s**2 * (1 + cv**2) - (share * stage_s) ** 2
    return mean_s + script.overhead_s, np.sqrt(variance)
