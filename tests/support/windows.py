"""Hand-made windows for tests of the layers above statistics; no product code uses this."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from actuators.contract.topology import Topology, social_network
from actuators.contract.window import DEFAULT_BOUNDS_MS, Fault, HoldWindow, Window

TOPOLOGY = social_network()


def window(
    latency_ms: float | NDArray[np.float64] = 10.0,
    requests: int | NDArray[np.int64] = 100,
    *,
    errors: int | NDArray[np.int64] = 0,
    spread: float = 0.5,
    seed: int = 0,
    topology: Topology = TOPOLOGY,
    weight: NDArray[np.int64] | None = None,
    faults: tuple[Fault, ...] = (),
    start_s: float = 0.0,
) -> Window:
    """A window whose response times per group and server are lognormal around `latency_ms`."""
    generator = np.random.default_rng(seed)
    shape = topology.shape
    means = np.broadcast_to(np.asarray(latency_ms, dtype=float), shape)
    counts = np.broadcast_to(np.asarray(requests), shape).astype(np.int64)
    failed = np.broadcast_to(np.asarray(errors), shape).astype(np.int64)
    total = np.zeros(shape, dtype=np.int64)
    histogram = np.zeros((*shape, len(DEFAULT_BOUNDS_MS) + 1), dtype=np.int64)
    for cell in np.ndindex(*shape):
        times = np.floor(means[cell] * generator.lognormal(-(spread**2) / 2, spread, counts[cell])).astype(np.int64)
        total[cell] = times.sum()
        columns = np.searchsorted(DEFAULT_BOUNDS_MS, times)
        histogram[cell] = np.bincount(columns, minlength=len(DEFAULT_BOUNDS_MS) + 1)
    responses = np.zeros((*shape, 5), dtype=np.int64)
    responses[..., 1], responses[..., 4] = counts - failed, failed
    return Window(
        topology, start_s, start_s + 1.0, counts, counts * 100, counts * 200, responses, total,
        DEFAULT_BOUNDS_MS, histogram,
        np.ones(shape, dtype=np.int64) if weight is None else weight, np.zeros(shape, dtype=bool), faults=faults,
    )  # fmt: skip


def hold_window(
    asked: int = 100,
    *,
    state: str = "watching",
    would: int = 0,
    held: int = 0,
    refused: int = 0,
    hopeless: int = 0,
    late: int = 0,
    answered_ms: int = 10,
    groups: int = 3,
) -> HoldWindow:
    """In the first of the groups; the others have nothing. Every answer took `answered_ms` from arrival."""

    def row(count: float) -> NDArray[np.int64]:
        return np.array([count, *[0] * (groups - 1)])

    histograms = np.zeros((2, groups, len(DEFAULT_BOUNDS_MS) + 1), np.int64)
    answered = asked - refused - hopeless
    histograms[0, 0, 0] = held
    histograms[1, 0, np.searchsorted(DEFAULT_BOUNDS_MS, answered_ms)] = answered
    return HoldWindow(
        state, row(asked), row(would), row(held), row(held) * 5e-4, row(refused), row(hopeless), row(0), row(0),
        row(answered), row(answered) * answered_ms / 1e3, row(late), row(0), DEFAULT_BOUNDS_MS, *histograms,
    )  # fmt: skip
