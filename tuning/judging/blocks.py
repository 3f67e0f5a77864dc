"""The record of one block (one policy on one testbed for a few seconds), and finished blocks as JSON lines.

A block is appended as it ends, so that an interrupted evaluation can be resumed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from actuators.contract import histogram
from actuators.contract.control import Control, Weights
from actuators.contract.script import Behaviour, Script
from actuators.contract.topology import Topology
from actuators.contract.window import Fault, Window
from actuators.errors import DataError
from actuators.options import first_fault
from envs.heuristics.names import policy_name
from envs.scenarios.timeline import server_speeds
from tuning.judging.content import BlockLine, WindowRecord
from tuning.judging.plan import PlannedBlock
from tuning.judging.tally import BlockTally

# A fault of the measuring itself. What a scenario does to its servers is part of what is judged.
_SPOILS = frozenset(
    {
        "restart", "reset", "gap", "missing_group", "zone_full", "duplicate_server", "saturated_client",
        "saturated_nginx", "not_in_force", "load_ended",
    }
)  # fmt: skip
_SLOWEST = 0.05
_SPOILS_UNLESS_SCRIPTED = frozenset({"server_down", "missing_server"})


@dataclass(frozen=True, eq=False)
class Block:
    """A finished block.

    Attributes:
        planned: which policy, when, with which seeds.
        created: ISO time of its measured part.
        duration_s: of the measured part, the drain included.
        tally: sums over the measured part.
        windows: what lies behind the tally, the drain last.
        changes: controls that were put in force while it was measured.
        flags: why it must not be judged; empty when it may.
        events: what the script did to the servers, ``{"at_s", "server", "text"}``.
        utilisation: ``[servers]``, share of its workers' time that each server was given work for; empty
            where no one counted the requests per server.
        proxy_cpu_s: CPU time of the load balancer and its workers (live); None when not looked at.
        core_wait_ms: how long the machine let a thread wait for a core on average (live); None when not looked at.
    """

    planned: PlannedBlock
    created: str
    duration_s: float
    tally: BlockTally
    windows: tuple[WindowRecord, ...]
    changes: int
    flags: tuple[str, ...] = ()
    events: tuple[dict[str, Any], ...] = ()
    utilisation: tuple[float, ...] = ()
    core_wait_ms: float | None = None
    proxy_cpu_s: float | None = None

    @property
    def usable(self) -> bool:
        return not self.flags

    def to_json(self) -> dict[str, Any]:
        """Plain values without the windows, which have a list of their own."""
        return {
            **self.planned.__dict__,
            "created": self.created,
            "duration_s": self.duration_s,
            "usable": self.usable,
            "flags": list(self.flags),
            "changes": self.changes,
            "accounting": self.tally.accounting(),
            "events": list(self.events),
            "utilisation": list(self.utilisation),
            "core_wait_ms": self.core_wait_ms,
            "proxy_cpu_s": self.proxy_cpu_s,
            "tally": self.tally.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], windows: tuple[WindowRecord, ...]) -> Block:
        """Inverse of `to_json`, also with a policy's former name; raises KeyError or TypeError for another shape."""
        planned = {name: data[name] for name in PlannedBlock.__dataclass_fields__ if name in data}
        return cls(
            planned=PlannedBlock(**{**planned, "policy": policy_name(planned["policy"])}),
            created=data["created"],
            duration_s=data["duration_s"],
            tally=BlockTally.from_json(data["tally"]),
            windows=windows,
            changes=data["changes"],
            flags=tuple(data["flags"]),
            events=tuple(data["events"]),
            utilisation=tuple(data.get("utilisation", ())),
            core_wait_ms=data.get("core_wait_ms"),
            proxy_cpu_s=data.get("proxy_cpu_s"),
        )


def record_window(
    window: Window, control: Control, script: Script, at_s: float, *, drain: bool = False
) -> WindowRecord:
    """The published form of a window, of the control in force in it, and of the true speeds at its middle `at_s`."""
    rates = np.where(window.topology.mask, true_rates(script, at_s), 0.0)
    rates /= np.maximum(rates.sum(axis=1, keepdims=True), 1e-12)
    mean_ms = window.mean_response_s() * 1e3
    return {
        "start_s": window.start_s,
        "end_s": window.end_s,
        "drain": drain,
        "requests": window.requests.tolist(),
        "mean_ms": [[round(float(v), 4) if np.isfinite(v) else None for v in row] for row in mean_ms],
        "errors": window.server_errors.tolist(),
        "weights": window.weight.tolist(),
        "shares": [[round(float(v), 5) for v in row] for row in control_shares(control)],
        "true_shares": [[round(float(v), 5) for v in row] for row in rates],
        "client": _record_client(window),
        "faults": [describe(fault) for fault in window.faults],
    }


def control_shares(control: Control) -> NDArray[np.float64]:
    """``[groups, servers]``, each row sums to 1: weights, or 1/tau for service times (docs/glossary.md#control)."""
    if isinstance(control, Weights):
        return control.shares()
    rates = np.where(control.topology.mask, 1.0 / control.tau_s, 0.0)
    shares: NDArray[np.float64] = rates / rates.sum(axis=1, keepdims=True)
    return shares


def true_rates(script: Script, at_s: float) -> NDArray[np.float64]:
    """``[groups, servers]``: requests per second that one worker of a server serves at a moment of the script."""
    return _undisturbed_rates(script) * server_speeds(script, at_s)


def _undisturbed_rates(script: Script) -> NDArray[np.float64]:
    speeds = np.array([profile.speeds for profile in script.servers]).T
    rates: NDArray[np.float64] = speeds / np.array(script.mean_service_s)[:, None]
    return rates


def utilisation(windows: Sequence[Window], script: Script) -> tuple[float, ...]:
    """``[servers]``: mean work of the requests that each server answered well, over its workers' time.

    The script knows the true service times; a live server's own statistics are not asked for.
    """
    start_s = windows[0].start_s
    middles_s = [(w.start_s + w.end_s) / 2 - start_s for w in windows]
    work_s = np.zeros(len(script.servers))
    for window, at_s in zip(windows, middles_s, strict=True):
        # A server that stopped answers nothing more; what it had answered in this window was at its own speed.
        rates = np.maximum(true_rates(script, at_s), _SLOWEST * _undisturbed_rates(script))
        work_s += ((window.requests - window.server_errors) / rates).sum(axis=0)
    workers = np.array([profile.workers for profile in script.servers])
    shares = work_s / (workers * max(windows[-1].end_s - start_s, 1e-9))
    return tuple(round(float(share), 5) for share in shares)


def jain_index(values: Sequence[float]) -> float | None:
    """Jain's fairness index, 1 for equal values and 1/n for all on one of n; None for nothing."""
    squares = sum(value**2 for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares > 0 else None


def flags_of(windows: tuple[Window, ...], script: Script, interval_s: float) -> tuple[str, ...]:
    """Why the windows of a measured part must not be judged, each reason once; the drain is the last window."""
    scripted = any(b.refused or b.hang for b in script.behaviours)
    spoils = _SPOILS if scripted else _SPOILS | _SPOILS_UNLESS_SCRIPTED
    reasons: dict[str, None] = {}
    for window in windows:
        is_drain = window is windows[-1]
        for fault in window.faults:
            if fault.kind in spoils and not (is_drain and fault.kind == "load_ended"):
                reasons[describe(fault)] = None
        if window.client is not None and window.client.saturated and not window.faults:
            reasons["saturated_client: the load engine itself was the bottleneck"] = None
        if not is_drain and window.duration_s > 2 * interval_s:
            reasons[f"stall: a window took {window.duration_s:.1f} s instead of {interval_s:g} s"] = None
    return tuple(reasons)


def script_events(script: Script, topology: Topology) -> tuple[dict[str, Any], ...]:
    """What the script does to servers and load, in words, ascending in time."""
    events = [{"at_s": b.at_s, "server": topology.servers[b.server], "text": _behaviour(b)} for b in script.behaviours]
    for stream in script.streams:
        events += [
            {"at_s": step.start_s, "server": "", "text": f"{stream.request_type} at {step.rate_rps:.0f}/s"}
            for step in stream.steps[1:]
        ]
    return tuple(sorted(events, key=lambda event: float(str(event["at_s"]))))


def describe(fault: Fault) -> str:
    """One line for a person."""
    at = " ".join(name for name in (fault.group, fault.server) if name)
    return f"{fault.kind}: {fault.detail}" + (f" ({at})" if at else "")


def _behaviour(behaviour: Behaviour) -> str:
    if behaviour.refused:
        return "refuses connections"
    if behaviour.hang:
        return "never answers"
    if behaviour.error_ratio:
        return f"fails {behaviour.error_ratio:.0%} of its requests"
    return "normal speed" if behaviour.speed == 1.0 else f"{behaviour.speed:.2f} of its speed"


def _record_client(window: Window) -> dict[str, Any] | None:
    client = window.client
    if client is None:
        return None
    rows = [client.latency_counts.sum(axis=0), *client.latency_counts]
    percentile = {
        name: [_number(histogram.percentile_ms(row, p)) for row in rows] for name, p in (("p50_ms", 50), ("p99_ms", 99))
    }
    return {
        "sent": client.sent.tolist(),
        "answered": client.answered.tolist(),
        "errors": {name: counts.tolist() for name, counts in client.errors.items() if counts.any()},
        **{name: values[0] for name, values in percentile.items()},
        "per_type": {name: values[1:] for name, values in percentile.items()},
        "saturated": client.saturated,
        "cpu_share": round(client.cpu_share, 4),
        "send_delay_p99_ms": round(client.send_delay_p99_ms, 4),
    }


def _number(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


REMEDY = "make room on the disk, then `deepsched evaluate --resume RUN` goes on"


class Journal:
    """Appends blocks to one file, each in a line of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, block: Block) -> None:
        """Keeps one block. Raises DataError when it cannot be written; the earlier lines are whole then."""
        line = json.dumps({**block.to_json(), "windows": list(block.windows)}, allow_nan=False) + "\n"
        try:
            with open(self.path, "ab") as file:
                before = file.tell()
                try:
                    file.write(line.encode())
                    file.flush()
                except OSError:
                    # What cannot be cut off here, `read` cuts off.
                    with contextlib.suppress(OSError):
                        file.truncate(before)
                    raise
        except OSError as error:
            raise DataError(
                f"a finished block cannot be kept: {error.strerror}", where=str(self.path), remedy=REMEDY
            ) from error

    def read(self) -> list[Block]:
        """The blocks of an earlier run; a torn last line is cut off, so that the next block starts a line.

        Raises DataError for anything else that is not a block, or an unreadable file.
        """
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DataError(f"cannot read the blocks: {error.strerror}", where=str(self.path)) from error
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            with open(self.path, "ab") as file:
                file.truncate(whole)
        return [self._block(number, line) for number, line in enumerate(text[:whole].splitlines(), 1)]

    def _block(self, number: int, line: bytes) -> Block:
        try:
            BlockLine.model_validate_json(line)
        except ValidationError as error:
            raise DataError(
                f"not a finished block: {first_fault(error)}",
                where=f"{self.path}:{number}",
                remedy="remove the line and resume",
            ) from error
        data = json.loads(line)
        return Block.from_json(data, tuple(data["windows"]))
