"""`deepsched steer status`: mode, weights in force, what shadow would do, guards, age of the data, last changes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayjobs.cli.console import console_out
from rayjobs.cli.main import Verb
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.heartbeat import with_answer
from rayjobs.steer.options import FolderOptions
from rayjobs.steer.order_store import Orders
from rayjobs.steer.orders import in_force


def run(options: FolderOptions) -> int:
    """Prints what an operator on call needs; 0 also when no controller runs."""
    folder = SteerFolder(options.folder)
    folder.require()
    status, running = folder.status(), folder.is_locked()
    lines = [f"controller: {'running' if running else 'not running'}", *_orders(folder)]
    if "weights" in status:
        lines += [*_now(status), *_table(status), *_admission(status), *_holding(status), *_expected(status)]
        lines += [*_alarms(folder.path, status), *_past(status)]
    for line in lines:
        console_out().print(line, markup=False, soft_wrap=True)
    return 0


def described(folder: Path, status: Mapping[str, Any], places: dict[str, str]) -> dict[str, Any]:
    """A controller as a row of `deepsched testbeds`, with the keys of `Conductor.describe`."""
    mode = status.get("mode", "starting")
    return {
        "name": f"controller {folder}",
        "doing": mode if status.get("usable", True) else f"{mode}, without usable statistics",
        "method": "service times" if status.get("service_ms") else "weights",
        "windows": "",
        "faults": "",
        "builds": "",
        "places": places,
    }


def _orders(folder: SteerFolder) -> list[str]:
    stored = folder.orders.read()
    orders = stored.value or Orders()
    waits = "; the revert is not in force yet" if orders.pending else ""
    line = f"orders: {orders.override or 'none'}; mode: {orders.mode or 'as started'}{waits}"
    return [line, *([f"  {stored.problem}"] if stored.problem else [])]


def _now(status: dict[str, Any]) -> list[str]:
    age_s = time.monotonic() - float(status["now_s"])
    usable = "" if status["usable"] else ", which cannot be used"
    return [
        f"in force: {in_force(status)}",
        f"last decision {age_s:.1f} s ago, on data of {max(time.time() - status['data_end_s'], 0.0):.1f} s ago{usable}",
    ]


def _table(status: dict[str, Any]) -> list[str]:
    """A line per server: what is in force, its share, the first share and the one that would be set, where others, and
    what NGINX counted in the last window."""
    percent, times_ms = status.get("weights_percent", 100.0), status.get("service_ms")
    what = "service times" if times_ms else "weights"
    lines = [f"canary: {percent:g} % of the requests by these {what}, the others by the baseline"]
    lines = lines if percent < 100 else []
    if times_ms:
        lines.append("a request goes where it is expected to finish first; shares are of the group's speed (1 / time)")
    would = "would set" if status["mode"] == "shadow" else "decided"
    for g, (group, servers) in enumerate(status["groups"].items()):
        width = max(map(len, servers))
        counts = (status.get("counted") or [[]] * (g + 1))[g]
        lines.append(f"{group}:")
        for s, server in enumerate(servers):
            share, other = status["shares"][g][s], status["would"][g][s]
            first = status["first"][g][s] if "first" in status else share
            more = f", first {first:.1%}" if abs(first - share) >= 0.0005 else ""
            more += f", {would} {other:.1%}" if abs(other - share) >= 0.0005 else ""
            more += f"; counted {counts[s]:.0f} of {sum(counts):.0f} requests" if counts else ""
            own = f"{times_ms[g][s]:7.2f} ms" if times_ms else f"weight {status['weights'][g][s]:3d}"
            lines.append(f"  {server:<{width}}  {own}, share {share:.1%}{more}")
    return lines


def _admission(status: dict[str, Any]) -> list[str]:
    """What admission control does, and counted since the controller started; nothing where it is left alone."""
    found = status.get("admission")
    if not found:
        return []
    sums = found["since_start"]
    offered, entered = max(sums["offered"], 1), max(sums["finished"], 1)
    return [
        f"admission: {found['rule']}, {found['percent']:g} % refused: {found['reason']}",
        f"  since the start, of {sums['offered']} requests: refused {sums['refused'] / offered:.2%}, let in beyond the"
        f" limit {sums['spared'] / offered:.2%}; of their answers late {sums['late'] / entered:.2%}, and"
        f" {sums['late_beyond']} of those {sums['late']} came while requests were beyond a limit",
    ]


def _holding(status: dict[str, Any]) -> list[str]:
    """What late binding does, and counted since the controller started; nothing where it is left alone."""
    found = status.get("holding")
    if not found:
        return []
    sums = found["since_start"]
    asked, answered = max(sums["asked"], 1), max(sums["answered"], 1)
    each = ["no limit" if slots is None else str(slots) for slots in found["slots"]]
    slots = f", slots {'/'.join(each)}" if each else ""
    return [
        f"late binding: {'holds' if found['holds'] else 'holds nothing'}, {found['order']}{slots}: {found['reason']}",
        f"  since the start, of {sums['asked']} requests: held {sums['held'] / asked:.2%}, would have been held"
        f" {sums['would'] / asked:.2%}, refused {sums['refused'] / asked:.2%}, refused as too late"
        f" {sums['hopeless'] / asked:.2%}; of their answers late, from arrival on, {sums['late'] / answered:.2%}",
    ]


def _expected(status: dict[str, Any]) -> list[str]:
    """What the bundle's own evaluation says of its gain; nothing where it has none."""
    return [f"expected: {status['expected']}"] if status.get("expected") else []


def _alarms(folder: Path, status: dict[str, Any]) -> list[str]:
    alarms = [f"ALARM {with_answer(alarm, folder)}" for alarm in status["alarms"]]
    guards = [f"  {guard}: {count}" for guard, count in sorted(status.get("guards", {}).items())]
    return [*alarms, *(["guards that acted, in intervals:"] if guards else []), *guards]


def _past(status: dict[str, Any]) -> list[str]:
    changes = status.get("changes", [])
    return [
        *(["last changes:"] if changes else []),
        *(
            f"  {time.strftime('%F %T', time.localtime(each['time']))} {each['source']} ({each['reason']}): most,"
            f" {each['most']} from {each['share_before']:.1%} to {each['share_now']:.1%}"
            for each in reversed(changes)
        ),
    ]


STATUS = Verb("steer status", "deepsched steer status --folder runs/steer", FolderOptions, run)
