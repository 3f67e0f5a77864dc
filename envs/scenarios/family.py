"""Family H: a bottleneck that is hidden behind the servers, and clients that repeat (docs/admission.md#family-h).

Every seed draws another system. Surges that other scenarios survive make it collapse, and stay collapsed, unless
requests are refused at the entry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.script import (
    Behaviour,
    Cache,
    Clients,
    RateStep,
    Script,
    ServerProfile,
    Stage,
    StageBehaviour,
    Stream,
)
from actuators.contract.topology import Topology
from envs.admission.nominal import idle_moments_s
from envs.scenarios.catalogue import TYPES, StudyScenario

Kind = Literal["steady", "surge", "flash", "slow-stage", "flush", "slow-server", "permanent", "mixed"]
KINDS: tuple[Kind, ...] = ("steady", "surge", "flash", "slow-stage", "flush", "slow-server", "permanent", "mixed")
"""What happens to the system; `H` has them in turn, by seed."""

EPISODE_S = 50.0
"""Something happens once in each stretch of so many seconds, and `permanent` in the first one."""
RATE_RPS = 200.0
"""Requests per second and server at ordinary times."""
_READS = ("GET", "HEAD")
_TYPES = tuple(TYPES.values())


@dataclass(frozen=True)
class HiddenScenario(StudyScenario):
    """One kind of family H, or all; the system is drawn by the seed, `randomised` changes nothing.

    Attributes:
        kind: what happens; None for each kind in turn.
    """

    kind: Kind | None = None

    def script(self, topology: Topology, seed: int) -> Script:
        """The script of this seed; equal seeds give equal systems under every kind of event."""
        generator = np.random.default_rng([seed, 0x48])
        kind = KINDS[seed % len(KINDS)] if self.kind is None else self.kind
        script, rates_rps = _system(topology, generator, kind == "flush", self.work_scale)
        script = _with_clients(replace(script, name=self.name, seed=seed, duration_s=self.duration_s), generator)
        return Events(script, rates_rps, generator).apply(kind)

    def nominal(self) -> HiddenScenario:
        """Ordinary times."""
        return replace(self, kind="steady")


def _system(
    topology: Topology, generator: np.random.Generator, cached: bool, work_scale: float
) -> tuple[Script, FloatArray]:
    """Servers and stages, and the rates ``[groups]`` of ordinary times."""
    groups, servers = topology.shape
    known = [TYPES.get(name, _TYPES[g % len(_TYPES)]) for g, name in enumerate(topology.request_types)]
    shares = np.array([share for _, share in known]) * np.exp(generator.normal(0, 0.3, groups))
    rates_rps = RATE_RPS * servers / work_scale * shares / shares.sum()
    work_s = np.array([mean for mean, _ in known]) * work_scale * np.exp(generator.normal(0, 0.2, groups))
    blocking = bool(generator.random() < 0.5)
    workers = 8 if blocking else 4
    tight = 2 if generator.random() < 0.2 else int(generator.integers(2))
    cached = bool(generator.random() < 0.3) or cached
    contended = bool(generator.random() < 0.4)
    stages = []
    for k in range(2):
        load = generator.uniform(0.55, 0.85) if k == tight else generator.uniform(0.2, 0.55)
        stages.append(_stage(topology, generator, rates_rps, work_s, load, cached and k == 0, contended))
    if tight == 2:
        busy = servers * workers * generator.uniform(0.55, 0.85)
        if blocking:  # workers are held while their requests are at the stages
            busy -= sum(_visits_rps(stage, rates_rps) @ np.array(stage.work_s) for stage in stages)
        work_s = work_s * busy / (rates_rps @ work_s)
    profile = ServerProfile((1.0,) * groups, workers, 512, blocking)
    script = Script("", 0, EPISODE_S, (), (profile,) * servers, tuple(map(float, work_s)), stages=tuple(stages))
    return replace(script, streams=_streams(topology, rates_rps)), rates_rps


def _stage(
    topology: Topology, generator: np.random.Generator, rates_rps: FloatArray, work_s: FloatArray, load: float,
    cached: bool, contended: bool,
) -> Stage:  # fmt: skip
    """A stage that is busy for the share `load` of the time when nothing happens."""
    groups, servers = topology.shape
    connections = max(round(int(generator.integers(3, 9)) * servers / 3), 1)
    visits = draw_visits(groups, generator)
    hit, contention = float(generator.uniform(0.6, 0.85)), float(generator.uniform(0.02, 0.15))
    cache = balanced_cache(topology, rates_rps * visits, hit) if cached else None
    stage_s = np.sqrt(work_s) * np.exp(generator.normal(0, 0.9, groups))
    stage = Stage(
        connections, tuple(map(float, stage_s)), tuple(map(float, visits)), contention if contended else 0.0, cache
    )
    stage_s = stage_s * load * connections / (_visits_rps(stage, rates_rps) @ stage_s)
    return replace(stage, work_s=tuple(map(float, stage_s)))


def draw_visits(groups: int, generator: np.random.Generator) -> FloatArray:
    """Share ``[groups]`` of the requests that visit a stage; some do."""
    kinds, some = generator.integers(3, size=groups), generator.uniform(0.3, 1.0, groups)
    few = np.where(generator.random(groups) < 0.5, 0.0, 0.3)
    visits = np.choose(kinds, [few, np.ones(groups), some])
    if not visits.any():
        visits[int(generator.integers(groups))] = 1.0
    return visits


def balanced_cache(topology: Topology, visits_rps: FloatArray, hit: float) -> Cache:
    """A cache of the reads in which what misses add at ordinary times balances what is forgotten."""
    reads = tuple(group.method.upper() in _READS for group in topology.groups)
    missed_rps = float(visits_rps @ reads) * (1 - hit)
    return Cache(reads, hit, max(missed_rps * 20.0 * (0.95 - hit) / hit, 1.0))


def _visits_rps(stage: Stage, rates_rps: FloatArray) -> FloatArray:
    """Visits per second ``[groups]`` at ordinary times."""
    visits_rps: FloatArray = rates_rps * np.array(stage.visits)
    if stage.cache is not None:
        visits_rps = visits_rps * np.where(stage.cache.cached, 1 - stage.cache.hit, 1.0)
    return visits_rps


def _with_clients(script: Script, generator: np.random.Generator) -> Script:
    """Deadlines, importance and habits of the clients."""
    mean_s, deviation_s = idle_moments_s(script)
    groups = len(mean_s)
    deadlines_s = (mean_s + 2 * deviation_s) * np.exp(generator.uniform(0, math.log(5), groups))
    return replace(
        script,
        clients=draw_clients(deadlines_s, generator),
        deadlines_s=tuple(map(float, deadlines_s)),
        importance=tuple(map(float, np.exp(generator.uniform(0, math.log(5), groups)))),
    )


def draw_clients(deadlines_s: FloatArray, generator: np.random.Generator) -> tuple[Clients, ...]:
    """How long the clients of each group wait, and whether they repeat."""
    patience_s = np.maximum(0.25, generator.uniform(3, 8, len(deadlines_s)) * deadlines_s)
    retries = int(generator.integers(3))
    after_failure, after_refusal = float(generator.uniform(0.5, 1)), float(generator.uniform(0, 0.5))
    backoff_s = float(generator.uniform(0.1, 0.6))
    return tuple(Clients(float(p), retries, after_failure, after_refusal, backoff_s) for p in patience_s)


def _streams(topology: Topology, rates_rps: FloatArray) -> tuple[Stream, ...]:
    return tuple(
        Stream(name, (RateStep(0.0, float(rate)),))
        for name, rate in zip(topology.request_types, rates_rps, strict=True)
    )


class Events:
    """Adds to a script what happens, by a generator; `rates_rps` ``[groups]`` are those of ordinary times."""

    def __init__(self, script: Script, rates_rps: FloatArray, generator: np.random.Generator) -> None:
        self._script, self._rates_rps, self._generator = script, rates_rps, generator
        self._surges: list[tuple[float, float, FloatArray]] = []
        self._servers: list[Behaviour] = []
        self._stages: list[StageBehaviour] = []

    def apply(self, kind: Kind) -> Script:
        draw = self._generator.uniform
        for stretch in range(math.ceil(self._script.duration_s / EPISODE_S)):
            begin_s = stretch * EPISODE_S
            if kind == "mixed":
                for what, (low, high) in zip(self._two(), ((4.0, 14.0), (20.0, 30.0)), strict=True):
                    self._add(what, begin_s + draw(low, high), draw(8, 20))
            elif kind != "steady" and not (kind == "permanent" and stretch > 0):
                self._add(kind, begin_s + draw(8, 18), draw(8, 20))
        return replace(
            self._script,
            streams=self._shaped(),
            behaviours=tuple(sorted(self._servers, key=lambda change: change.at_s)),
            stage_behaviours=self._stage_behaviours(),
        )

    def _stage_behaviours(self) -> tuple[StageBehaviour, ...]:
        """In order; a cache that is emptied does not change its stage's speed."""
        speeds: dict[int, float] = {}
        changes: list[StageBehaviour] = []
        for change in sorted(self._stages, key=lambda change: change.at_s):
            changes.append(replace(change, speed=speeds.get(change.stage, 1.0)) if change.flush else change)
            speeds[change.stage] = changes[-1].speed
        return tuple(changes)

    def _two(self) -> list[Kind]:
        kinds: list[Kind] = ["surge", "flash", "slow-stage", "slow-server"]
        if self._script.stages[0].cache is not None:
            kinds.append("flush")
        return [kinds[i] for i in self._generator.choice(len(kinds), 2, replace=False)]

    def _add(self, kind: Kind, at_s: float, length_s: float) -> None:
        """One event, from `at_s` on."""
        draw, groups, end_s = self._generator.uniform, len(self._rates_rps), at_s + length_s
        one = np.arange(groups) == self._generator.integers(groups)
        if kind == "surge":
            self._surges.append((at_s, end_s, np.full(groups, draw(1.5, 3))))
        elif kind == "permanent":
            self._surges.append((at_s, math.inf, np.full(groups, draw(1.3, 2.5))))
        elif kind == "flash":
            self._surges.append((at_s, end_s, np.where(one, draw(2.5, 6), 1.0)))
        elif kind == "slow-server":
            server = int(self._generator.integers(len(self._script.servers)))
            self._servers += [Behaviour(at_s, server, draw(0.15, 0.4)), Behaviour(end_s, server)]
        elif kind == "slow-stage":
            stage = int(self._generator.integers(len(self._script.stages)))
            self._stages += [StageBehaviour(at_s, stage, draw(0.3, 0.6)), StageBehaviour(end_s, stage)]
        else:
            self._stages.append(StageBehaviour(at_s, 0, flush=True))

    def _shaped(self) -> tuple[Stream, ...]:
        """The rates with all surges, which multiply where they meet."""
        ends = {0.0, *(at_s for begin_s, end_s, _ in self._surges for at_s in (begin_s, end_s))}
        times = [*sorted(at_s for at_s in ends if at_s < self._script.duration_s), math.inf]
        factors = [
            np.prod([f for begin_s, end_s, f in self._surges if begin_s <= at_s < end_s], axis=0)
            for at_s, _ in pairwise(times)
        ]
        return tuple(
            Stream(stream.request_type, tuple(
                replace(
                    stream.steps[0], start_s=at_s,
                    rate_rps=float(self._rates_rps[g] * np.broadcast_to(factor, self._rates_rps.shape)[g]),
                )
                for at_s, factor in zip(times[:-1], factors, strict=True)
            ))
            for g, stream in enumerate(self._script.streams)
        )  # fmt: skip


_SUMMARIES: dict[Kind | None, str] = {
    None: "hidden bottleneck, repeating clients: each of the kinds below in turn",
    "steady": "nothing happens",
    "surge": "all types × 1.5 to 3",
    "flash": "one type × 2.5 to 6",
    "slow-stage": "a hidden stage × 0.3 to 0.6",
    "flush": "the cache in front of the first stage is emptied",
    "slow-server": "one server × 0.15 to 0.4",
    "permanent": "all types × 1.3 to 2.5 until the end",
    "mixed": "two of these events",
}

FAMILY = {
    scenario.name: scenario
    for scenario in (
        HiddenScenario(f"H-{kind}" if kind else "H", summary, 0.7, duration_s=EPISODE_S, kind=kind)
        for kind, summary in _SUMMARIES.items()
    )
}
"""The scenarios of family H by name."""
