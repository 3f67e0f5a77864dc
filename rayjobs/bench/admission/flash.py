"""Admission live: each type in turn is the important one, or is never refused, while another type comes six times as
often; goodput of that type with the flash and without it, in paired blocks. The system is that of the surge (`live`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from actuators.contract.admission import NEVER
from actuators.contract.topology import Topology, social_network
from actuators.nginx.config import NginxOptions
from actuators.testbed.live import LiveTestbed
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import start_local_testbed
from rayjobs.bench.admission.live import RATES_RPS, Surge, admission
from rayjobs.bench.parts.bars import Bar, BenchContext, at_least

CASES = ((0, 1, 5.0), (1, 2, 5.0), (2, 1, 5.0), (0, 1, NEVER))
"""The important type, the type that comes more often, and the importance."""
FLASH, FLASH_S, BLOCK_S, STEP_S = 6.0, (10.0, 30.0), 40.0, 0.5
SEEN_S = (10.0, 35.0)
"""First attempts of this time are compared."""
ROUNDS, QUICK_ROUNDS = 4, 1
POINTS = -4.0


def measure(context: BenchContext) -> Sequence[Bar]:
    """Differences of goodput, in points; with and without in an order drawn for each pair."""
    options = LiveOptions(nginx=NginxOptions(admission=True, method="least_conn"))
    topology = social_network(("server-1:80", "server-2:80", "server-3:80"))
    generator, bars = np.random.default_rng([context.seed, 0xF1]), []
    rounds = QUICK_ROUNDS if context.quick else ROUNDS
    with start_local_testbed(topology, options, context.work_dir, context.seed) as testbed:
        testbed.set_method("least_conn")
        for important, flashing, importance in CASES[: 1 if context.quick else None]:
            pairs = np.zeros((rounds, 2))
            for number in range(rounds):
                for which in generator.permutation(2):
                    factors = tuple(FLASH if which and g == flashing else 1.0 for g in range(len(RATES_RPS)))
                    scenario = Surge(factors, FLASH_S, BLOCK_S)
                    seed = context.seed * 1000 + number
                    pairs[number, which] = _goodput(testbed, scenario, important, importance, seed)
            context.log(f"type {important}, importance {importance}: {pairs.tolist()}")
            bars.append(_bar(topology, pairs, important, flashing, importance))
    return bars


def _goodput(testbed: LiveTestbed, scenario: Surge, important: int, importance: float, seed: int) -> float:
    rule = admission(testbed.topology, "aimd_thresh")
    assert rule is not None
    worth = np.ones(len(RATES_RPS))
    worth[important] = importance
    testbed.admit(None)
    testbed.reset(scenario, seed)
    testbed.admit(replace(rule, importance=worth))
    good = planned = 0
    for index in range(round(BLOCK_S / STEP_S)):
        client = testbed.advance(STEP_S).client
        assert client is not None
        if SEEN_S[0] <= index * STEP_S < SEEN_S[1] and client.good is not None:
            good, planned = good + int(client.good[important]), planned + int(client.planned[important])
    testbed.drain()
    return good / planned


def _bar(topology: Topology, pairs: np.ndarray, important: int, flashing: int, importance: float) -> Bar:
    types = topology.request_types
    worth = "never refused" if importance == NEVER else f"important ({importance:g})"
    points = 100 * (pairs[:, 1] - pairs[:, 0])
    error = points.std(ddof=1) / np.sqrt(len(points)) if len(points) > 1 else float("nan")
    return at_least(
        f"{types[important]} {worth}, {FLASH:g} × {types[flashing]}: goodput with over without", float(points.mean()),
        POINTS, "points", how=f"live, aimd_thresh, {len(points)} paired blocks of {BLOCK_S:g} s",
        reference=f"{pairs[:, 1].mean():.3f} with, {pairs[:, 0].mean():.3f} without; standard error {error:.1f} points",
    )  # fmt: skip
