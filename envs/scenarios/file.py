"""Scenarios from YAML files, made of the same parts as the catalogue (docs/studies.md#scenarios)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from actuators.contract.script import SPREAD, ArrivalDistribution, Behaviour, ServiceDistribution
from actuators.contract.script_check import MAX_GAP_CV, MIN_GAP_CV
from actuators.errors import ConfigError, closest
from actuators.options import Options
from actuators.yaml_files import read_mapping
from envs.scenarios import disturbances as happen
from envs.scenarios.disturbances import ScriptExtent, Span

MAX_ROUNDS = 100_000
"""Of a periodic disturbance, and of a rate that jumps: each round has two changes per server, or two steps."""


class Part(Options):
    """A part of a scenario's file; every number in it is finite."""

    model_config = ConfigDict(allow_inf_nan=False)


class DisturbanceOptions(Part):
    """Random changes of the servers."""

    kind: Literal["none", "antagonist", "telegraph", "periodic", "degraded"] = "none"
    """antagonist: a noisy neighbour moves from server to server; telegraph: fast and slow periods of random length;
    periodic: servers are slowed in turn; degraded: crashes with slow start, and fast failures."""
    speed: tuple[float, float] = (0.5, 0.5)
    """Range of the factor on a disturbed server's speed; telegraph and periodic use the first value."""
    period_s: float = Field(default=20.0, ge=0.1)
    """periodic: seconds of one round over all servers."""


class OnOffOptions(Part):
    """A rate that jumps between two values after exponential times (a Markov-modulated process), with mean 1."""

    on_s: float = Field(default=10.0, gt=0.01)
    """Mean length of a period at the higher rate, in seconds."""
    off_s: float = Field(default=30.0, gt=0.01)
    """Mean length of a period at the lower rate, in seconds."""
    off_factor: float = Field(default=0.0, ge=0, lt=1)
    """The lower rate, as a share of the mean."""


class BehaviourOptions(Part):
    """One change of one server; fields as `actuators.contract.script.Behaviour`."""

    at_s: float = Field(ge=0)
    """Seconds since the start."""
    server: int = Field(ge=0)
    """Number of the server, from 0."""
    speed: float = Field(default=1.0, gt=0)
    """Factor on its speed."""
    error_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of requests answered at once with a 500."""
    error_service_s: float = Field(default=0.0005, ge=0)
    """Service time of an error."""
    refused: bool = False
    """Connections are refused."""
    hang: bool = False
    """Requests are never answered."""


class ScenarioFile(Part):
    """The keys of a scenario's YAML file."""

    name: str
    """Name in tables."""
    summary: str = ""
    """One line for lists of scenarios."""
    load: float = Field(gt=0, le=100)
    """Offered load, as a share of the capacity of all workers at their mean speed."""
    speeds: tuple[float, ...] | dict[str, tuple[float, ...]] = (1.0,)
    """Speed of each server, or a list per request type; a shorter list is repeated over the servers."""
    load_steps: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    """(start in seconds, factor on the rate) pairs, ascending from 0."""
    on_off: OnOffOptions | None = None
    """In place of load steps: a rate that jumps at random; none when not given."""
    surging_type: str = ""
    """Request type that the load steps apply to; all when empty."""
    disturbance: DisturbanceOptions = DisturbanceOptions()
    """What happens to the servers at random."""
    behaviours: tuple[BehaviourOptions, ...] = ()
    """Changes of servers at fixed times, in place of a disturbance."""
    duration_s: float = Field(default=600.0, gt=0, le=1e7)
    """Length of the script."""
    work_scale: float = Field(default=1.0, gt=0)
    """Factor on the work of every request; 2 suits a live testbed on a small machine."""
    workers: int = Field(default=4, ge=1)
    """Requests that a server serves at once."""
    queue_limit: int = Field(default=512, ge=0)
    """Maximum number of waiting requests."""
    arrivals: ArrivalDistribution = "exponential"
    """Distribution of the gaps between arrivals."""
    arrivals_cv: float = Field(default=1.0, ge=MIN_GAP_CV, le=MAX_GAP_CV)
    """Coefficient of variation of these gaps, when gamma or weibull."""
    service: ServiceDistribution = "lognormal"
    """Distribution of the work."""
    service_cv: float = Field(default=1.0, ge=0)
    """Coefficient of variation of the work, when lognormal."""
    load_balancers: int = Field(default=1, ge=1)
    """Number of balancers that share the traffic but no state."""

    def speeds_of(self, servers: int, request_type: str) -> list[float]:
        """The speeds of a type, repeated over the servers."""
        given = self.speeds.get(request_type, (1.0,)) if isinstance(self.speeds, dict) else self.speeds
        return [given[server % len(given)] for server in range(servers)]

    def disturb(self, extent: ScriptExtent, generator: happen.Generator) -> happen.Behaviours:
        """Random changes of the servers."""
        for number, entry in enumerate(self.behaviours):
            if entry.server >= extent.servers:
                where = f"scenario {self.name}: behaviours.{number}.server"
                remedy = f"servers are numbered from 0 to {extent.servers - 1}"
                raise ConfigError(f"there is no server {entry.server}", where=where, remedy=remedy)
        if self.behaviours:
            return happen.in_order([Behaviour(**entry.model_dump()) for entry in self.behaviours])
        d = self.disturbance
        kinds = {
            "none": happen.none,
            "antagonist": happen.antagonist(Span(*d.speed)),
            "telegraph": happen.telegraph(d.speed[0]),
            "periodic": happen.periodic(d.speed[0], d.period_s),
            "degraded": happen.degraded(),
        }
        return kinds[d.kind](extent, generator)

    def shape_load(self, extent: ScriptExtent, generator: happen.Generator) -> happen.LoadSteps:
        """The load's factor over time."""
        if (jumps := self.on_off) is not None:
            return happen.on_off(jumps.on_s, jumps.off_s, jumps.off_factor)(extent, generator)
        return tuple((float(start_s), float(factor)) for start_s, factor in self.load_steps)

    def require_few_changes(self, duration_s: float, path: Path) -> None:
        """Raises ConfigError when so many rounds of the disturbance or of the rate take place in this time that their
        list would not fit into memory.
        """
        rounds_s = {}
        if self.disturbance.kind == "periodic":
            rounds_s["disturbance.period_s"] = self.disturbance.period_s
        if self.on_off is not None:
            rounds_s["on_off"] = self.on_off.on_s + self.on_off.off_s
        for field, round_s in rounds_s.items():
            if duration_s / round_s > MAX_ROUNDS:
                what = f"{duration_s / round_s:.3g} rounds of {round_s:g} s in {duration_s:g} s"
                remedy = f"{MAX_ROUNDS} are the most: make the rounds longer or the scenario shorter"
                raise ConfigError(what, where=f"{path}: {field}", remedy=remedy)


def read_scenario_file(path: Path) -> ScenarioFile:
    """Reads a scenario. Raises ConfigError for an unreadable file, an unknown key (closest match) or a wrong value."""
    try:
        content = read_mapping(path, "scenario")
    except OSError as error:
        raise ConfigError(f"cannot read the scenario: {error.strerror}", where=str(path)) from error
    try:
        scenario = ScenarioFile.model_validate(content)
    except ValidationError as error:
        raise _explain(error.errors()[0], path) from error
    _check(scenario, path)
    return scenario


def _explain(first: Any, path: Path) -> ConfigError:
    where = f"{path}: {'.'.join(map(str, first['loc']))}"
    if first["type"] == "extra_forbidden":
        parts = (ScenarioFile, DisturbanceOptions, OnOffOptions, BehaviourOptions)
        known = {name: field for part in parts for name, field in part.model_fields.items()}
        return ConfigError("unknown key", where=where, remedy=closest(str(first["loc"][-1]), known))
    return ConfigError(str(first["msg"]), where=where, remedy="repair the file")


def _check(scenario: ScenarioFile, path: Path) -> None:
    lists = list(scenario.speeds.values()) if isinstance(scenario.speeds, dict) else [scenario.speeds]
    if not all(speeds and min(speeds) > 0 for speeds in lists):
        raise ConfigError("a list of speeds is empty or a speed is not positive", where=str(path))
    starts = [start_s for start_s, _ in scenario.load_steps]
    if starts != sorted(starts) or starts[:1] != [0.0] or min(factor for _, factor in scenario.load_steps) < 0:
        raise ConfigError("load steps must ascend from 0 s with factors of at least 0", where=str(path))
    if scenario.arrivals_cv != 1.0 and scenario.arrivals not in SPREAD:
        what, remedy = f"{scenario.arrivals} gaps have a fixed cv", f"set arrivals to {' or '.join(SPREAD)}"
        raise ConfigError(what, where=f"{path}: arrivals_cv", remedy=remedy)
    if scenario.service != "lognormal" and scenario.given("service_cv"):
        what, remedy = f"{scenario.service} work has a fixed cv", "set service to lognormal, or leave it out"
        raise ConfigError(what, where=f"{path}: service_cv", remedy=remedy)
    if scenario.surging_type and scenario.on_off is None and not scenario.given("load_steps"):
        what = "no load changes that the type could have"
        raise ConfigError(what, where=f"{path}: surging_type", remedy="give load_steps or on_off, or leave it out")
    _check_disturbance(scenario, path)
    if scenario.on_off is not None and scenario.given("load_steps"):
        raise ConfigError("a rate that jumps at random has no steps", where=f"{path}: load_steps", remedy="keep one")


def _check_disturbance(scenario: ScenarioFile, path: Path) -> None:
    disturbance, where = scenario.disturbance, f"{path}: disturbance"
    slowest, fastest = disturbance.speed
    if not 0 < slowest <= fastest:
        what, remedy = f"speed {[slowest, fastest]} is not a range above 0", "write the lower one first"
        raise ConfigError(what, where=f"{where}.speed", remedy=remedy)
    if scenario.behaviours and disturbance.kind != "none":
        what = f"changes at fixed times take the place of '{disturbance.kind}'"
        raise ConfigError(what, where=f"{path}: behaviours", remedy="keep behaviours or the disturbance")
    for field, kinds in (("period_s", ("periodic",)), ("speed", ("antagonist", "telegraph", "periodic"))):
        if disturbance.given(field) and disturbance.kind not in kinds:
            what, remedy = f"'{disturbance.kind}' does not use it", f"leave it out, or set kind to {' or '.join(kinds)}"
            raise ConfigError(what, where=f"{where}.{field}", remedy=remedy)
