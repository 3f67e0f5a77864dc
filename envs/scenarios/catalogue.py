"""The scenarios S1 to S10 (docs/studies.md#scenarios) and the demo's, for simulated and live testbeds.

A scenario fits any number of servers and any groups. The published figures hold for three servers and the request
types of the social network.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.script import (
    ArrivalDistribution,
    Clients,
    RateStep,
    Script,
    ServerProfile,
    ServiceDistribution,
    Stream,
)
from actuators.contract.topology import Topology
from actuators.errors import ConfigError, closest
from actuators.social_network.costs import KINDS, NOISE_CV
from envs.scenarios import disturbances as happen
from envs.scenarios.disturbances import Disturbance, LoadShape, ScriptExtent, Span

TYPES = {"compose": (0.018, 0.10), "home_read": (0.0044, 0.60), "user_read": (0.0033, 0.30)}
"""Request type → mean work in seconds at speed 1 and share of the requests."""
_OTHER_TYPE = (0.00543, 0.33)

LIVE_WORK_SCALE = 2.0
"""Factor on the work on a live testbed: half the requests per second at the same load."""

_NOMINAL_LOAD = {"S2b": 0.325, "S6": 0.5, "S11": 0.65}
"""Where the load of a scenario is not that of ordinary times."""

_PATIENCE_S = 3600.0
"""Of users in a closed loop: none gives up."""

Speeds = Callable[[int, str], list[float]]
"""(servers, request type) → speed of each server at that type."""


def equal_speeds(servers: int, request_type: str) -> list[float]:
    """Equal speeds."""
    return [1.0] * servers


def falling_speeds(fastest: float, slowest: float) -> Speeds:
    """Evenly spaced speeds from the fastest to the slowest server, equal for all types."""

    def speeds(servers: int, request_type: str) -> list[float]:
        return [float(s) for s in np.linspace(fastest, slowest, servers)] if servers > 1 else [1.0]

    return speeds


def special_speeds(servers: int, request_type: str) -> list[float]:
    """In turn: fast at composing, fast at reading, equal at both."""
    pattern = (2.0, 0.5, 1.0) if request_type == "compose" else (0.7, 1.3, 1.0)
    return [pattern[server % 3] for server in range(servers)]


@dataclass(frozen=True)
class StudyScenario:
    """One scenario; `script` makes its script for a topology and seed.

    Attributes:
        load: offered load, as a share of the capacity of all workers at their mean speed.
        load_shape, shaped_type: how the rate changes over time, of one request type or of all ("").
        named_types: request types that the speeds name; the topology must have them.
        randomised: the training variant: load +U(-.12, .06), servers permuted, speeds ×U(.9, 1.1),
            periods ×U(.8, 1.25).
        work_scale: factor on the work of every request; rates fall accordingly.
        load_balancers: number of balancers without shared state (machines × workers).
        arrivals_cv: coefficient of variation of gamma and weibull gaps.
        think_s: the same load by users in a closed loop who think for this long on average; 0 for open arrivals.
        costs: whether requests of a type differ in what they cost and in what NGINX sees of them, as those of
            `actuators.social_network.costs`; `service_cv` is then the variation of the rest.
        busiest_share: share of the requests that the most frequent type makes; its usual one when 0.
    """

    name: str
    summary: str
    load: float
    speeds: Speeds = equal_speeds
    disturbance: Disturbance = happen.none
    load_shape: LoadShape = happen.steady
    shaped_type: str = ""
    load_balancers: int = 1
    duration_s: float = 600.0
    work_scale: float = 1.0
    workers: int = 4
    queue_limit: int = 512
    arrivals: ArrivalDistribution = "exponential"
    arrivals_cv: float = 1.0
    think_s: float = 0.0
    busiest_share: float = 0.0
    service: ServiceDistribution = "lognormal"
    service_cv: float = 1.0
    randomised: bool = False
    named_types: tuple[str, ...] = ()
    costs: bool = False

    def script(self, topology: Topology, seed: int) -> Script:
        """The script of this seed; equal seeds give equal scripts."""
        generator = np.random.default_rng([seed, zlib.crc32(self.name.encode()), self.randomised])
        speeds, load, extent = self._resolve(topology, generator)
        work = [TYPES.get(t, _OTHER_TYPE) for t in topology.request_types]
        shares = self._shares(np.array([share for _, share in work]))
        mean_s = np.array([mean for mean, _ in work]) * self.work_scale
        # By definition of S3 the capacity of a specialised server is 1.
        nominal = 1.0 if self.speeds is special_speeds else float(speeds.mean())
        rate_rps = load * self.workers * len(topology.servers) * nominal / float(shares @ mean_s)
        return Script(
            name=self.name,
            seed=seed,
            duration_s=self.duration_s,
            streams=self._streams(topology, rate_rps * shares * (self.think_s == 0), extent, generator),
            clients=self._users(rate_rps * shares, mean_s),
            servers=tuple(ServerProfile(tuple(map(float, row)), self.workers, self.queue_limit) for row in speeds),
            mean_service_s=tuple(map(float, mean_s)),
            service_distribution=self.service,
            service_cv=self.service_cv,
            behaviours=self.disturbance(extent, generator),
            load_balancers=self.load_balancers,
            kinds=tuple(tuple(KINDS.get(t, ())) for t in topology.request_types) if self.costs else (),
        )

    def nominal(self) -> StudyScenario:
        """The same system at ordinary times: no disturbance, no surge, no overload."""
        return replace(
            self, disturbance=happen.none, load_shape=happen.steady, load=_NOMINAL_LOAD.get(self.name, self.load)
        )

    def _users(self, rates_rps: FloatArray, mean_s: FloatArray) -> tuple[Clients, ...]:
        """As many users of each type as send at its rate when every answer takes the mean service time."""
        if self.think_s == 0:
            return ()
        counts = np.maximum(np.rint(rates_rps * (self.think_s + mean_s)), 1)
        return tuple(Clients(_PATIENCE_S, users=int(count), think_s=self.think_s) for count in counts)

    def _shares(self, usual: FloatArray) -> FloatArray:
        shares: FloatArray = usual / usual.sum()
        if self.busiest_share and len(shares) > 1:
            busiest = np.arange(len(shares)) == shares.argmax()
            rest = shares[~busiest].sum()
            shares = np.where(busiest, self.busiest_share, shares / rest * (1.0 - self.busiest_share))
        return shares

    def _resolve(
        self, topology: Topology, generator: np.random.Generator
    ) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float64]], float, ScriptExtent]:
        for name in self.named_types:
            if name not in topology.request_types:
                remedy = closest(name, topology.request_types)
                raise ConfigError(f"no request type '{name}'", where=f"scenario {self.name}: speeds", remedy=remedy)
        servers = len(topology.servers)
        speeds = np.array([self.speeds(servers, t) for t in topology.request_types]).T
        if not self.randomised:
            return speeds, self.load, ScriptExtent(servers, self.duration_s)
        load = max(self.load + generator.uniform(-0.12, 0.06), 0.1)
        jitter = generator.uniform(0.9, 1.1, speeds.shape if self.speeds is special_speeds else (servers, 1))
        stretch = float(generator.uniform(0.8, 1.25))
        return generator.permutation(speeds * jitter), load, ScriptExtent(servers, self.duration_s, stretch)

    def _streams(
        self,
        topology: Topology,
        rates_rps: np.ndarray[tuple[int], np.dtype[np.float64]],
        extent: ScriptExtent,
        generator: np.random.Generator,
    ) -> tuple[Stream, ...]:
        shape, shaped = self.load_shape(extent, generator), self.shaped_type
        if shaped and shaped not in topology.request_types and shaped not in TYPES:
            remedy = closest(shaped, topology.request_types)
            raise ConfigError(f"no request type '{shaped}'", where=f"scenario {self.name}", remedy=remedy)
        if shaped not in topology.request_types:
            shaped = topology.request_types[min(1, len(topology.request_types) - 1)] if shaped else ""
        return tuple(
            Stream(
                t,
                tuple(RateStep(s, float(rate) * f, self.arrivals, self.arrivals_cv) for s, f in shape)
                if t == shaped or not shaped
                else (RateStep(0.0, float(rate), self.arrivals, self.arrivals_cv),),
            )
            for t, rate in zip(topology.request_types, rates_rps, strict=True)
        )


@dataclass(frozen=True)
class Mixture:
    """Each seed draws one of several scenarios: the training set of a generalist."""

    scenarios: tuple[StudyScenario, ...]
    name: str = "mixture"

    def script(self, topology: Topology, seed: int) -> Script:
        """The script of this seed; equal seeds give equal scripts."""
        chosen = np.random.default_rng([seed, zlib.crc32(self.name.encode())]).integers(len(self.scenarios))
        return self.scenarios[int(chosen)].script(topology, seed)


@dataclass(frozen=True)
class Rotation:
    """Consecutive seeds, from `first_seed` on, play the scenarios in turn."""

    scenarios: tuple[StudyScenario, ...]
    first_seed: int
    name: str = "rotation"

    def script(self, topology: Topology, seed: int) -> Script:
        """The script of this seed; equal seeds give equal scripts."""
        return self.scenarios[(seed - self.first_seed) % len(self.scenarios)].script(topology, seed)


_HETERO, _STRONG = falling_speeds(1.3, 0.7), falling_speeds(1.6, 0.4)

SCENARIOS = {
    s.name: s
    for s in (
        StudyScenario("S1", "equal servers, steady load 70 %", 0.70),
        StudyScenario("S2", "speeds 1.3, 1.0, 0.7 at 65 %", 0.65, _HETERO),
        StudyScenario("S2b", "speeds 1.6, 1.0, 0.4 at 65 %", 0.65, _STRONG),
        StudyScenario("S3", "servers specialised by request type, 65 %", 0.65, special_speeds),
        StudyScenario(
            "S4",
            "a noisy neighbour slows one server after another, 58 %",
            0.58,
            disturbance=happen.antagonist(Span(0.45, 0.75)),
        ),
        StudyScenario("S5", "each server good or half as fast, at random, 55 %", 0.55, disturbance=happen.telegraph()),
        StudyScenario(
            "S6",
            "surges up to 90 % and silence, unequal servers",
            0.9,
            _HETERO,
            load_shape=happen.surges(1.0, 0.05),
            duration_s=1500.0,
        ),
        StudyScenario("S7", "crashes with slow start, and fast failures, 55 %", 0.55, disturbance=happen.degraded()),
        StudyScenario(
            "S8",
            "reads overload the servers now and then, 55 to 98 %",
            0.55,
            load_shape=happen.overloads(),
            shaped_type="home_read",
        ),
        StudyScenario(
            "S9",
            "eight contexts that share nothing, unequal servers, noisy neighbour",
            0.55,
            _HETERO,
            happen.antagonist(Span(0.5, 0.8)),
            load_balancers=8,
        ),
        StudyScenario("S10", "servers half as fast in turn, every 20 s, 55 %", 0.55, disturbance=happen.periodic()),
        StudyScenario(
            "demo",
            "servers specialised by request type, 65 %, work for a live testbed",
            0.65,
            special_speeds,
            work_scale=LIVE_WORK_SCALE,
        ),
    )
}
STUDY = tuple(name for name in SCENARIOS if name != "demo")
"""Names of the eleven scenarios S1 to S10, S2b included."""

CONVERSATION_CV, CONVERSATION_DISPERSION, CONVERSATION_REQUESTS = 1.1, 16.0, 330
"""Of the conversations in Azure's traces of 2023: gaps, and variance over mean of the count of a minute, in which 330
requests come on average."""
_SWING = math.sqrt((CONVERSATION_DISPERSION - CONVERSATION_CV**2) / CONVERSATION_REQUESTS)
"""Half the relative difference of the two rates that gives this dispersion, when they change much more slowly."""

TPC_W_THINK_S = 7.0
"""Mean think time of TPC-W's emulated browsers, exponential and cut at ten times as long (clause 5.3.2.1)."""

VARYING = {
    s.name: s
    for s in (
        StudyScenario(
            "S11", "what a request costs shows in its arguments and body; unequal servers, 90 %", 0.9, _HETERO,
            service_cv=NOISE_CV, costs=True,
        ),
    )
}  # fmt: skip
"""Scenarios whose requests differ in cost, by name (docs/late-binding.md#request-cost)."""

TRACED = {
    s.name: s
    for s in (
        StudyScenario(
            "T1", "bursts as of code completion (Azure 2023): gamma gaps of cv 13; unequal servers, 50 %", 0.5,
            _HETERO, arrivals="gamma", arrivals_cv=13.0,
        ),
        StudyScenario(
            "T2", "conversations (Azure 2023): gamma gaps of cv 1.1, dispersion 16; unequal servers, 60 %", 0.6,
            _HETERO, load_shape=happen.on_off(20.0, 20.0, 1.0 - _SWING), arrivals="gamma", arrivals_cv=CONVERSATION_CV,
        ),
        StudyScenario(
            "T3", "one type makes 90 %, gamma gaps of cv 2, a daily wave (ServeGen); specialised servers, 40 %", 0.4,
            special_speeds, load_shape=happen.wave(1.8, 200.0), arrivals="gamma", arrivals_cv=2.0, busiest_share=0.9,
        ),
        StudyScenario(
            "T4", "flash crowds of 3.2 times the rate; unequal servers, 28 to 90 %", 0.28, _HETERO,
            load_shape=happen.flashes(3.2, 5.0, Span(20, 40), 30.0, Span(40, 80)),
        ),
        StudyScenario(
            "T5", "work over three orders of magnitude (Huawei's functions); specialised servers, 60 %", 0.6,
            special_speeds, service_cv=2.84,
        ),
        StudyScenario(
            "T6", "users in a closed loop who think for 7 s (TPC-W); unequal servers, 85 %", 0.85, _HETERO,
            think_s=TPC_W_THINK_S,
        ),
    )
}  # fmt: skip
"""Load re-drawn from published statistics, by name (docs/studies.md#load-from-published-statistics)."""


def randomised(base: StudyScenario, duration_s: float = 100.0) -> StudyScenario:
    """The training variant of a scenario."""
    return replace(base, randomised=True, duration_s=duration_s)
