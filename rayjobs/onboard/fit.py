"""Fits a simulator to a recording, and says per group whether it is good enough to judge weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import DataError
from envs.calibration.calibrate import calibrate
from envs.calibration.options import CalibrateOptions
from envs.calibration.result import Calibration
from envs.calibration.verdict import SENTENCES, GroupVerdict, verdicts
from envs.environment.actions import ActionOptions
from envs.environment.problem import DecisionOptions, DecisionProblem
from envs.estimators.registry import DEFAULT_ESTIMATOR
from envs.mixture.fit import fit_from_windows
from envs.observation.deadlines import MIN_REQUESTS
from envs.observation.encoder import Encoder, EncoderOptions
from envs.observation.precision import precision
from envs.study.rules import BaselinePolicy
from rayjobs.calibrate import FILE as CALIBRATION
from rayjobs.onboard.faults import commonest_fault
from rayjobs.onboard.system import Way
from rayjobs.onboard.twin import play_policy

ENCODER = "encoder.npz"
STEERED_S = 120
"""Simulated seconds under the heuristic that the mixture is fitted to as well: what steering causes is not novel."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted system.

    Attributes:
        verdicts: one per group of the recording; those of groups that are left out say why.
        problem: what a policy of it sees and sets; `workers` are those that are believed.
    """

    calibration: Calibration
    problem: DecisionProblem
    verdicts: tuple[GroupVerdict, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; the calibration and the mixture have files of their own."""
        return {
            "verdicts": [verdict.model_dump() for verdict in self.verdicts],
            "deadlines_s": self.problem.deadlines_s.tolist(),
            "workers": self.problem.believed_workers.tolist(),
            "decision": self.problem.options.model_dump(),
        }


def telling(windows: Sequence[Window], topology: Topology) -> tuple[Topology, tuple[GroupVerdict, ...]]:
    """The groups with enough requests for a fit, and verdicts on the others.

    Raises DataError when no group has enough; it names the most common fault where that is why.
    """
    usable = [window for window in windows if window.usable]
    requests = sum(window.requests.sum(axis=1) for window in usable)
    enough = np.broadcast_to(np.asarray(requests) >= MIN_REQUESTS, (len(topology.groups),))
    few = tuple(
        GroupVerdict(
            group=group.name, judgement="little_traffic", detail=f"fewer than {MIN_REQUESTS} requests were seen"
        )
        for group, sure in zip(topology.groups, enough, strict=True)
        if not sure
    )
    if not enough.any() and len(usable) < len(windows) / 2:
        what = f"{len(windows) - len(usable)} of {len(windows)} windows cannot be used, as {commonest_fault(windows)}"
        remedy = "correct that, or leave such groups out with --groups, and onboard in another --folder"
        raise DataError(what, where="recording", remedy=remedy)
    if not enough.any():
        raise DataError(
            f"{SENTENCES['little_traffic']}: no group had {MIN_REQUESTS} requests",
            where="recording", remedy="watch longer, or at a busier time",
        )  # fmt: skip
    return Topology(tuple(group for group, sure in zip(topology.groups, enough, strict=True) if sure)), few


def fit(
    windows: Sequence[Window],
    topology: Topology,
    way: Way,
    options: CalibrateOptions,
    seed: int,
    source: str,
    report: Callable[[str, float], None],
) -> Fit:
    """Fits the simulator and the mixture to windows of these groups.

    Raises DataError when the windows do not allow it.
    """
    balancers = max(way.machines * way.workers, options.load_balancers)
    options = options.changed({"method": way.method, "load_balancers": balancers})
    calibration = calibrate(windows, topology, options, seed, source, lambda text, part: report(text, 0.8 * part))
    report("verdicts", 0.8)
    found = verdicts(windows, topology, calibration, precision(windows), options, seed)
    report("states of the traffic", 0.9)
    problem = _problem(windows, calibration, way, seed)
    return Fit(calibration, problem, found)


def load_fit(place: Path, kept: dict[str, Any]) -> Fit:
    """The fit of an earlier call. Raises ConfigError or BundleError for files that do not belong together."""
    calibration = Calibration.load(place / CALIBRATION)
    problem = DecisionProblem(
        calibration.topology,
        np.array(kept["deadlines_s"]),
        Encoder.load(place / ENCODER),
        DecisionOptions.model_validate(kept["decision"]),
        np.array(kept["workers"]),
    )
    return Fit(calibration, problem, tuple(GroupVerdict.model_validate(each) for each in kept["verdicts"]))


def save_fit(fitted: Fit, place: Path) -> None:
    """Writes the two files beside the result. Raises OSError."""
    fitted.calibration.save(place / CALIBRATION)
    fitted.problem.encoder.save(place / ENCODER)


def believed_workers(calibration: Calibration) -> float:
    """The workers that a policy may rely on: the low end of their interval, because too many do harm."""
    low, _ = calibration.interval()
    return max(float(np.floor(low["workers"])), 1.0)


def _problem(windows: Sequence[Window], calibration: Calibration, way: Way, seed: int) -> DecisionProblem:
    """The decision problem; its mixture knows the traffic of today and, simulated, that under the heuristic."""
    topology, deadlines_s = calibration.topology, calibration.deadlines_s
    assert deadlines_s is not None, "a calibration that was just made has deadlines"
    action = {"baseline": DEFAULT_ESTIMATOR if way.in_memory else "inverse_latency"}
    decision = DecisionOptions(action=ActionOptions.model_validate(action))
    options = EncoderOptions()
    seen = [window for window in windows if window.usable]
    encoder = fit_from_windows(seen, topology, deadlines_s, options, seed)
    workers = np.full(topology.shape[1], believed_workers(calibration))
    problem = DecisionProblem(topology, deadlines_s, encoder, decision, workers)
    steered = [
        window
        for number, load in enumerate((1.0, 1.25))
        for window in play_policy(
            problem, BaselinePolicy(problem), calibration, way, seconds=STEERED_S, seed=seed + number,
            load=load, bounds_ms=seen[0].bounds_ms,
        ).windows
    ]  # fmt: skip
    return replace(problem, encoder=fit_from_windows([*seen, *steered], topology, deadlines_s, options, seed))
