"""The result of a calibration, as values and as `calibration.json` (docs/file-formats.md).

`calibration.json` is the JSON form of `Calibration`: ``{format_version, groups, request_types, servers,
members, priorities, response_times, weights, down, method, load_balancers, observed, parameters, ensemble, arrivals,
held_out}``, tables ``[groups][servers]``, units in names.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import Field, ValidationError, field_validator

from actuators.contract.arrays import FloatArray
from actuators.contract.control import BalancingMethod, Weights
from actuators.contract.script import ArrivalDistribution, ServiceDistribution
from actuators.contract.script_check import MAX_RATE_RPS
from actuators.contract.topology import Topology, group_of
from actuators.errors import ConfigError
from actuators.files import read_regular, write_atomic
from actuators.options import Options, first_fault

MEAN_BAR, P99_BAR = 0.10, 0.20
"""Largest relative errors of mean and p99 per group with which a calibration counts as faithful."""

_Cell = TypeVar("_Cell")
_MAX_BYTES = 2**28

PositiveMs = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Parameters(Options):
    """Parameters of the simulated system."""

    service_ms: tuple[tuple[PositiveMs, ...], ...]
    """Mean service time per group and server; the group's mean where it lacks the server."""
    workers: int = Field(ge=1)
    """Requests that a server serves at once."""
    service_cv: float = Field(gt=0, le=10)
    """Standard deviation of a service time divided by its mean; 1 where it is exponential."""
    overhead_ms: float = Field(ge=0)
    """Time that every request takes besides service and waiting."""
    service_distribution: ServiceDistribution = "lognormal"
    """Distribution of the service times: with a lognormal one hardly any request is very short."""

    @property
    def service_array_ms(self) -> FloatArray:
        """``[groups, servers]``."""
        return np.array(self.service_ms)

    @property
    def mean_service_s(self) -> FloatArray:
        """``[groups]`` seconds: geometric mean over the servers, to which `speeds` are relative."""
        mean: FloatArray = np.exp(np.log(self.service_array_ms).mean(axis=1)) / 1e3
        return mean

    @property
    def speeds(self) -> FloatArray:
        """``[groups, servers]``: how many times faster than the group's mean service time."""
        speeds: FloatArray = self.mean_service_s[:, None] * 1e3 / self.service_array_ms
        return speeds


class Arrivals(Options):
    """How the requests of one group arrived."""

    distribution: ArrivalDistribution
    """Distribution of the gaps whose dispersion is nearest."""
    dispersion: float = Field(ge=0)
    """Variance of a window's count divided by its mean, without slow changes; 1 for Poisson arrivals."""
    steps: tuple[tuple[float, float], ...] = Field(min_length=1)
    """(start in seconds from 0, requests per second), ascending."""

    def mean_rps(self, seconds: float) -> float:
        """Over so many seconds, at the end of which the last step ends."""
        starts_s, rates_rps = np.array(self.steps).T
        lengths_s = np.diff(starts_s, append=max(seconds, starts_s[-1]))
        return float(np.average(rates_rps, weights=lengths_s)) if lengths_s.sum() > 0 else float(rates_rps.mean())

    @field_validator("steps")
    @classmethod
    def _ascend(cls, steps: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        starts_s = [start_s for start_s, _ in steps]
        if starts_s[0] != 0 or not all(earlier <= later for earlier, later in pairwise(starts_s)):
            raise ValueError("must begin at 0 s and ascend")
        if not all(0 <= rate_rps <= MAX_RATE_RPS for _, rate_rps in steps):
            raise ValueError(f"rates must be from 0 to {MAX_RATE_RPS:g} per second")
        return steps


class HeldOutComparison(Options):
    """Simulated and live held-out windows of one group, or of one of its servers."""

    group: str
    """Name of the group."""
    server: str
    """Address; empty for the whole group."""
    requests: int
    """Live requests compared."""
    live_ms: tuple[float, float, float]
    """Mean, p50, p99 of the live response times."""
    simulated_ms: tuple[float, float, float]
    """Mean, p50, p99 of the simulated response times."""

    def errors(self) -> tuple[float, float, float]:
        """Relative errors of mean, p50 and p99: simulated / live - 1."""
        pairs = zip(self.simulated_ms, self.live_ms, strict=True)
        mean, p50, p99 = (simulated / max(live, 1e-9) - 1 for simulated, live in pairs)
        return mean, p50, p99

    @property
    def within(self) -> bool:
        """Mean within 10 % and p99 within 20 %."""
        mean, _, p99 = self.errors()
        return abs(mean) <= MEAN_BAR and abs(p99) <= P99_BAR


class RecordingSummary(Options):
    """The recording behind the calibration."""

    source: str
    """Snapshot file."""
    windows: int
    """Usable windows, held-out ones included."""
    left_out: int
    """Windows with faults."""
    requests: int
    """Requests in the usable windows."""
    seconds: float = Field(ge=0.1, le=1e9)
    """Total length of the usable windows."""
    error_ratio: float
    """Share of answers with a 5xx status; the simulator is fitted without failures."""


class ResponseTimes(Options):
    """Response times of one group in the recording, and the deadline that follows from them."""

    mean_ms: float = Field(ge=0)
    """Mean."""
    deviation_ms: float = Field(ge=0)
    """Standard deviation."""
    deadline_ms: PositiveMs
    """Mean + (1 + 1 / priority) standard deviations, or the deadline that was given."""
    requests: int = Field(ge=0)
    """Number of requests that these figures rest on."""


def derived_deadline_ms(mean_ms: float, deviation_ms: float, priority: float) -> float:
    """The deadline of a group for which none was given, at least 1 ms (docs/glossary.md#deadline)."""
    return max(mean_ms + (1 + 1 / priority) * deviation_ms, 1.0)


class Calibration(Options):
    """A fitted simulator with its uncertainty and its errors on held-out windows.

    Files of version 1 hold neither `members`, `priorities`, `response_times`, `weights` nor `down`.
    """

    format_version: Literal[1, 2] = 2
    """Version of the file format."""
    groups: tuple[str, ...]
    """Upstream names."""
    request_types: tuple[str, ...]
    """One per group."""
    servers: tuple[str, ...]
    """Addresses."""
    members: tuple[tuple[str, ...], ...] = ()
    """Addresses of the servers of each group; all servers when empty."""
    priorities: tuple[float, ...] = ()
    """Priority of each group; 2 each when empty."""
    response_times: tuple[ResponseTimes, ...] = ()
    """What was observed of each group; empty when unknown."""
    weights: tuple[tuple[int, ...], ...] = ()
    """Weights in force at the end of the recording, at most 100, 0 where a group lacks the server; empty when
    unknown."""
    down: tuple[tuple[bool, ...], ...] = ()
    """Servers out of rotation at the end of the recording."""
    method: BalancingMethod
    """Balancing method during the recording."""
    load_balancers: int = Field(default=1, ge=1)
    """Number of NGINX workers that share no balancing state."""
    observed: RecordingSummary
    """The recording."""
    parameters: Parameters
    """Best fit."""
    ensemble: tuple[Parameters, ...]
    """Fits to bootstrap resamples of the windows."""
    arrivals: tuple[Arrivals, ...]
    """One per group."""
    held_out: tuple[HeldOutComparison, ...]
    """Per group and server, and per group."""

    def interval(self, share: float = 0.95) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
        """Lower and upper bounds of every parameter by name, over the ensemble."""
        names = ("service_ms", "workers", "service_cv", "overhead_ms")
        drawn = {name: np.array([getattr(member, name) for member in self.ensemble], float) for name in names}
        tail = (1 - share) / 2
        low, high = ({n: np.quantile(v, q, axis=0) for n, v in drawn.items()} for q in (tail, 1 - tail))
        return low, high

    @cached_property
    def topology(self) -> Topology:
        """The system that was recorded. Raises ConfigError for names that no NGINX can have."""
        members = self.members or (self.servers,) * len(self.groups)
        priorities = self.priorities or (2.0,) * len(self.groups)
        kinds = zip(self.groups, self.request_types, priorities, members, strict=True)
        return Topology(tuple(group_of(name, servers, kind, priority) for name, kind, priority, servers in kinds))

    @property
    def deadlines_s(self) -> FloatArray | None:
        """``[groups]`` seconds; None for a file of version 1."""
        return np.array([t.deadline_ms for t in self.response_times]) / 1e3 if self.response_times else None

    @property
    def rates_rps(self) -> FloatArray:
        """``[groups]``, > 0: requests per second, the mean of the recording, of which the steps are unequal parts."""
        return np.maximum([each.mean_rps(self.observed.seconds) for each in self.arrivals], 1e-6)

    @property
    def today(self) -> Weights:
        """The weights in force at the end of the recording; equal ones for a file of version 1."""
        if not self.weights:
            return Weights.equal(self.topology)
        return Weights(self.topology, np.array(self.weights), np.array(self.down, bool))

    @property
    def balancing(self) -> str:
        """What balanced during the recording, in words."""
        alone = self.load_balancers
        return f"{self.method}, " + (f"{alone} workers that share no state" if alone > 1 else "one shared state")

    @property
    def compared(self) -> tuple[HeldOutComparison, ...]:
        """Whole groups on held-out windows; without those that had fewer than 20 requests there."""
        return tuple(row for row in self.held_out if not row.server)

    @property
    def uncompared(self) -> tuple[str, ...]:
        """Names of the groups that had too few held-out requests to tell."""
        known = {row.group for row in self.compared}
        return tuple(name for name in self.groups if name not in known)

    @property
    def faithful(self) -> bool:
        """Whether mean (10 %) and p99 (20 %) agree on held-out windows of every group; not where one is uncompared."""
        return not self.uncompared and all(row.within for row in self.compared)

    def of_groups(self, names: Sequence[str]) -> Calibration:
        """The part of the system that these groups and their servers are.

        Raises ConfigError for an unknown group, or when another group shares a server with them.
        """
        topology = self.topology
        kept = sorted({topology.group_index(name) for name in names})
        inside = np.isin(np.arange(len(self.groups)), kept)
        own = topology.mask[inside].any(axis=0)
        shared = own & topology.mask[~inside].any(axis=0)
        if shared.any():
            server = int(np.argmax(shared))
            other = self.groups[int(np.argmax(topology.mask[:, server] & ~inside))]
            what = f"group {other} shares server {self.servers[server]} with the chosen ones"
            raise ConfigError(what, where="--groups", remedy=f"name {other} as well")

        def rows(table: tuple[tuple[_Cell, ...], ...]) -> tuple[tuple[_Cell, ...], ...]:
            return tuple(tuple(np.array(table, object)[g][own]) for g in kept) if table else ()

        def items(values: tuple[_Cell, ...]) -> tuple[_Cell, ...]:
            return tuple(values[g] for g in kept) if values else ()

        def part(member: Parameters) -> Parameters:
            return member.model_copy(update={"service_ms": rows(member.service_ms)})

        return self.changed(
            {
                "groups": items(self.groups), "request_types": items(self.request_types),
                "servers": tuple(np.array(self.servers, object)[own]), "members": items(self.members),
                "priorities": items(self.priorities), "response_times": items(self.response_times),
                "weights": rows(self.weights), "down": rows(self.down), "arrivals": items(self.arrivals),
                "parameters": part(self.parameters), "ensemble": tuple(map(part, self.ensemble)),
                "held_out": tuple(row for row in self.held_out if row.group in names),
            }
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Writes `calibration.json`, atomically."""
        write_atomic(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Reads `calibration.json`. Raises ConfigError for a file that is unreadable or not a calibration."""
        remedy = "make one with: deepsched calibrate SNAPSHOTS"
        try:
            calibration = cls.model_validate_json(read_regular(path, _MAX_BYTES))
        except OSError as error:
            raise ConfigError(f"cannot read: {error.strerror}", where=str(path), remedy=remedy) from error
        except ValidationError as error:
            raise ConfigError(f"not a calibration: {first_fault(error)}", where=str(path), remedy=remedy) from error
        if not calibration._fits():
            raise ConfigError("tables do not fit the groups and servers", where=str(path), remedy=remedy)
        return calibration

    def _fits(self) -> bool:
        groups, servers = len(self.groups), len(self.servers)
        tables = [member.service_ms for member in (self.parameters, *self.ensemble)]
        tables += [table for table in (self.weights, self.down) if table]
        lists: list[tuple[object, ...]] = [self.arrivals, self.request_types]
        lists += [each for each in (self.members, self.priorities, self.response_times) if each]
        return (
            bool(self.ensemble)
            and all(len(each) == groups for each in (*tables, *lists))
            and all(len(row) == servers for table in tables for row in table)
            and self.topology.servers == self.servers
            and bool(self.today.shares().any())
        )
