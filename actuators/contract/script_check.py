"""What a script must be like before a testbed plays it; compiled code relies on every line of it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

from actuators.contract.script import SPREAD, ArrivalDistribution, Cache, RateStep, Script, ServiceDistribution, Stage
from actuators.contract.topology import Topology
from actuators.errors import ConfigError, closest

MAX_RATE_RPS, MAX_DURATION_S, MAX_SERVICE_S = 1e6, 1e10, 1e6
MAX_WORKERS, MAX_QUEUE, MAX_BALANCERS, MAX_CV = 4096, 1_000_000, 1024, 100.0
MAX_STAGES, MAX_RETRIES, MAX_IMPORTANCE = 4, 1000, 1e6
MAX_LIVE_RETRIES, LEAST_LIVE_S = 100, 0.001
"""Of the load engine (load/gen_load/plan.h)."""
MIN_GAP_CV, MAX_GAP_CV = 0.05, 20.0
MAX_USERS = 1_000_000
MAX_KINDS, MAX_WORK = 256, 1000.0


def check_script(script: Script, topology: Topology) -> None:
    """Raises ConfigError when the script does not fit the topology, or a time, rate, speed or count is out of range."""
    where = f"script '{script.name}'"
    _number(script.duration_s, 0.0, MAX_DURATION_S, "duration_s", where)
    _number(script.overhead_s, 0.0, 3600.0, "overhead_s", where)
    _number(script.service_cv, 0.0, MAX_CV, "service_cv", where)
    _number(script.load_balancers, 1, MAX_BALANCERS, "load_balancers", where)
    if script.service_distribution not in get_args(ServiceDistribution):
        remedy = closest(script.service_distribution, get_args(ServiceDistribution))
        raise ConfigError(f"unknown service distribution '{script.service_distribution}'", where=where, remedy=remedy)
    _check_servers(script, topology, where)
    _check_streams(script, topology, where)
    _check_behaviours(script, topology, where)
    _check_stages(script, topology, where)
    _check_clients(script, topology, where)
    _check_kinds(script, topology, where)


def _check_kinds(script: Script, topology: Topology, where: str) -> None:
    if script.kinds and len(script.kinds) != len(topology.groups):
        raise ConfigError(f"kinds of {len(script.kinds)} groups", where=where, remedy=f"give {len(topology.groups)}")
    for kinds in script.kinds:
        if len(kinds) > MAX_KINDS:
            raise ConfigError(f"{len(kinds)} kinds of a group", where=where, remedy=f"give {MAX_KINDS} at most")
        for kind in kinds:
            _positive(kind.share, 1.0, "the share of a kind", where)
            _positive(kind.work, MAX_WORK, "the work of a kind", where)
        for name, value in (
            ("shares of kinds", sum(kind.share for kind in kinds)),
            ("mean work of kinds", sum(kind.share * kind.work for kind in kinds)),
        ):
            if kinds and abs(value - 1.0) > 1e-6:
                raise ConfigError(f"the {name} is {value:g}", where=where, remedy="make it 1")


def check_live(script: Script) -> None:
    """Raises ConfigError for a script with servers that live testbeds cannot play."""
    remedy = "play it on a simulated testbed"
    if any(habits.users for habits in script.clients):
        what = "clients in a closed loop cannot be played live"
        raise ConfigError(what, where=f"script '{script.name}'", remedy=remedy)
    for habits in script.clients:
        if habits.retries > MAX_LIVE_RETRIES or (habits.retries and habits.backoff_s < LEAST_LIVE_S):
            what = f"{habits.retries} retries after {habits.backoff_s:g} s cannot be played live"
            limits = f"at most {MAX_LIVE_RETRIES}, after at least {LEAST_LIVE_S:g} s, or {remedy}"
            raise ConfigError(what, where=f"script '{script.name}'", remedy=limits)
    if any(profile.blocking for profile in script.servers):
        raise ConfigError("blocking servers cannot be played live", where=f"script '{script.name}'", remedy=remedy)


def _number(value: float, least: float, most: float, name: str, where: str) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise ConfigError(f"{name} is {value:g}", where=where, remedy=f"give a number from {least:g} to {most:g}")


def _positive(value: float, most: float, name: str, where: str, remedy: str = "") -> None:
    if not (math.isfinite(value) and 0 < value <= most):
        raise ConfigError(
            f"{name} is {value:g}", where=where, remedy=remedy or f"give a positive number up to {most:g}"
        )


def _check_servers(script: Script, topology: Topology, where: str) -> None:
    groups, servers = topology.shape
    if len(script.servers) != servers or any(len(p.speeds) != groups for p in script.servers):
        raise ConfigError("server profiles do not fit the topology", where=where, remedy=f"expected {topology.shape}")
    if len(script.mean_service_s) != groups:
        raise ConfigError(f"{len(script.mean_service_s)} mean service times", where=where, remedy=f"give {groups}")
    for mean_s in script.mean_service_s:
        _positive(mean_s, MAX_SERVICE_S, "a mean service time", where)
    for profile in script.servers:
        _number(profile.workers, 1, MAX_WORKERS, "workers", where)
        _number(profile.queue_limit, 0, MAX_QUEUE, "queue_limit", where)
        for speed in profile.speeds:
            _positive(speed, 1e9, "a speed", where)


def _check_streams(script: Script, topology: Topology, where: str) -> None:
    for stream in script.streams:
        if stream.request_type not in topology.request_types:
            remedy = closest(stream.request_type, topology.request_types)
            raise ConfigError(f"no group serves '{stream.request_type}'", where=where, remedy=remedy)
        starts_s = [step.start_s for step in stream.steps]
        if starts_s[:1] != [0.0]:
            raise ConfigError("a stream does not begin at 0 s", where=where, remedy="add a first rate step at 0")
        if not all(math.isfinite(later) and earlier <= later for earlier, later in pairwise(starts_s)):
            raise ConfigError("rate steps do not ascend", where=where, remedy="sort them by their start")
        for step in stream.steps:
            _number(step.rate_rps, 0.0, MAX_RATE_RPS, f"the rate of '{stream.request_type}'", where)
            check_gaps(step, where)


def check_gaps(step: RateStep, where: str) -> None:
    """Raises ConfigError for an unknown distribution of gaps, or a coefficient of variation that it cannot have."""
    known = get_args(ArrivalDistribution)
    if step.distribution not in known:
        remedy = closest(step.distribution, known)
        raise ConfigError(f"unknown arrival distribution '{step.distribution}'", where=where, remedy=remedy)
    if step.distribution in SPREAD:
        _number(step.cv, MIN_GAP_CV, MAX_GAP_CV, f"cv of {step.distribution} gaps", where)
    elif step.cv != 1.0:
        remedy = f"leave it out, or take {' or '.join(SPREAD)}"
        raise ConfigError(f"{step.distribution} gaps have a fixed cv", where=where, remedy=remedy)


def _check_behaviours(script: Script, topology: Topology, where: str) -> None:
    servers = topology.shape[1]
    for change in script.behaviours:
        if not 0 <= change.server < servers:
            what = f"a behaviour names server {change.server} of {servers}"
            raise ConfigError(what, where=where, remedy=f"servers are numbered from 0 to {servers - 1}")
        _number(change.at_s, 0.0, MAX_DURATION_S, "at_s of a behaviour", where)
        _number(change.error_ratio, 0.0, 1.0, "error_ratio of a behaviour", where)
        _number(change.error_service_s, 0.0, MAX_SERVICE_S, "error_service_s of a behaviour", where)
        _positive(change.speed, 1e9, "a speed", where, "use `hang` for a server that stands still")


def _per_group(values: tuple[object, ...], topology: Topology, name: str, where: str) -> None:
    if len(values) != topology.shape[0]:
        raise ConfigError(f"{len(values)} {name}", where=where, remedy=f"give {topology.shape[0]}, one per group")


def _check_stages(script: Script, topology: Topology, where: str) -> None:
    _number(len(script.stages), 0, MAX_STAGES, "the number of stages", where)
    for number, stage in enumerate(script.stages):
        _check_stage(stage, topology, f"{where}: stages.{number}")
    for change in script.stage_behaviours:
        if not 0 <= change.stage < len(script.stages):
            what = f"a behaviour names stage {change.stage} of {len(script.stages)}"
            raise ConfigError(what, where=where, remedy="stages are numbered from 0")
        _number(change.at_s, 0.0, MAX_DURATION_S, "at_s of a stage's behaviour", where)
        _positive(change.speed, 1e9, "a stage's speed", where)
        if change.flush and script.stages[change.stage].cache is None:
            raise ConfigError(f"stage {change.stage} has no cache to flush", where=where, remedy="give it one")


def _check_stage(stage: Stage, topology: Topology, where: str) -> None:
    _number(stage.connections, 1, MAX_WORKERS, "connections", where)
    _number(stage.contention, 0.0, 1e6, "contention", where)
    _per_group(stage.work_s, topology, "work_s", where)
    _per_group(stage.visits, topology, "visits", where)
    for work_s, share in zip(stage.work_s, stage.visits, strict=True):
        _positive(work_s, MAX_SERVICE_S, "work_s", where)
        _number(share, 0.0, 1.0, "visits", where)
    if stage.cache is not None:
        _check_cache(stage.cache, topology, where)


def _check_cache(cache: Cache, topology: Topology, where: str) -> None:
    _per_group(cache.cached, topology, "cached", where)
    _number(cache.most, 0.0, 1.0, "most of the cache", where)
    _number(cache.hit, 0.0, cache.most, "hit of the cache", where)
    _number(cache.fill, 1.0, 1e12, "fill of the cache", where)
    _positive(cache.decay_s, MAX_DURATION_S, "decay_s of the cache", where)


def _check_clients(script: Script, topology: Topology, where: str) -> None:
    for name in ("clients", "deadlines_s", "importance"):
        if getattr(script, name):
            _per_group(getattr(script, name), topology, name, where)
    for habits in script.clients:
        _positive(habits.patience_s, MAX_SERVICE_S, "patience_s", where)
        _number(habits.retries, 0, MAX_RETRIES, "retries", where)
        _number(habits.retry_failed, 0.0, 1.0, "retry_failed", where)
        _number(habits.retry_refused, 0.0, 1.0, "retry_refused", where)
        _number(habits.backoff_s, 0.0, MAX_SERVICE_S, "backoff_s", where)
        _number(habits.users, 0, MAX_USERS, "users", where)
        if habits.users:
            _positive(habits.think_s, MAX_SERVICE_S, "think_s", where)
    for deadline_s in script.deadlines_s:
        _positive(deadline_s, MAX_SERVICE_S, "a deadline", where)
    for importance in script.importance:
        _positive(importance, MAX_IMPORTANCE, "an importance", where)
