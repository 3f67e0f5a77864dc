"""A script: what a scenario becomes for one seed, with explicit rates and server behaviour over time.

`envs.scenarios.catalogue` makes scripts; live and simulated testbeds play them. Times are seconds since `reset`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from actuators.contract.topology import Topology

ArrivalDistribution = Literal["exponential", "normal", "fixed", "zipf"]
ServiceDistribution = Literal["constant", "exponential", "lognormal"]


@dataclass(frozen=True)
class RateStep:
    """From `start_s` until the next step requests arrive at `rate_rps`; 0 means none."""

    start_s: float
    rate_rps: float
    distribution: ArrivalDistribution = "exponential"


@dataclass(frozen=True)
class Stream:
    """The arrivals of one request type; steps ascend in `start_s` and begin at 0."""

    request_type: str
    steps: tuple[RateStep, ...]


@dataclass(frozen=True)
class ServerProfile:
    """Emulated capacity of one server.

    Attributes:
        speeds: per group, how many times faster than the mean service time.
        workers: requests served at once.
        queue_limit: requests waiting beyond which the server answers 503.
    """

    speeds: tuple[float, ...]
    workers: int = 4
    queue_limit: int = 512


@dataclass(frozen=True)
class Behaviour:
    """How one server behaves from `at_s` on, until the next entry for the same server.

    Attributes:
        server: index in the topology's servers.
        speed: multiplies every speed of the profile (interference, slow start).
        error_ratio: share of requests answered at once with a 500.
        error_service_s: service time of those answers in seconds.
        refused: connections are refused (crash); what was in progress is lost.
        hang: connections and requests are accepted, responses never sent.
    """

    at_s: float
    server: int
    speed: float = 1.0
    error_ratio: float = 0.0
    error_service_s: float = 0.0005
    refused: bool = False
    hang: bool = False


@dataclass(frozen=True)
class Script:
    """Everything that happens on a testbed after `reset`.

    Attributes:
        mean_service_s: per group, mean service time at speed 1.
        service_cv: coefficient of variation of the lognormal.
        behaviours: ascending in `at_s`.
        load_balancers: load balancers that share the traffic but no state; 1 for a single NGINX.
        overhead_s: what every request takes on its way to a worker. Only simulated testbeds emulate it, because a
            live one has real overhead.
    """

    name: str
    seed: int
    duration_s: float
    streams: tuple[Stream, ...]
    servers: tuple[ServerProfile, ...]
    mean_service_s: tuple[float, ...]
    service_distribution: ServiceDistribution = "lognormal"
    service_cv: float = 1.0
    behaviours: tuple[Behaviour, ...] = ()
    load_balancers: int = 1
    overhead_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Script:
        """Inverse of `to_json`; raises TypeError or KeyError for a dict of another shape."""
        fields = dict(data)
        fields["streams"] = tuple(
            Stream(s["request_type"], tuple(RateStep(**step) for step in s["steps"])) for s in data["streams"]
        )
        fields["servers"] = tuple(ServerProfile(**{**s, "speeds": tuple(s["speeds"])}) for s in data["servers"])
        fields["mean_service_s"] = tuple(data["mean_service_s"])
        fields["behaviours"] = tuple(Behaviour(**b) for b in data["behaviours"])
        return cls(**fields)


class Scenario(Protocol):
    """How load and server behaviour change over time, with a seed for everything random."""

    @property
    def name(self) -> str: ...

    def script(self, topology: Topology, seed: int) -> Script:
        """The script of this seed; equal seeds give equal scripts."""
        ...
