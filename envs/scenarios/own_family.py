"""Family H around a recorded system: what could hide behind its servers, and what could happen to it.

Topology, idle response times, rates and overhead are the calibration's. Which part of a service time is spent behind
the servers, how clients repeat and what happens is drawn by the seed (docs/admission.md#around-your-own-system).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.script import RateStep, Script, Stage, Stream
from actuators.contract.script_check import MAX_WORKERS
from actuators.contract.topology import Topology
from envs.calibration.replay import script_of
from envs.calibration.result import Calibration, Parameters
from envs.scenarios.calibrated import CalibratedScenario
from envs.scenarios.family import EPISODE_S, KINDS, Events, Kind, balanced_cache, draw_clients, draw_visits


@dataclass(frozen=True)
class OwnFamily(CalibratedScenario):
    """One kind of family H, or all in turn by seed, around a calibration; `randomised` changes nothing.

    Attributes:
        kind: what happens; None for each kind in turn.
        deadlines_s: per group, in place of the calibration's; these when empty.
        importance: per group; 1 when empty.
    """

    kind: Kind | None = field(default=None, kw_only=True)
    deadlines_s: tuple[float, ...] = field(default=(), kw_only=True)
    importance: tuple[float, ...] = field(default=(), kw_only=True)

    def script(self, topology: Topology, seed: int) -> Script:
        """The script of this seed. Raises ConfigError for another system than was calibrated."""
        calibration = self.system_of(topology)
        generator = np.random.default_rng([seed, 0x480])
        kind = KINDS[seed % len(KINDS)] if self.kind is None else self.kind
        parameters = calibration.ensemble[int(generator.integers(len(calibration.ensemble)))]
        rates_rps = calibration.rates_rps * self.load_factor
        script = _system(calibration, parameters, topology, rates_rps, kind == "flush", generator)
        deadlines_s = np.array(self.deadlines_s) if self.deadlines_s else calibration.deadlines_s
        assert deadlines_s is not None, "a calibration without deadlines needs them here"
        script = replace(
            script, name=self.name, seed=seed, duration_s=self.duration_s,
            clients=draw_clients(deadlines_s, generator), deadlines_s=tuple(map(float, deadlines_s)),
            importance=self.importance,
        )  # fmt: skip
        return Events(script, rates_rps, generator).apply(kind)


def own_family(
    calibration: Calibration, kind: Kind | None = None, deadlines_s: FloatArray | None = None,
    importance: FloatArray | None = None,
) -> OwnFamily:  # fmt: skip
    """Family H around a calibration; importance must be finite."""
    return OwnFamily(
        f"H-{kind}-calibrated" if kind else "H-calibrated", "family H around a recorded system", 0.0,
        duration_s=EPISODE_S, calibration=calibration, kind=kind,
        deadlines_s=() if deadlines_s is None else tuple(map(float, deadlines_s)),
        importance=() if importance is None else tuple(map(float, importance)),
    )  # fmt: skip


def read_own_family(path: Path, kind: Kind | None) -> OwnFamily:
    """Family H around a `calibration.json`. Raises ConfigError."""
    return own_family(Calibration.load(path), kind)


def _system(
    calibration: Calibration, parameters: Parameters, topology: Topology, rates_rps: FloatArray, cached: bool,
    generator: np.random.Generator,
) -> Script:  # fmt: skip
    """Servers and stages whose idle response times are those that were fitted."""
    blocking = bool(generator.random() < 0.5)
    tight = 2 if generator.random() < 0.2 else int(generator.integers(2))
    cached = bool(generator.random() < 0.3) or cached
    contended = bool(generator.random() < 0.4)
    # What all servers share is in the service time of each of them.
    shared_s = np.where(topology.mask, parameters.service_array_ms, np.inf).min(axis=1) / 1e3
    visits = np.array([draw_visits(len(rates_rps), generator) for _ in range(2)])
    parts = np.exp(generator.normal(0, 0.9, visits.shape)) * (visits > 0)
    behind_s = shared_s * parts / (1 + parts.sum(axis=0))
    stages = []
    for k in range(2):
        load = generator.uniform(0.55, 0.85) if k == tight else generator.uniform(0.2, 0.55)
        busy = float(rates_rps @ behind_s[k])
        connections = min(max(int(busy / load), 1), MAX_WORKERS)
        behind_s[k] *= min(load * connections / busy, 1.0)
        hit, contention = float(generator.uniform(0.6, 0.85)), float(generator.uniform(0.02, 0.15))
        cache = balanced_cache(topology, rates_rps * visits[k], hit) if cached and k == 0 else None
        missed = visits[k] * np.where(cache.cached, 1 - hit, 1.0) if cache is not None else visits[k]
        work_s = behind_s[k] / np.where(missed > 0, missed, 1.0)
        # A group that visits no stage has a work that is never done.
        stages.append(
            Stage(
                connections, tuple(map(float, np.where(missed > 0, work_s, 1.0))), tuple(map(float, visits[k])),
                contention if contended else 0.0, cache,
            )
        )  # fmt: skip
    rest_ms = parameters.service_array_ms - 1e3 * behind_s.sum(axis=0)[:, None]
    rest_ms = np.where(topology.mask, rest_ms, np.where(topology.mask, rest_ms, np.inf).min(axis=1, keepdims=True))
    at_servers = parameters.model_copy(update={"service_ms": tuple(tuple(map(float, row)) for row in rest_ms)})
    script = script_of(
        at_servers, calibration.arrivals, topology, seed=0, duration_s=EPISODE_S,
        load_balancers=calibration.load_balancers,
    )  # fmt: skip
    streams = tuple(
        Stream(stream.request_type, (RateStep(0.0, float(rate), stream.steps[0].distribution),))
        for stream, rate in zip(script.streams, rates_rps, strict=True)
    )
    servers = tuple(replace(profile, blocking=blocking) for profile in script.servers)
    return replace(script, streams=streams, servers=servers, stages=tuple(stages))
