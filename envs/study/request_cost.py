"""What requests cost, learned on a simulated system as it is from a real NGINX (docs/late-binding.md#request-cost)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.request_cost import RequestCost, RequestKind
from actuators.contract.script import Scenario, Script
from actuators.contract.topology import Topology
from envs.environment.study_setup import SHARED_MEMORY
from envs.estimators.registry import DEFAULT_ESTIMATOR
from envs.estimators.request_cost import HELD_OUT, CostRow, explained, learn_from
from envs.simulator.batch import SimulatedBatch
from envs.study.rules import Learning, steering

WARM_UP_S = 20.0
"""In which service times are learned, and whose requests do not count."""


def observed_costs(scenario: Scenario, topology: Topology, seed: int, seconds: float) -> RequestCost:
    """Models from so many seconds of the scenario under `expected_delay`; the last part of them is held out."""
    script = scenario.script(topology, seed)
    train, test = _sums(script, topology, (seconds * (1.0 - HELD_OUT), seconds * HELD_OUT))
    return RequestCost(
        groups={
            group.name: learn_from(rows_of(script.kinds[g], train[g]), rows_of(script.kinds[g], test[g]))
            for g, group in enumerate(topology.groups)
            if script.kinds[g : g + 1]
        }
    )


def explained_by(costs: RequestCost, script: Script, topology: Topology, seconds: float) -> float:
    """R² of the models on another script's requests, over all groups alike."""
    (sums,) = _sums(script, topology, (seconds,))
    left = whole = 0.0
    for g, group in enumerate(topology.groups):
        rows = rows_of(script.kinds[g], sums[g])
        model = costs.groups[group.name]
        counts, totals, squares = sums[g].sum(axis=0)
        variance = squares - totals**2 / counts
        whole += variance
        left += variance * (1.0 - explained(model, rows))
    return 1.0 - left / whole


def rows_of(kinds: Sequence[RequestKind], sums: FloatArray) -> list[CostRow]:
    """Counts ``[kinds, 3]`` of `WindowBatch.costs` as rows; kinds that never came are left out."""
    return [CostRow(kind.seen, *map(float, row)) for kind, row in zip(kinds, sums, strict=False) if row[0] > 0]


def _sums(script: Script, topology: Topology, parts_s: Sequence[float]) -> list[FloatArray]:
    """``[groups, kinds, 3]`` of consecutive parts."""
    script = replace(script, duration_s=max(script.duration_s, WARM_UP_S + sum(parts_s)))
    batch = SimulatedBatch(topology, 1, "expected_delay", options=SHARED_MEMORY)
    batch.reset(0, script)
    steer = steering(Learning(DEFAULT_ESTIMATOR))()
    window, found = None, []
    for number, seconds in enumerate((WARM_UP_S, *parts_s)):
        sums = np.zeros((len(topology.groups), max(map(len, script.kinds), default=1), 3))
        for _ in range(round(seconds)):
            steer(batch, [script], window)
            window = batch.advance(1.0)
            sums += window.costs[0]
        if number > 0:
            found.append(sums)
    return found
