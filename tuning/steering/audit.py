"""The audit log: every decision as a JSON line in rotated files, and the replay of a log with any bundle."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from pydantic import ValidationError

from actuators.contract.arrays import FloatArray
from actuators.contract.control import Canary, Control, ServiceTimes, Weights
from actuators.contract.topology import Group, Topology
from actuators.contract.window import Window
from actuators.errors import ConflictError, DataError
from actuators.files import exclusive, give_to_owner, open_private
from envs.observation.features import LatencyMemory
from tuning.policy.adviser import Advice, Advises, Recent, State, advisable
from tuning.steering import control_json, window_json
from tuning.steering.decide import Decision, Steering
from tuning.steering.limits import as_shared, canaries_differ, differ
from tuning.steering.options import FIRST_RULES, AuditOptions, SteeringOptions, current_mode
from tuning.steering.window_json import WindowModel

FORMAT_VERSION = 2
"""Version 1 lacks the guards of `FIRST_RULES`."""


class AuditLog:
    """Appends lines, each with one write; a full disk or a missing folder is counted, never raised.

    Every file begins with the line of `header`, so that each can be read alone.

    Attributes:
        lost: lines that could not be written.
        problem: why the latest line is not in the log, or the file was not rotated before it; empty when all is well.
    """

    def __init__(self, path: Path, header: dict[str, Any], options: AuditOptions | None = None) -> None:
        self.path, self.header, self._options = path, header, options or AuditOptions()
        self.lost, self.problem = 0, ""
        self._write({**header, "time": time.time()})

    def write(self, line: dict[str, Any]) -> None:
        """One line; NaN becomes null."""
        self.problem = ""
        try:
            if self._is_full():
                # Who does not get the lock at once writes on: another process rotates already.
                with contextlib.suppress(ConflictError), exclusive(self.path.with_name(f".{self.path.name}.lock"), 0.0):
                    self._rotate()
        except OSError as error:
            self.problem = f"audit log not rotated: {error.strerror}"
        self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        try:
            append_line(self.path, line)
        except OSError as error:
            self.lost += 1
            self.problem = f"not recorded: {error.strerror}"

    def _is_full(self) -> bool:
        return self.path.exists() and self.path.stat().st_size > self._options.max_bytes

    def _rotate(self) -> None:
        """The lock is held; another process may have rotated since this one saw that the file is full."""
        if not self._is_full():
            return
        for index in range(self._options.keep, 0, -1):
            older = self.path if index == 1 else _numbered(self.path, index - 1)
            if older.exists():
                older.replace(_numbered(self.path, index))
        self._write({**self.header, "time": time.time(), "rotated": True})


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Adds one line in one write, so that lines of several processes do not mix; NaN becomes null. Raises OSError.

    A new file of root belongs to the owner of its folder, whose controller writes it from then on.
    """
    text = json.dumps(_plain(line), separators=(",", ":"), allow_nan=False).encode() + b"\n"
    with open(path, "ab+", buffering=0, opener=open_private) as file:
        if file.tell() == 0:
            give_to_owner(file.fileno(), path.parent)
        elif os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            # A writer that was killed, or a disk that was full, left a torn line.
            text = b"\n" + text
        if file.write(text) != len(text):
            raise OSError(28, "no space left for a whole line")


def header(steering: Steering, deadlines_s: FloatArray, now_s: float, bundle: dict[str, Any]) -> dict[str, Any]:
    """The first line of a file: what decisions depend on besides windows; `bundle` identifies the one that acts."""
    original = steering.original
    return {
        "kind": "start",
        "format_version": FORMAT_VERSION,
        "topology": msgspec.to_builtins(steering.topology.groups),
        "addresses": steering.topology.addresses,
        "original": control_json.to_json(original),
        "options": steering.options.model_dump(mode="json", include=set(SteeringOptions.model_fields)),
        "deadlines_s": deadlines_s.tolist(),
        "splits": steering.splits,
        "now_s": now_s,
        "bundle": bundle,
    }


def decision_line(
    steering: Steering,
    before: Control,
    window: Window,
    advice: Advice | None,
    decision: Decision,
    now_s: float,
    *,
    canary: Canary | None = None,
) -> dict[str, Any]:
    """One decision as a line, without latencies; `before` was in force during the window, or for a `canary` of it.

    Service times are written as tables of weights, 1/τ, for readers that expect weights, and weights of servers with
    several addresses in proportion to their shares; the exact controls are then under `exact`, with a canary, too.
    """
    seen = window_json.to_json(window)
    policy = advice.policy if advice else None
    controls = {"before": before, "policy": policy, "baseline": decision.baseline, "weights": decision.control}
    controls["advised"] = advice.baseline if advice else None
    exact = {}
    canaries = {"before": canary, "now": decision.canary}
    several = any(canaries.values()) or bool(steering.topology.addresses)
    if several or any(isinstance(control, ServiceTimes) for control in controls.values()):
        exact = {"exact": {name: control_json.to_json(control) for name, control in controls.items() if control}}
    state, reference = decision.state, steering.harm.reference
    return {
        "kind": "decision",
        "time": time.time(),
        "now_s": now_s,
        "mode": steering.options.mode,
        "canary_percent": steering.options.canary_percent,
        "override": steering.override,
        "hash": window_json.digest(seen),
        "by": advice.by if advice else "",
        "problem": advice.problem if advice else "",
        "policy": policy.as_weights().values.tolist() if policy else None,
        "cluster": state.cluster.tolist() if state else None,
        "posterior": np.round(state.posterior, 4).tolist() if state else None,
        "novelty": np.round(state.novelty, 4).tolist() if state else None,
        "source": decision.source,
        "reason": decision.reason,
        "weights": as_shared(decision.control.as_weights()).values.tolist(),
        "baseline": as_shared(decision.baseline.as_weights()).values.tolist(),
        **exact,
        **({"canaries": _canaries(canaries)} if any(canaries.values()) else {}),
        "change": decision.change,
        "guards": list(decision.guards),
        "alarms": list(decision.alarms),
        "art": decision.art,
        "errors": decision.errors,
        "reference": {"art": reference.art, "errors": reference.errors,
                      "windows": reference.windows},
        "window": seen,
    }  # fmt: skip


def _canaries(canaries: dict[str, Canary | None]) -> dict[str, Any]:
    return {name: control_json.canary_to_json(canary) for name, canary in canaries.items()}


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line of a log, of its files put aside first, oldest first; torn lines are left out.

    Raises DataError when the file cannot be read.
    """
    aside = sorted(path.parent.glob(f"{path.name}.*"), key=lambda p: -_number(p))
    for file in (*(p for p in aside if _number(p) > 0), path):
        try:
            lines = file.read_bytes().split(b"\n")
        except OSError as error:
            raise DataError(f"cannot read: {error.strerror}", where=str(file), remedy="check the path") from error
        for line in lines:
            try:
                value = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value


@dataclass(frozen=True, eq=False)
class Redecided:
    """A recorded decision and the one that is made of the same window now.

    `intact` is False when the recorded window does not fit its recorded hash.
    """

    line: dict[str, Any]
    decision: Decision
    intact: bool

    @property
    def same(self) -> bool:
        line, decision = self.line, self.decision
        canary = line.get("canaries", {}).get("now")
        return bool(
            line["source"] == decision.source
            and self._same_control()
            and canary == control_json.canary_to_json(decision.canary)
            and line["guards"] == list(decision.guards)
        )

    def _same_control(self) -> bool:
        if "exact" in self.line:
            return bool(self.line["exact"]["weights"] == control_json.to_json(self.decision.control))
        return bool(self.line["weights"] == self.decision.control.as_weights().values.tolist())


def replay(path: Path, adviser: Advises | None = None, frames: int = 1) -> Iterator[Redecided]:
    """Decides every recorded window again, in order (docs/file-formats.md#audit-log).

    Without an adviser the recorded policy's weights are used: what differs then is the guards' doing.
    Raises DataError for a log without a start line or with lines of another format.
    """
    steering: Steering | None = None
    recent = Recent(frames)
    for line in read_lines(path):
        try:
            if line.get("kind") == "start":
                if steering is None or not line.get("rotated"):
                    steering, recent = _steering(line), Recent(frames)
                continue
            if line.get("kind") != "decision" or steering is None:
                continue
            window = window_json.from_json(WindowModel.model_validate(line["window"]), steering.topology)
            _follow(steering, line, window)
            advice = recorded_advice(line, steering.topology)
            if adviser is not None and advisable(window):
                advice = _held_alike(recent.ask(adviser, window), advice)
            decision = steering.decide(window, advice, line["now_s"])
        except (KeyError, ValueError, TypeError, ValidationError) as error:
            raise DataError(f"unknown line format: {error}", where=str(path), remedy="give a log of steer") from error
        if decision.change and line.get("applied", True):
            steering.applied(decision, line["now_s"])
        yield Redecided(line, decision, window_json.digest(line["window"]) == line["hash"])
    if steering is None:
        raise DataError("no decision in it", where=str(path), remedy="give the audit.jsonl of a controller")


def recorded_advice(line: dict[str, Any], topology: Topology) -> Advice | None:
    """The recorded advice, as far as the line holds it."""
    topology = topology.plain
    if line["novelty"] is None:
        return None
    exact = line.get("exact")
    if exact is not None:
        controls = {name: control_json.from_json(control, topology) for name, control in exact.items()}
        policy, baseline = controls.get("policy"), controls["advised"]
    else:
        policy = Weights(topology, np.array(line["policy"])) if line["policy"] is not None else None
        baseline = Weights(topology, np.array(line["baseline"]))
    state = State(np.array(line["cluster"]), np.array(line["posterior"]), np.array(line["novelty"]))
    return Advice(policy, baseline, state, LatencyMemory.empty(topology.shape), line["problem"], line["by"])


def _held_alike(advice: Advice, recorded: Advice | None) -> Advice:
    """The advice with requests held as they were: that is no part of a bundle."""
    then = recorded.policy if recorded is not None else None
    if not (isinstance(advice.policy, ServiceTimes) and isinstance(then, ServiceTimes)):
        return advice
    return replace(advice, policy=replace(advice.policy, holding=then.holding))


def recorded_percent(line: dict[str, Any]) -> float:
    """`canary_percent` of a decision line, which was `blend_percent` up to version 0.1."""
    return float(line["canary_percent"] if "canary_percent" in line else line["blend_percent"])


def has_data(line: dict[str, Any]) -> bool:
    """Whether a decision line's window could be used; `art` alone does not tell while an operator's order holds, and
    without requests nothing but the faults does."""
    if line["art"] is not None or line["novelty"] is not None:
        return True
    return all(fault["kind"] == "reload" for fault in line["window"]["faults"])


def _steering(line: dict[str, Any]) -> Steering:
    topology = Topology(msgspec.convert(line["topology"], tuple[Group, ...]), _rows(line.get("addresses", ())))
    original = control_json.from_json(line["original"], topology)
    deadlines_s = np.array(line["deadlines_s"], dtype=float)
    options = line["options"]
    if line["format_version"] == 1:
        options = {**options, "guards": {**FIRST_RULES, **options["guards"]}}
    settings = SteeringOptions.model_validate(options)
    return Steering(deadlines_s, original, settings, line["now_s"], splits=line.get("splits", False))


def _rows(addresses: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, addresses))


def _follow(steering: Steering, line: dict[str, Any], window: Window) -> None:
    """Restores mode, orders and control in force as recorded, for the decision at that moment."""
    # Up to version 0.1 somebody else's change was what a revert restored from then on.
    original = control_json.from_json(line["original"], steering.topology) if "original" in line else None
    present: Control = Weights(steering.topology, window.weight, (original or steering.original).down)
    known = np.array_equal(window.weight, steering.shown.values)
    canary = control_json.canary_from_json(line.get("canaries", {}).get("before"), steering.topology)
    if "exact" in line:
        present = control_json.from_json(line["exact"]["before"], steering.topology)
        known = not (differ(present, steering.in_force) or canaries_differ(canary, steering.canary))
    # Somebody else's change may be one of `down` alone.
    if not known or line.get("theirs"):
        steering.adopt(present, external=bool(line.get("theirs")), original=original, canary=canary)
    steering.override = line["override"]
    update = {"mode": current_mode(line["mode"]), "canary_percent": recorded_percent(line)}
    steering.options = steering.options.model_copy(update=update)


def _numbered(path: Path, index: int) -> Path:
    return path.with_name(f"{path.name}.{index}")


def _number(path: Path) -> int:
    suffix = path.suffix[1:]
    return int(suffix) if suffix.isdigit() else 0


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        # Long tables hold integers only.
        return [_plain(item) for item in value] if value and isinstance(value[0], (float, dict, list)) else value
    return value
