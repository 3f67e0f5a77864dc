"""A calibration as a scenario: the simulated twin of a live system, or variants within its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from actuators.contract.arrays import IntArray
from actuators.contract.control import BalancingMethod, Weights
from actuators.contract.script import Script
from actuators.contract.topology import Topology
from actuators.errors import ConfigError
from envs.calibration.replay import script_of
from envs.calibration.result import Arrivals, Calibration, Parameters
from envs.scenarios.catalogue import StudyScenario

LOAD_FACTOR = (0.8, 1.3)
"""Range of the factor on the observed rates in a randomised variant."""


@dataclass(frozen=True)
class Today:
    """What balanced while the system was recorded."""

    method: BalancingMethod
    weights: Weights


@dataclass(frozen=True)
class CalibratedScenario(StudyScenario):
    """The observed arrivals and servers as fast as the observed ones; arrivals repeat when the scenario is longer.

    A `randomised` scenario draws a member of the calibration's ensemble, a factor on the load, the starting point in
    the observed arrivals and the order of the servers among those of the same groups. `work_scale` has no effect: the
    work was measured.

    Attributes:
        load_factor: factor on the observed rates: 1.5 is the system under half as much traffic again.
    """

    calibration: Calibration | None = field(default=None, kw_only=True)
    load_factor: float = field(default=1.0, kw_only=True)

    @property
    def twin_of(self) -> Calibration:
        """The calibration."""
        assert self.calibration is not None
        return self.calibration

    @property
    def today(self) -> Today:
        """Method and weights at the end of the recording."""
        return Today(self.twin_of.method, self.twin_of.today)

    def system_of(self, topology: Topology) -> Calibration:
        """The calibration of this system, whose addresses do not matter. Raises ConfigError when it is of another."""
        calibration = self.twin_of
        own = calibration.topology
        if topology.shape != own.shape or not np.array_equal(topology.mask, own.mask):
            shape = f"{topology.shape[0]} groups and {topology.shape[1]} servers"
            known = f"calibrated for {', '.join(calibration.groups)} on {len(calibration.servers)} servers"
            raise ConfigError(f"{shape}, {known}", where=self.name, remedy="calibrate this system")
        return calibration

    def script(self, topology: Topology, seed: int) -> Script:
        """The script of this seed; the addresses of the servers do not matter.

        Raises ConfigError for another system than was calibrated.
        """
        calibration = self.system_of(topology)
        generator = np.random.default_rng([seed, 0xCA11])
        parameters, factor, shift_s = calibration.parameters, self.load_factor, 0.0
        if self.randomised:
            parameters = calibration.ensemble[int(generator.integers(len(calibration.ensemble)))]
            parameters = _reordered(parameters, server_order(calibration.topology, generator))
            factor *= float(generator.uniform(*LOAD_FACTOR))
            shift_s = float(generator.uniform(0, calibration.observed.seconds))
        arrivals = [
            played(entry, calibration.observed.seconds, self.duration_s, shift_s, factor)
            for entry in calibration.arrivals
        ]
        return script_of(
            parameters, arrivals, topology, seed=seed, duration_s=self.duration_s,
            load_balancers=calibration.load_balancers, name=self.name,
        )  # fmt: skip


def calibrated(calibration: Calibration, name: str = "calibrated") -> CalibratedScenario:
    """The simulated twin: best fit, arrivals as observed; `catalogue.randomised` makes its training variant."""
    summary = f"fitted to {calibration.observed.requests} requests of {calibration.observed.source or 'a live system'}"
    return CalibratedScenario(name, summary, 0.0, duration_s=calibration.observed.seconds, calibration=calibration)


def read_calibrated(path: Path) -> CalibratedScenario:
    """The twin of a `calibration.json`. Raises ConfigError."""
    return calibrated(Calibration.load(path), f"calibrated-{path.parent.name or path.stem}")


def server_order(topology: Topology, generator: np.random.Generator) -> IntArray:
    """A random order ``[servers]`` in which only servers of the same groups change places."""
    order = np.arange(topology.shape[1])
    for column in np.unique(topology.mask, axis=1).T:
        alike = np.flatnonzero((topology.mask == column[:, None]).all(axis=0))
        order[alike] = generator.permutation(alike)
    return order


def _reordered(parameters: Parameters, order: IntArray) -> Parameters:
    table = parameters.service_array_ms[:, order]
    return parameters.model_copy(update={"service_ms": tuple(tuple(map(float, row)) for row in table)})


def played(arrivals: Arrivals, length_s: float, duration_s: float, shift_s: float, factor: float) -> Arrivals:
    """The steps from `shift_s` on, repeated until `duration_s`."""
    starts = np.array([at_s for at_s, _ in arrivals.steps])
    rates = [rate * factor for _, rate in arrivals.steps]
    first = int(np.searchsorted(starts, shift_s, side="right")) - 1
    steps, turn, index = [(0.0, rates[first])], 0, first + 1
    while True:
        if index == len(rates):
            index, turn = 0, turn + 1
        at_s = float(starts[index]) + turn * length_s - shift_s
        if at_s >= duration_s:
            return arrivals.model_copy(update={"steps": tuple(steps)})
        steps.append((at_s, rates[index]))
        index += 1
