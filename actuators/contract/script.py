"""A script: what a scenario becomes for one seed, with explicit rates and server behaviour over time.

`envs.scenarios.catalogue` makes scripts; live and simulated testbeds play them. Times are seconds since `reset`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from actuators.contract.request_cost import RequestKind, SeenRequest
from actuators.contract.topology import Topology

ArrivalDistribution = Literal["exponential", "normal", "fixed", "zipf", "gamma", "weibull"]
SPREAD: tuple[ArrivalDistribution, ...] = ("gamma", "weibull")
"""Distributions whose coefficient of variation can be chosen."""
ServiceDistribution = Literal["constant", "exponential", "lognormal"]


@dataclass(frozen=True)
class RateStep:
    """From `start_s` until the next step requests arrive at `rate_rps`; 0 means none.

    Attributes:
        cv: coefficient of variation of the gaps, of `gamma` and `weibull`; 1 for all others.
    """

    start_s: float
    rate_rps: float
    distribution: ArrivalDistribution = "exponential"
    cv: float = 1.0


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
        blocking: a worker is held until the answer, also while the request is at the stages.
    """

    speeds: tuple[float, ...]
    workers: int = 4
    queue_limit: int = 512
    blocking: bool = False


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
class Cache:
    """A cache in front of a stage: requests of a cached group that hit it do not visit the stage.

    Attributes:
        cached: per group.
        hit: share of hits at the start.
        most: share of hits that a full cache gives.
        fill: every miss that is answered before its client gives up raises the share by (most - share) / fill.
        decay_s: time constant with which the share falls.
    """

    cached: tuple[bool, ...]
    hit: float
    fill: float
    most: float = 0.95
    decay_s: float = 20.0


@dataclass(frozen=True)
class Stage:
    """What all servers share and no balancer sees, a database for instance: connections with one line in order of
    arrival. A request visits the stages in turn after its work at the server. Testbeds on Ray have none.

    Attributes:
        work_s: per group, mean work of a visit; it varies as the work at the servers does.
        visits: per group, share of the requests that visit the stage.
        contention: work is multiplied by 1 + contention × waiting / connections, by `MAX_CONTENTION` at most.
    """

    connections: int
    work_s: tuple[float, ...]
    visits: tuple[float, ...]
    contention: float = 0.0
    cache: Cache | None = None


MAX_CONTENTION = 3.0
"""Largest factor of contention on the work at a stage."""


@dataclass(frozen=True)
class StageBehaviour:
    """How a stage behaves from `at_s` on, until the next entry for the same stage.

    Attributes:
        speed: factor on its speed.
        flush: its cache loses everything at `at_s`.
    """

    at_s: float
    stage: int
    speed: float = 1.0
    flush: bool = False


@dataclass(frozen=True)
class Clients:
    """How the clients of a group wait and repeat. Their failures do not change the rate of first attempts.

    With `users` it is a closed loop beside the stream of the group: each sends a request, waits until it is answered
    or lost for good, thinks, and sends the next one. Simulated testbeds only.

    Attributes:
        patience_s: an attempt is given up after it; the server works on.
        retries: attempts after the first, at most.
        retry_failed, retry_refused: probability of another attempt after one that was given up or answered with an
            error, and after one that was refused.
        backoff_s: mean pause before another attempt; it is uniform between half and one and a half of it.
        users: number of users in a closed loop; 0 for none.
        think_s: mean of their think times, which are exponential and at most ten times as long.
    """

    patience_s: float
    retries: int = 0
    retry_failed: float = 1.0
    retry_refused: float = 1.0
    backoff_s: float = 0.3
    users: int = 0
    think_s: float = 0.0


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
        stages: behind the servers; visited in order.
        stage_behaviours: ascending in `at_s`.
        clients: per group; none gives up or repeats when empty.
        deadlines_s: per group, what an answer in time is; nothing is late when empty.
        importance: per group, what an answer in time is worth; 1 when empty.
        kinds: per group, kinds of requests that differ in what they cost and in what NGINX sees of them, on top of
            the service-time distribution; all are alike when empty.
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
    stages: tuple[Stage, ...] = ()
    stage_behaviours: tuple[StageBehaviour, ...] = ()
    clients: tuple[Clients, ...] = ()
    deadlines_s: tuple[float, ...] = ()
    importance: tuple[float, ...] = ()
    kinds: tuple[tuple[RequestKind, ...], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Without the parts behind the servers and of the clients where there are none."""
        data = asdict(self)
        for name in _PARTS:
            if not data[name]:
                del data[name]
        for server in data["servers"]:
            if not server["blocking"]:
                del server["blocking"]
        for habits in data.get("clients", ()):
            if not habits["users"]:
                del habits["users"], habits["think_s"]
        for step in (step for stream in data["streams"] for step in stream["steps"]):
            if step["distribution"] not in SPREAD:
                del step["cv"]
        return data

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
        fields["stages"] = tuple(_stage(stage) for stage in data.get("stages", ()))
        fields["stage_behaviours"] = tuple(StageBehaviour(**b) for b in data.get("stage_behaviours", ()))
        fields["clients"] = tuple(Clients(**habits) for habits in data.get("clients", ()))
        for name in ("deadlines_s", "importance"):
            fields[name] = tuple(data.get(name, ()))
        fields["kinds"] = tuple(
            tuple(RequestKind(kind["share"], kind["work"], SeenRequest(**kind["seen"])) for kind in kinds)
            for kinds in data.get("kinds", ())
        )
        return cls(**fields)


_PARTS = ("stages", "stage_behaviours", "clients", "deadlines_s", "importance", "kinds")


def _stage(data: dict[str, Any]) -> Stage:
    cache = data.get("cache")
    lists = {name: tuple(data[name]) for name in ("work_s", "visits")}
    whole = None if cache is None else Cache(**{**cache, "cached": tuple(cache["cached"])})
    return Stage(**{**data, **lists, "cache": whole})


class Scenario(Protocol):
    """How load and server behaviour change over time, with a seed for everything random."""

    @property
    def name(self) -> str: ...

    def script(self, topology: Topology, seed: int) -> Script:
        """The script of this seed; equal seeds give equal scripts."""
        ...
