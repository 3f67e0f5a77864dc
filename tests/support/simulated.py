"""Small scripts and a runner for tests of the simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from actuators.contract.control import Weights
from actuators.contract.script import ArrivalDistribution, Behaviour, RateStep, Script, ServerProfile, Stream
from actuators.contract.topology import Group, Topology
from envs.heuristics.controllers import Controller
from envs.simulator.batch import SimulatedBatch, SimulationOptions
from envs.simulator.window_batch import WindowBatch
from envs.study.rules import BatchController, Rule


def line_of(servers: int, method: str = "GET") -> Topology:
    """One group over some servers."""
    addresses = tuple(f"s{i}:80" for i in range(servers))
    return Topology((Group("one", "read", method, "/read", 2.0, addresses),))


def script_of(
    rate_rps: float,
    mean_s: float,
    *,
    servers: int = 1,
    workers: int = 1,
    service: Any = "exponential",
    arrivals: ArrivalDistribution = "exponential",
    behaviours: Sequence[Behaviour] = (),
    duration_s: float = 1e6,
    steps: Sequence[RateStep] = (),
    **more: Any,
) -> Script:
    """A script for `line_of`."""
    return Script(
        "test", more.pop("seed", 1), duration_s,
        (Stream("read", tuple(steps) or (RateStep(0.0, rate_rps, arrivals),)),),
        (ServerProfile((1.0,), workers, more.pop("queue_limit", 512)),) * servers,
        (mean_s,), service, behaviours=tuple(behaviours), **more,
    )  # fmt: skip


def run(
    topology: Topology, script: Script, duration_s: float, method: Any = "round_robin", **options: Any
) -> WindowBatch:
    """One window over the whole time."""
    batch = SimulatedBatch(topology, 1, method, options=SimulationOptions(**options))
    batch.reset(0, script)
    return batch.advance(duration_s)


def mean_s(window: WindowBatch) -> float:
    """Mean client latency in seconds."""
    return float(window.latency_s_sum.sum() / window.latency_counts.sum())


def controller_rule(name: str, make: Callable[[], Controller], options: SimulationOptions | None = None) -> Rule:
    """A controller of weights as a rule that `envs.study.judge` plays: one for every environment."""

    def start() -> BatchController:
        controllers: list[Controller] = []
        present: list[Weights] = []

        def steer(batch: SimulatedBatch, scripts: Sequence[Script], window: WindowBatch | None) -> None:
            if window is None:
                controllers[:] = [make() for _ in scripts]
                present[:] = [controller.begin(batch.topology).as_weights() for controller in controllers]
            else:
                for index, controller in enumerate(controllers):
                    control = controller.decide(window.window(index))
                    present[index] = present[index] if control is None else control.as_weights()
            batch.set_weights(np.stack([w.values for w in present]), np.stack([w.down for w in present]))

        return steer

    return Rule(name, make().method, start, options or SimulationOptions(retry_post=True))
