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

from rayjobs.serve.figures import (
    Measured,
    Regime,
    admission_figures,
    folded,
    group_figures,
    holding_figures,
    moves,
    point,
    regime_after,
)
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.heartbeat import answer
from tuning.policy.worth import noted_worth
from tuning.steering.audit import has_data, recorded_percent
from tuning.steering.meanings import GUARD_MEANINGS, MODE_MEANINGS, SOURCE_MEANINGS
from tuning.steering.options import GUARDS, current_mode

HISTORY_S = 900.0
STALE_AFTER_S = 5.0
_POINTS, _FEWEST_POINTS, _SHARES = 300, 30, 60_000
"""Points in the history: one per three seconds of 15 minutes; fewer for very many servers, by the shares in it."""


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
        self._points: deque[dict[str, Any]] = deque()
        self._topology: list[dict[str, Any]] = []
        self._bundle, self._data_time = "", 0.0
        self._regime: Regime = "baseline"
        self.version = 0

    def now(self) -> dict[str, Any]:
        """The latest decision, figures per group and server, guards and orders; `alive`: it is at most 5 s old."""
        with self._lock:
            self._refresh()
            return self._now()

    def history(self) -> dict[str, Any]:
        """Response times, shares and states of the last 15 minutes, at most 300 points; changes and alarms, folded."""
        with self._lock:
            self._refresh()
            lines, points = list(self._lines), list(self._points)
        pairs = sum(map(len, points[-1]["in_force"])) if points else 1
        most = max(min(_POINTS, _SHARES // pairs), _FEWEST_POINTS)
        every = max(-(-len(points) // most), 1)
        return {
            "points": points[::-every][::-1],
            "events": [{**event, "alarms": self._answered(event["alarms"])} for event in folded(lines)],
            "gain": self._gain(lines),
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
            except (ValueError, LookupError, TypeError):
                continue
        now = time.time()
        # Lines from the future were written before the clock was set back; they would block the removal of later ones.
        while self._lines and not now - HISTORY_S <= self._lines[0]["time"] <= now + STALE_AFTER_S:
            self._lines.popleft()
            self._points.popleft()

    def _now(self) -> dict[str, Any]:
        status = self._folder.status()
        silent_s = time.monotonic() - float(status.get("now_s", float("-inf")))
        alive = bool(status) and silent_s < STALE_AFTER_S and not status.get("ended")
        base: dict[str, Any] = {"version": self.version, "alive": alive, "time": time.time()}
        if not self._lines:
            return base
        line = self._lines[-1]
        counts = status.get("guards", {})
        groups = group_figures(line, self._deadlines_ms, self._types)
        return {
            **base,
            "decided": line["time"],
            "data_time": self._data_time or None,
            "mode": current_mode(line["mode"]),
            "canary_percent": recorded_percent(line),
            "override": line["override"],
            "source": line["source"],
            "meaning": f"{MODE_MEANINGS[current_mode(line['mode'])]} {SOURCE_MEANINGS[line['source']]}",
            "reason": line["reason"],
            "by": line["by"],
            "change": line["change"],
            "alarms": self._answered(line["alarms"]),
            "art": line["art"],
            "errors": line["errors"],
            "reference": line["reference"],
            "latency_ms": line.get("latency_ms", {}),
            "guards": [
                {
                    "name": name,
                    "speaks": name in line["guards"],
                    "count": counts.get(name, 0),
                    "meaning": GUARD_MEANINGS[name],
                }
                for name in GUARDS
            ],
            "groups": groups,
            "admission": admission_figures(line),
            "holding": holding_figures(line),
            "moves": moves(groups),
            "states": self._states(line),
        }

    def _take(self, line: dict[str, Any]) -> None:
        if line.get("kind") == "start":
            self._deadlines_ms = [1e3 * value for value in line["deadlines_s"]]
            self._types = {group["name"]: group["request_type"] for group in line["topology"]}
            self._bundle = str(line.get("bundle", {}).get("folder", ""))
            if line["topology"] != self._topology:
                # Other groups or servers: their tables have another size.
                self._topology = line["topology"]
                self._lines.clear()
                self._points.clear()
        elif line.get("kind") == "decision" and self._deadlines_ms:
            line.setdefault("in_force", line["weights"])
            shown = point(line, self._deadlines_ms)
            line["regime"], self._regime = self._regime, regime_after(line, self._regime)
            measured = Measured()
            if has_data(line):
                measured.add(line["window"], self._deadlines_ms)
                self._data_time = line["time"]
            line["measured"] = measured
            # Histograms are large, and only the latest one is shown.
            if self._lines:
                self._lines[-1]["window"].pop("histogram", None)
            self._lines.append(line)
            self._points.append(shown)
            self.version += 1

    def _gain(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        """What the policy is worth: what its bundle predicts, and what was measured here in the last 15 minutes."""
        sums = {"policy": Measured(), "baseline": Measured()}
        for line in lines:
            sums[line["regime"]].join(line["measured"])
        # An order may have swapped it since the start.
        bundle = str(self._folder.status().get("bundle") or self._bundle)
        return {
            "predicted": noted_worth(Path(bundle)) if bundle else None,
            "bundle": bundle,
            "measured": {name: total.to_json() for name, total in sums.items()},
        }

    def _answered(self, alarms: list[str]) -> list[dict[str, str]]:
        return [{"text": alarm, "command": answer(alarm, self._folder.path)} for alarm in alarms]

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
