"""What a controller tells of itself in every interval (`status.json`), and the command that answers an alarm."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actuators.contract.control import ServiceTimes, shares_of
from tuning.steering.meanings import BACK_TO_BASELINE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actuators.contract.topology import Topology
    from actuators.contract.window import Window
    from tuning.policy.adviser import Advice
    from tuning.steering.decide import Decision, Steering

ANSWERS = (
    ("admission would refuse", "deepsched steer status --folder {folder}, then longer admission.deadlines_ms"),
    ("admission refuses", "deepsched steer mode shadow --folder {folder}, to refuse nothing"),
    ("rule of admission was changed", "deepsched steer resume --folder {folder}, or nothing: the other rule stays"),
    ("admission not applied", "deepsched admission show --control-url URL"),
    ("late binding would hold", "deepsched steer status --folder {folder}, then more --workers or holding.slots"),
    ("late binding refuses", "deepsched steer mode shadow --folder {folder}, to hold nothing"),
    ("late binding was ended", "deepsched steer resume --folder {folder}, or nothing: requests are not held"),
    ("late binding has failed", "deepsched steer mode shadow --folder {folder}, then tail NGINX's error log"),
    ("late binding not applied", "deepsched holding show --control-url URL"),
    ("recalibrate", "deepsched steer recalibrate NEW --bundle BUNDLE --folder {folder}, then steer swap NEW"),
    ("policy failed", "deepsched steer swap BUNDLE --folder {folder}"),
    ("bundle not swapped", "deepsched steer swap BUNDLE --folder {folder}"),
    ("statistics missing", "deepsched steer revert --folder {folder}, until they are back"),
    ("overload", "deepsched steer pause --folder {folder}, or add servers"),
    ("weights were changed", "deepsched steer pause --folder {folder}, to keep them"),
    ("not an orders file", "deepsched steer resume --folder {folder}"),
    ("the servers of this NGINX", "deepsched steer revert --folder {folder}"),
    ("not applied", "nginx -t, then deepsched steer status --folder {folder}"),
    ("no heartbeat", "df -h {folder}"),
    ("not recorded", "df -h {folder}, then ls -l {folder}"),
    ("audit log not rotated", "ls -l {folder}"),
    ("the revert is in force and not recorded", "df -h {folder}, then deepsched steer revert --folder {folder}"),
    ("a revert restores", "deepsched steer revert --folder {folder}"),
    ("no response-time buckets", "deepsched doctor --status-url URL"),
    ("weights in force unknown", "deepsched steer revert --folder {folder}"),
    ("NGINX was restarted", "deepsched steer revert --folder {folder}, or nothing: the controller goes on"),
    (
        BACK_TO_BASELINE,
        "deepsched steer revert --folder {folder}, if it happens again: the policy acts again by itself",
    ),
    ("answers nothing", "curl -i http://SERVER/, then deepsched steer status --folder {folder}"),
)
"""What an alarm contains → the command that answers it; the first one counts."""
_LOOK = "deepsched steer status --folder {folder}"


def of(
    steering: Steering, window: Window, advice: Advice | None, decision: Decision, alarms: Sequence[str]
) -> dict[str, Any]:
    """The part of the heartbeat that tells what is in force and why, what shadow would do, what the policy wants."""
    policy = advice.policy if advice is not None else None
    times = steering.in_force if isinstance(steering.in_force, ServiceTimes) else None
    return {
        "time": time.time(),
        "mode": steering.options.mode,
        "canary_percent": steering.options.canary_percent,
        "override": steering.override,
        "source": decision.source,
        "reason": decision.reason,
        "alarms": list(alarms),
        "data_end_s": window.end_s,
        "usable": window.usable,
        "groups": {group.name: list(group.servers) for group in steering.topology.groups},
        "weights": _rows(steering.topology, steering.in_force.as_weights().values),
        "weights_percent": 100.0 if steering.canary is None else steering.canary.percent,
        "first": _rows(steering.topology, steering.original.as_weights().shares()),
        "shares": _rows(steering.topology, shares_of(steering.in_force, steering.canary)),
        "would": _rows(steering.topology, shares_of(decision.control, decision.canary)),
        "policy": None if policy is None else _rows(steering.topology, policy.as_weights().shares()),
        "counted": _rows(steering.topology, window.requests) if window.usable else None,
        "service_ms": None if times is None else _rows(steering.topology, 1e3 * times.tau_s),
    }


def change(before: NDArray[Any], steering: Steering, decision: Decision) -> dict[str, Any]:
    """One change of the control, for the list of the last ones; `before`: shares, ``[groups, servers]``."""
    now, topology = shares_of(steering.in_force, steering.canary), steering.topology
    moved = abs(now - before)
    g, s = divmod(int(moved.argmax()), moved.shape[1])
    return {
        "time": time.time(),
        "source": decision.source,
        "reason": decision.reason,
        "most": f"{topology.groups[g].name}/{topology.servers[s]}",
        "share_before": float(before[g, s]),
        "share_now": float(now[g, s]),
    }


def expectation(bundle: Path) -> str:
    """What an evaluation found the bundle to be worth; empty where there is none."""
    from tuning.policy.worth import describe_worth, noted_worth

    worth = noted_worth(bundle)
    return "" if worth is None else describe_worth(worth)


def answer(alarm: str, folder: Path) -> str:
    """The command that answers an alarm."""
    return next((command for words, command in ANSWERS if words in alarm), _LOOK).format(folder=folder)


def with_answer(alarm: str, folder: Path) -> str:
    """The alarm with the command that answers it."""
    return f"{alarm}; answer: {answer(alarm, folder)}"


def _rows(topology: Topology, table: NDArray[Any]) -> list[list[float]]:
    """Rows per group, columns per server of that group."""
    rounded = table.round(4)
    return [
        rounded[g, [topology.server_index(server) for server in group.servers]].tolist()
        for g, group in enumerate(topology.groups)
    ]
