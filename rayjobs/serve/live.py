"""The figures of the live page, read from the audit log and status of a controller (`deepsched steer`)."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np

from actuators.contract.arrays import IntArray
from envs.observation.features import quantile_s
from rayjobs.steer.folder import SteerFolder
from tuning.steering.audit import recorded_percent
from tuning.steering.options import GUARDS, current_mode

HISTORY_S = 900.0
STALE_AFTER_S = 5.0
_POINTS = 300
"""Maximum number of points in the history: one per three seconds of 15 minutes."""


class LiveView:
    """Follows a controller's `audit.jsonl` and reads only what was added. Thread-safe.

    Its state can be rebuilt from the file, so a restart loses nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = SteerFolder(folder)
        self._lock = threading.Lock()
        self._inode, self._offset, self._mark, self._rest = 0, 0, b"", b""
        self._deadlines_ms: list[float] = []
        self._types: dict[str, str] = {}
        self._lines: deque[dict[str, Any]] = deque()
        self.version = 0

    def now(self) -> dict[str, Any]:
        """The latest decision, figures per group and server, guards and orders; `alive`: it is at most 5 s old."""
        with self._lock:
            self._refresh()
            return self._now()

    def history(self) -> dict[str, Any]:
        """Weights, states and decisions of the last 15 minutes, at most 300 points."""
        with self._lock:
            self._refresh()
            lines = list(self._lines)
        every = max(len(lines) // _POINTS, 1)
        return {
            "points": [_point(line) for line in lines[::every]],
            "decisions": [_entry(line) for line in lines if line["change"] or line["alarms"]][-100:],
        }

    def _refresh(self) -> None:
        """Reads what was written since the last call; a missing file counts as empty."""
        path = self._folder.audit
        try:
            with open(path, "rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                file.seek(self._offset - len(self._mark))
                # A file that was removed and created again can get the same inode and a similar size, but not the
                # same line, which holds its time, at the same place.
                if inode != self._inode or file.read(len(self._mark)) != self._mark:
                    self._inode, self._offset, self._mark, self._rest = inode, 0, b"", b""
                    file.seek(0)
                added = file.read()
        except OSError:
            return
        self._offset += len(added)
        read = self._mark + added
        self._mark = read[read.rfind(b"\n", 0, len(read) - 1) + 1 :]
        *whole, self._rest = (self._rest + added).split(b"\n")
        for text in whole:
            try:
                self._take(json.loads(text))
            except (ValueError, KeyError, TypeError):
                continue
        now = time.time()
        # Lines from the future were written before the clock was set back; they would block the removal of later ones.
        while self._lines and not now - HISTORY_S <= self._lines[0]["time"] <= now + STALE_AFTER_S:
            self._lines.popleft()

    def _now(self) -> dict[str, Any]:
        status = self._folder.status()
        silent_s = time.monotonic() - float(status.get("now_s", float("-inf")))
        alive = bool(status) and silent_s < STALE_AFTER_S and not status.get("ended")
        base: dict[str, Any] = {"version": self.version, "alive": alive, "time": time.time()}
        if not self._lines:
            return base
        line = self._lines[-1]
        counts = status.get("guards", {})
        return {
            **base,
            "decided": line["time"],
            "mode": current_mode(line["mode"]),
            "canary_percent": recorded_percent(line),
            "override": line["override"],
            "source": line["source"],
            "reason": line["reason"],
            "by": line["by"],
            "change": line["change"],
            "alarms": line["alarms"],
            "art": line["art"],
            "errors": line["errors"],
            "reference": line["reference"],
            "latency_ms": line.get("latency_ms", {}),
            "guards": [{"name": g, "speaks": g in line["guards"], "count": counts.get(g, 0)} for g in GUARDS],
            "groups": self._groups(line),
            "states": self._states(line),
        }

    def _take(self, line: dict[str, Any]) -> None:
        if line.get("kind") == "start":
            self._deadlines_ms = [1e3 * value for value in line["deadlines_s"]]
            self._types = {group["name"]: group["request_type"] for group in line["topology"]}
        elif line.get("kind") == "decision" and self._deadlines_ms:
            # Histograms are large, and only the latest one is shown.
            if self._lines:
                self._lines[-1]["window"].pop("histogram", None)
            self._lines.append(line)
            self.version += 1

    def _groups(self, line: dict[str, Any]) -> list[dict[str, Any]]:
        window = line["window"]
        duration_s = max(window["end_s"] - window["start_s"], 1e-3)
        counts = _histogram(window)
        bounds = tuple(window["bounds_ms"])
        p50, p99 = (1e3 * quantile_s(counts, bounds, q) for q in (0.5, 0.99))
        whole = counts.sum(axis=1)
        all50, all99 = (1e3 * quantile_s(whole, bounds, q) for q in (0.5, 0.99))
        in_force, baseline = line.get("in_force", line["weights"]), line["baseline"]
        return [
            {
                "name": name,
                "request_type": self._types.get(name, name),
                "deadline_ms": self._deadlines_ms[g],
                "rate_rps": sum(window["requests"][g]) / duration_s,
                "p50_ms": float(all50[g]),
                "p99_ms": float(all99[g]),
                "servers": [
                    {
                        "name": server,
                        "rate_rps": window["requests"][g][s] / duration_s,
                        "p50_ms": float(p50[g, s]),
                        "p99_ms": float(p99[g, s]),
                        "errors": window["errors"][g][s],
                        "weight": in_force[g][s],
                        "decided": line["weights"][g][s],
                        "baseline": baseline[g][s],
                        "policy": line["policy"][g][s] if line["policy"] else None,
                        "down": window["down"][g][s],
                    }
                    for s, server in enumerate(window["servers"])
                    if in_force[g][s] > 0
                ],
            }
            for g, name in enumerate(window["groups"])
        ]

    def _states(self, line: dict[str, Any]) -> list[dict[str, Any]]:
        if line["novelty"] is None:
            return []
        servers = line["window"]["servers"]
        return [
            {"server": server, "cluster": line["cluster"][s], "novelty": line["novelty"][s]}
            for s, server in enumerate(servers)
        ]


async def events(view: LiveView, every_s: float = 1.0, most_s: float = 3600.0) -> AsyncIterator[bytes]:
    """Server-sent events: the latest view once a second; ends after an hour, and the page reconnects."""
    for _ in range(int(most_s / every_s)):
        # The first read takes up to 16 MB: the event loop must not wait for it.
        now = await asyncio.to_thread(view.now)
        yield b"data: " + json.dumps(now, allow_nan=False).encode() + b"\n\n"
        await asyncio.sleep(every_s)


def _histogram(window: dict[str, Any]) -> IntArray:
    columns = len(window["bounds_ms"]) + 1
    rows = window.get("histogram", [])
    table = np.zeros((len(window["groups"]), len(window["servers"]), columns), np.int64)
    for g, servers in enumerate(rows):
        for s, row in enumerate(servers):
            table[g, s, : len(row)] = row
    return table


def _point(line: dict[str, Any]) -> dict[str, Any]:
    return {
        "time": line["time"],
        "source": line["source"],
        "in_force": line.get("in_force", line["weights"]),
        "cluster": line["cluster"],
    }


def _entry(line: dict[str, Any]) -> dict[str, Any]:
    return {
        "time": line["time"],
        "source": line["source"],
        "reason": line["reason"],
        "guards": line["guards"],
        "alarms": line["alarms"],
        "applied": line.get("applied", False),
    }
