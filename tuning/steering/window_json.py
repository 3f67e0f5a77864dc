"""Windows as JSON and back: what the audit keeps, what the controller sends to Serve. Numbers only, no clock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from actuators.contract.arrays import IntArray
from actuators.contract.topology import Group, Topology
from actuators.contract.window import AdmissionWindow, DelayWindow, Fault, FaultKind, HoldWindow, Window
from actuators.errors import DataError

Count = Annotated[int, Field(ge=0, le=2**53)]
Name = Annotated[str, Field(min_length=1, max_length=300)]
MAX_SERVERS = 2000
_ADMISSION = ("offered", "refused", "spared", "finished", "late", "quick", "in_flight")
_HELD = ("asked", "would", "held", "refused", "hopeless", "gone", "passed", "answered", "late", "in_line")
_HELD_S = ("held_s", "answered_s")
_DELAY = ("requests", "idle_requests", "idle_response_s", "predicted_wait_s", "predicted_service_s", "tau_s")


class FaultModel(BaseModel):
    """What was wrong with a window, see `actuators.contract.window.Fault`."""

    model_config = ConfigDict(extra="forbid")

    kind: FaultKind
    detail: str = Field(default="", max_length=1000)
    group: str = Field(default="", max_length=300)
    server: str = Field(default="", max_length=300)


Sum = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]


class DelayModel(BaseModel):
    """What a balancer in memory saw, see `actuators.contract.window.DelayWindow`; tables as in `WindowModel`."""

    model_config = ConfigDict(extra="forbid")

    requests: list[list[Count]] = Field(max_length=100)
    idle_requests: list[list[Count]] = Field(max_length=100)
    idle_response_s: list[list[Sum]] = Field(max_length=100)
    predicted_wait_s: list[list[Sum]] = Field(max_length=100)
    predicted_service_s: list[list[Sum]] = Field(max_length=100)
    tau_s: list[list[Sum]] = Field(max_length=100)


class AdmissionModel(BaseModel):
    """What admission control counted, see `actuators.contract.window.AdmissionWindow`; a value per group."""

    model_config = ConfigDict(extra="forbid")

    offered: list[Count] = Field(max_length=100)
    refused: list[Count] = Field(max_length=100)
    spared: list[Count] = Field(max_length=100)
    finished: list[Count] = Field(max_length=100)
    late: list[Count] = Field(max_length=100)
    quick: list[Count] = Field(max_length=100)
    in_flight: list[Count] = Field(max_length=100)
    limits: list[Sum | None] = Field(max_length=100)
    """null where none is in force."""
    peak: Count


class HoldModel(BaseModel):
    """What late binding counted, see `actuators.contract.window.HoldWindow`; a value per group.

    A histogram's row ends at its last count that is not 0.
    """

    model_config = ConfigDict(extra="forbid")

    state: str = Field(max_length=20)
    asked: list[Count] = Field(max_length=100)
    would: list[Count] = Field(max_length=100)
    held: list[Count] = Field(max_length=100)
    held_s: list[Sum] = Field(max_length=100)
    refused: list[Count] = Field(max_length=100)
    hopeless: list[Count] = Field(max_length=100)
    gone: list[Count] = Field(max_length=100)
    passed: list[Count] = Field(max_length=100)
    answered: list[Count] = Field(max_length=100)
    answered_s: list[Sum] = Field(max_length=100)
    late: list[Count] = Field(max_length=100)
    in_line: list[Count] = Field(max_length=100)
    bounds_ms: list[Annotated[int, Field(ge=0, le=2**31)]] = Field(max_length=64)
    held_histogram: list[list[Count]] = Field(max_length=100)
    answer_histogram: list[list[Count]] = Field(max_length=100)


class WindowModel(BaseModel):
    """One window. Every table has a row per group and a column per server, in the order of `groups` and `servers`.

    A histogram's row ends at its last count that is not 0; columns are the buckets of `bounds_ms`
    and one above all bounds.
    """

    model_config = ConfigDict(extra="forbid")

    groups: list[Name] = Field(min_length=1, max_length=100)
    servers: list[Name] = Field(min_length=1, max_length=MAX_SERVERS)
    start_s: float = Field(ge=-1e12, le=1e12, allow_inf_nan=False)
    end_s: float = Field(ge=-1e12, le=1e12, allow_inf_nan=False)
    bounds_ms: list[Annotated[int, Field(ge=0, le=2**31)]] = Field(max_length=64)
    """Upper bounds of the buckets; empty for statistics without response-time buckets."""
    requests: list[list[Count]] = Field(max_length=100)
    response_ms_sum: list[list[Count]] = Field(max_length=100)
    errors: list[list[Count]] = Field(max_length=100)
    histogram: list[list[list[Count]]] = Field(max_length=100)
    weight: list[list[Count]] = Field(max_length=100)
    down: list[list[bool]] = Field(max_length=100)
    faults: list[FaultModel] = Field(default=[], max_length=10_000)
    delay: DelayModel | None = None
    """Samples of service times; null for an NGINX that does not balance in memory."""
    admission: AdmissionModel | None = None
    """null for an NGINX without a rule of admission."""
    holding: HoldModel | None = None
    """null for an NGINX whose locations ask for no slot."""
    client_errors: Count | None = None
    """5xx that clients got, as `serverZones` shows them; null when the statistics do not tell."""
    backup: list[list[bool]] | None = Field(default=None, max_length=100)
    """Servers that get requests only when no other is up; null when there are none."""


def to_json(window: Window) -> dict[str, Any]:
    """The window as plain JSON, as `WindowModel` describes it. Its load engine's view is left out."""
    more: dict[str, Any] = {}
    if window.delay is not None:
        more["delay"] = {name: getattr(window.delay, name).tolist() for name in _DELAY}
    if window.admission is not None:
        more["admission"] = _admission_json(window.admission)
    if window.holding is not None:
        more["holding"] = _holding_json(window.holding)
    if window.client_errors is not None:
        more["client_errors"] = window.client_errors
    if window.backup is not None:
        more["backup"] = window.backup.tolist()
    return {
        "groups": [group.name for group in window.topology.groups],
        "servers": list(window.topology.servers),
        "start_s": window.start_s,
        "end_s": window.end_s,
        "bounds_ms": list(window.bounds_ms),
        "requests": window.requests.tolist(),
        "response_ms_sum": window.response_ms_sum.tolist(),
        "errors": window.server_errors.tolist(),
        "histogram": [[_trimmed(row) for row in rows] for rows in window.latency_histogram],
        "weight": window.weight.tolist(),
        "down": window.down.tolist(),
        "faults": [
            {"kind": fault.kind, "detail": fault.detail[:1000], "group": fault.group, "server": fault.server}
            for fault in window.faults
        ],
        **more,
    }


def from_json(data: WindowModel, topology: Topology) -> Window:
    """The window about `topology`, which must name the same groups and servers in the same order.

    Raises DataError naming the first table that does not fit.
    """
    if data.groups != [group.name for group in topology.groups] or data.servers != list(topology.servers):
        raise DataError("the window is about other groups or servers", where="window", remedy="send them in one order")
    if data.bounds_ms != sorted(set(data.bounds_ms)):
        raise DataError("bounds do not ascend", where="window.bounds_ms", remedy="send them as vts shows them")
    tables = {
        name: _table(name, getattr(data, name), topology)
        for name in ("requests", "response_ms_sum", "errors", "weight", "down")
    }
    responses = np.zeros((*topology.shape, 5), np.int64)
    failed = np.minimum(tables["errors"], tables["requests"])
    responses[..., 1], responses[..., 4] = tables["requests"] - failed, failed
    zeros = np.zeros(topology.shape, np.int64)
    return Window(
        topology, data.start_s, data.end_s, tables["requests"], zeros, zeros, responses, tables["response_ms_sum"],
        tuple(data.bounds_ms), _histogram(data, topology), tables["weight"], tables["down"].astype(bool),
        faults=tuple(Fault(f.kind, f.detail, f.group, f.server) for f in data.faults),
        delay=None if data.delay is None else _delay(data.delay, topology),
        admission=None if data.admission is None else _admission(data.admission, topology),
        holding=None if data.holding is None else _holding(data.holding, topology),
        client_errors=data.client_errors,
        backup=None if data.backup is None else _table("backup", data.backup, topology).astype(bool),
    )  # fmt: skip


def histogram_of(window: Mapping[str, Any]) -> IntArray:
    """``[groups, servers, bounds + 1]`` of a window's JSON that `to_json` wrote; zeros where it was left out."""
    columns = len(window["bounds_ms"]) + 1
    table = np.zeros((len(window["groups"]), len(window["servers"]), columns), np.int64)
    for g, rows in enumerate(window.get("histogram", ())):
        for s, row in enumerate(rows):
            table[g, s, : len(row)] = row
    return table


def topology_of(model: Topology, groups: dict[str, list[str]]) -> Topology:
    """A bundle's groups, matched by name, over other servers: what a window or a document is about.

    Raises:
        DataError: a group of the bundle is missing.
        ConfigError: an address that is none.
    """
    missing = [group.name for group in model.groups if not groups.get(group.name)]
    if missing:
        raise DataError(f"no servers of group '{missing[0]}'", where="statistics", remedy="it is in the bundle")
    return Topology(
        tuple(Group(g.name, g.request_type, g.method, g.path, g.priority, tuple(groups[g.name])) for g in model.groups)
    )


def digest(window: dict[str, Any]) -> str:
    """Hash of a window's JSON: equal windows, equal hash, on every machine."""
    text = json.dumps(window, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _trimmed(row: IntArray) -> list[int]:
    used = np.flatnonzero(row)
    values: list[int] = row[: used[-1] + 1].tolist() if used.size else []
    return values


def _admission_json(admission: AdmissionWindow) -> dict[str, Any]:
    limits = [float(limit) if np.isfinite(limit) else None for limit in admission.limits]
    return {
        **{name: getattr(admission, name).tolist() for name in _ADMISSION},
        "limits": limits,
        "peak": admission.peak,
    }


def _admission(data: AdmissionModel, topology: Topology) -> AdmissionWindow:
    for name in (*_ADMISSION, "limits"):
        if len(getattr(data, name)) != topology.shape[0]:
            raise DataError(
                "a list has the wrong size", where=f"window.admission.{name}", remedy=f"expected {topology.shape[0]}"
            )
    counts = {name: np.array(getattr(data, name), np.int64) for name in _ADMISSION}
    limits = np.array([np.inf if limit is None else limit for limit in data.limits])
    return AdmissionWindow(**counts, limits=limits, peak=data.peak)


def _holding_json(holding: HoldWindow) -> dict[str, Any]:
    return {
        "state": holding.state,
        **{name: getattr(holding, name).tolist() for name in _HELD},
        **{name: getattr(holding, name).tolist() for name in _HELD_S},
        "bounds_ms": list(holding.bounds_ms),
        **{name: [_trimmed(row) for row in getattr(holding, name)] for name in ("held_histogram", "answer_histogram")},
    }


def _holding(data: HoldModel, topology: Topology) -> HoldWindow:
    groups, columns = topology.shape[0], len(data.bounds_ms) + 1
    for name in (*_HELD, *_HELD_S, "held_histogram", "answer_histogram"):
        if len(getattr(data, name)) != groups:
            raise DataError("a list has the wrong size", where=f"window.holding.{name}", remedy=f"expected {groups}")
    counts: dict[str, Any] = {name: np.array(getattr(data, name), np.int64) for name in _HELD}
    seconds: dict[str, Any] = {name: np.array(getattr(data, name), float) for name in _HELD_S}
    tables: dict[str, Any] = {
        name: _rows(getattr(data, name), columns, f"window.holding.{name}")
        for name in ("held_histogram", "answer_histogram")
    }
    return HoldWindow(state=data.state, **counts, **seconds, bounds_ms=tuple(data.bounds_ms), **tables)


def _rows(rows: list[list[Any]], columns: int, where: str) -> IntArray:
    table = np.zeros((len(rows), columns), np.int64)
    for row, values in zip(table, rows, strict=True):
        if len(values) > columns:
            raise DataError("a histogram has too many counts", where=where, remedy="see bounds_ms")
        row[: len(values)] = values
    return table


def _delay(data: DelayModel, topology: Topology) -> DelayWindow:
    tables: dict[str, Any] = {
        name: np.array(_checked(f"delay.{name}", getattr(data, name), topology), dtype=float) for name in _DELAY
    }
    counts = {name: np.array(getattr(data, name), dtype=np.int64) for name in ("requests", "idle_requests")}
    return DelayWindow(**{**tables, **counts})


def _table(name: str, rows: list[list[Any]], topology: Topology) -> IntArray:
    return np.array(_checked(name, rows, topology), dtype=np.int64)


def _checked(name: str, rows: list[list[Any]], topology: Topology) -> list[list[Any]]:
    if len(rows) != topology.shape[0] or any(len(row) != topology.shape[1] for row in rows):
        raise DataError(
            "a table has the wrong size", where=f"window.{name}", remedy=f"expected {topology.shape} groups and servers"
        )
    return rows


def _histogram(data: WindowModel, topology: Topology) -> IntArray:
    columns = len(data.bounds_ms) + 1
    table = np.zeros((*topology.shape, columns), np.int64)
    fits = len(data.histogram) == topology.shape[0] and all(
        len(rows) == topology.shape[1] and all(len(row) <= columns for row in rows) for rows in data.histogram
    )
    if not fits:
        raise DataError("a table has the wrong size", where="window.histogram", remedy="see bounds_ms")
    for g, rows in enumerate(data.histogram):
        for s, row in enumerate(rows):
            table[g, s, : len(row)] = row
    return table
