"""Windows of many testbeds of one topology as arrays with a leading axis: one message, and one pass of numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from actuators.contract.arrays import FloatArray, IntArray
from actuators.contract.histogram import percentile_ms
from actuators.contract.topology import Topology
from actuators.contract.window import DelayWindow, Window
from actuators.errors import DataError


@dataclass(frozen=True, eq=False)
class WindowStack:
    """What features, estimators, rewards and metrics read of `n` windows; arrays are ``[n, …]`` as in Window.

    Attributes:
        active, delay: None unless every window has them.
        client_p99_ms: ``[n]``, 99th percentile of the clients' latencies; nan where no client told any.
    """

    topology: Topology
    bounds_ms: tuple[int, ...]
    start_s: FloatArray
    end_s: FloatArray
    requests: IntArray
    responses: IntArray
    response_ms_sum: IntArray
    latency_histogram: IntArray
    weight: IntArray
    client_p99_ms: FloatArray
    active: IntArray | None = None
    delay: DelayWindow | None = None

    @classmethod
    def of(cls, windows: Sequence[Window]) -> WindowStack:
        """At least one window. Raises DataError when their servers or histograms differ."""
        first = windows[0]
        if any(w.topology.shape != first.topology.shape or w.bounds_ms != first.bounds_ms for w in windows):
            raise DataError("testbeds differ in servers or histogram bounds", where="windows", remedy="make them alike")
        active = [w.active for w in windows if w.active is not None]
        delays = [w.delay for w in windows if w.delay is not None]
        return cls(
            topology=first.topology,
            bounds_ms=first.bounds_ms,
            start_s=np.array([w.start_s for w in windows]),
            end_s=np.array([w.end_s for w in windows]),
            client_p99_ms=np.array([_client_p99_ms(w) for w in windows]),
            active=np.stack(active) if len(active) == len(windows) else None,
            delay=_stacked_delays(delays) if len(delays) == len(windows) else None,
            **{name: np.stack([getattr(w, name) for w in windows]) for name in _STACKED},
        )

    @classmethod
    def spread(cls, size: int, parts: Sequence[tuple[IntArray, WindowStack]]) -> WindowStack:
        """Stacks of some rows each, as one of `size` rows; a row of none of them saw nothing for a second.

        Raises DataError when their servers or histograms differ.
        """
        first = parts[0][1]
        if any(p.requests.shape[1:] != first.requests.shape[1:] or p.bounds_ms != first.bounds_ms for _, p in parts):
            raise DataError("testbeds differ in servers or histogram bounds", where="windows", remedy="make them alike")

        def whole(name: str, fill: float = 0) -> Any:
            sample = getattr(first, name)
            joined = np.full((size, *sample.shape[1:]), fill, sample.dtype)
            for rows, part in parts:
                joined[rows] = getattr(part, name)
            return joined

        def everywhere(name: str) -> bool:
            return all(getattr(part, name) is not None for _, part in parts)

        return cls(
            topology=first.topology,
            bounds_ms=first.bounds_ms,
            start_s=whole("start_s"),
            end_s=whole("end_s", 1.0),
            client_p99_ms=whole("client_p99_ms", np.nan),
            active=whole("active") if everywhere("active") else None,
            delay=_spread_delays(size, parts) if everywhere("delay") else None,
            **{name: whole(name) for name in _STACKED},
        )

    @property
    def duration_s(self) -> FloatArray:
        """``[n]``"""
        return self.end_s - self.start_s

    def mean_ms(self) -> FloatArray:
        """``[n, groups]``: mean response time; nan for a group without an answer."""
        requests = self.requests.sum(axis=-1)
        with np.errstate(invalid="ignore"):
            mean: FloatArray = self.response_ms_sum.sum(axis=-1) / np.where(requests > 0, requests, np.nan)
        return mean


_STACKED = ("requests", "responses", "response_ms_sum", "latency_histogram", "weight")


def _client_p99_ms(window: Window) -> float:
    if window.client is None or not window.client.latency_counts.any():
        return float("nan")
    return float(percentile_ms(window.client.latency_counts.sum(axis=0), 99.0))


def _stacked_delays(delays: Sequence[DelayWindow]) -> DelayWindow:
    return _joined_delays(delays, np.stack)


def _spread_delays(size: int, parts: Sequence[tuple[IntArray, WindowStack]]) -> DelayWindow:
    rows = [rows for rows, _ in parts]

    def whole(arrays: Sequence[Any]) -> Any:
        joined = np.zeros((size, *arrays[0].shape[1:]), arrays[0].dtype)
        for chosen, array in zip(rows, arrays, strict=True):
            joined[chosen] = array
        return joined

    return _joined_delays([part.delay for _, part in parts if part.delay is not None], whole)


def _joined_delays(delays: Sequence[DelayWindow], join: Any) -> DelayWindow:
    """A field that one of them lacks is None."""
    columns = {field.name: [getattr(delay, field.name) for delay in delays] for field in fields(DelayWindow)}
    known = {name: values for name, values in columns.items() if all(value is not None for value in values)}
    return DelayWindow(**{name: join(values) for name, values in known.items()})
