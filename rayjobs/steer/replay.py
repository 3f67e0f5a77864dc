"""`deepsched steer replay` and `recalibrate`: what can be done with a controller's audit log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actuators.contract.topology import Group, Topology
from actuators.contract.window import Window
from actuators.errors import DataError
from rayjobs.cli.console import console_out, log_line
from rayjobs.cli.main import Verb
from rayjobs.steer.options import RefitOptions, ReplayOptions

if TYPE_CHECKING:
    from rich.console import Console

    from tuning.steering.audit import Redecided

SHOWN = 20
"""Differences that are printed one by one."""


def run_replay(options: ReplayOptions) -> int:
    """Decides every record again; 1 when a decision differs from the recorded one or a record was altered."""
    from tuning.policy.adviser import Adviser
    from tuning.policy.bundle import load_bundle
    from tuning.steering.audit import replay

    adviser = None
    if options.bundle is not None:
        adviser = Adviser(load_bundle(options.bundle, recorded_topology(options.log)))
    return report(replay(options.log, adviser, adviser.frames if adviser else 1), console_out())


def run_recalibration(options: RefitOptions) -> int:
    """Writes the new bundle and names the next command."""
    used = recalibrated(options.bundle, options.folder / "audit.jsonl", options.out, options.seed)
    log_line("steer", f"the encoder of {options.bundle} was refitted to {used} windows: {options.out}")
    log_line("steer", f"put it in force: deepsched steer swap {options.out} --folder {options.folder}")
    return 0


def recorded_topology(path: Path) -> Topology:
    """The topology of an audit log. Raises DataError when the log has no first line."""
    from tuning.steering.audit import read_lines

    for line in read_lines(path):
        if line.get("kind") == "start":
            return Topology(tuple(Group(**{**g, "servers": tuple(g["servers"])}) for g in line["topology"]))
    raise DataError("no start line", where=str(path), remedy="give the audit.jsonl of a controller")


def report(again: Iterable[Redecided], out: Console) -> int:
    """Prints how the decisions differ; 1 when one differs or a recorded window was altered, else 0."""
    total = differ = forged = 0
    sources: Counter[str] = Counter()
    largest = 0.0
    for one in again:
        total += 1
        forged += not one.intact
        sources[f"{one.line['source']} → {one.decision.source}"] += 1
        if one.same:
            continue
        differ += 1
        distance = _distance(one)
        largest = max(largest, distance)
        if differ <= SHOWN:
            recorded = f"recorded {one.line['source']} ({one.line['reason']})"
            now = f"now {one.decision.source} ({one.decision.reason})"
            out.print(f"{one.line['time']:.1f}: {recorded}, {now}; shares differ by up to {distance:.1%}", markup=False)
    out.print(f"{total} decisions, {differ} of them differ; shares differ by up to {largest:.1%}", markup=False)
    for change, count in sources.most_common():
        out.print(f"  {change}: {count}", markup=False)
    if forged:
        out.print(f"{forged} recorded windows do not match their hash: the log was altered", markup=False)
    return 1 if differ or forged else 0


def recalibrated(bundle_folder: Path, log: Path, out: Path, seed: int) -> int:
    """Writes the bundle with its mixture refitted to the usable windows of an audit log; returns their number.

    The number of clusters stays, and each new cluster takes the place of the nearest old one, so that the policy's
    input keeps its meaning. Covariances are widened until held-out windows fit, because a log is short compared
    with an observation phase.

    Raises:
        BundleError: the bundle cannot be loaded.
        DataError: the log cannot be read, or is of another topology.
    """
    from scipy.optimize import linear_sum_assignment

    from envs.mixture.fit import fit_encoder, held_out_novelty, window_samples
    from envs.observation.encoder import EncoderOptions
    from tuning.policy.bundle import load_bundle

    topology = recorded_topology(log)
    bundle = load_bundle(bundle_folder, topology)
    windows = recorded_windows(log, topology)
    old = bundle.problem.encoder
    options = EncoderOptions(kind=old.kind, clusters=(old.clusters,), features_version=old.features_version)
    samples = window_samples(windows, topology, bundle.problem.deadlines_s, old.kind, old.features_version)
    new = fit_encoder(samples, old.names, options, seed)
    widen = max(held_out_novelty(samples, old.names, options, seed), 1.0)
    there = old.means * old.scale + old.center
    here = new.means * new.scale + new.center
    cost = np.linalg.norm((there[:, None] - here[None]) / old.scale, axis=-1)
    _, order = linear_sum_assignment(cost)
    fitted = replace(
        new, weights=new.weights[order], means=new.means[order],
        precisions_cholesky=new.precisions_cholesky[order] / widen,
    )  # fmt: skip
    provenance = {**bundle.provenance, "recalibrated": {"log": str(log.absolute()), "windows": len(windows)}}
    replace(bundle, problem=replace(bundle.problem, encoder=fitted), provenance=provenance).save(out)
    return len(windows)


def recorded_windows(log: Path, topology: Topology) -> list[Window]:
    """The usable windows of an audit log that saw requests."""
    from tuning.steering import window_json
    from tuning.steering.audit import read_lines
    from tuning.steering.window_json import WindowModel

    lines = (line for line in read_lines(log) if line.get("kind") == "decision")
    windows = (window_json.from_json(WindowModel.model_validate(line["window"]), topology) for line in lines)
    return [window for window in windows if window.usable and window.requests.sum() > 0]


def _distance(one: Redecided) -> float:
    """Largest difference of a share between the recorded weights and the new ones."""
    then = np.array(one.line["weights"], dtype=float)
    now = one.decision.control.as_weights().values.astype(float)
    difference = then / then.sum(axis=1, keepdims=True) - now / now.sum(axis=1, keepdims=True)
    return float(np.abs(difference).max())


REPLAY = Verb(
    name="steer replay",
    example="deepsched steer replay runs/steer/audit.jsonl --bundle runs/demo/bundle",
    options=ReplayOptions,
    run=run_replay,
    positional=("log",),
)
RECALIBRATE = Verb(
    name="steer recalibrate",
    example="deepsched steer recalibrate runs/new-bundle --bundle runs/demo/bundle --folder runs/steer",
    options=RefitOptions,
    run=run_recalibration,
    positional=("out",),
)
