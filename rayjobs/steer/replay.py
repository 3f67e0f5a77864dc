"""What is done with a controller's record: decide it again, and fit the encoder to it anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from actuators.contract.topology import Group, Topology
from actuators.contract.window import Window
from actuators.errors import DataError
from tuning.steering import window_json
from tuning.steering.audit import Redecided, read_lines
from tuning.steering.window_json import WindowModel

SHOWN = 20
"""Differences that are printed one by one."""


def recorded_topology(path: Path) -> Topology:
    """What a log is about. Raises DataError when it does not say."""
    for line in read_lines(path):
        if line.get("kind") == "start":
            return Topology(tuple(Group(**{**g, "servers": tuple(g["servers"])}) for g in line["topology"]))
    raise DataError("no first line", where=str(path), remedy="give the audit.jsonl of a controller")


def report(again: Iterable[Redecided], out: Console) -> int:
    """Prints how the decisions differ; 0 when none does, else 1."""
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
            words = (
                f"then {one.line['source']} ({one.line['reason']}), now {one.decision.source} ({one.decision.reason})"
            )
            out.print(f"{one.line['time']:.1f}: {words}; shares differ by up to {distance:.1%}", markup=False)
    out.print(f"{total} decisions, {differ} of them differ, shares by up to {largest:.1%}", markup=False)
    for change, count in sources.most_common():
        out.print(f"  {change}: {count}", markup=False)
    if forged:
        out.print(f"{forged} recorded windows do not fit their hash: the log was changed", markup=False)
    return 1 if differ or forged else 0


def recalibrated(bundle_folder: Path, log: Path, out: Path, seed: int) -> int:
    """Writes the bundle with its mixture fitted again to the usable windows of a log; how many there were.

    The number of clusters stays, and each new cluster takes the place of the old one that it is nearest to,
    so that the policy's input keeps its meaning. Clusters are as wide as windows need that they were not fitted to:
    a log is short beside an observation phase. Raises BundleError or DataError.
    """
    from scipy.optimize import linear_sum_assignment

    from envs.mixture.fit import fit_encoder, held_out_novelty, window_samples
    from envs.observation.encoder import EncoderOptions
    from tuning.policy.bundle import load_bundle

    topology = recorded_topology(log)
    bundle = load_bundle(bundle_folder, topology)
    windows = recorded_windows(log, topology)
    old = bundle.problem.encoder
    options = EncoderOptions(kind=old.kind, clusters=(old.clusters,))
    samples = window_samples(windows, topology, bundle.problem.deadlines_s, old.kind)
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
    """The usable windows of a log that saw requests."""
    lines = (line for line in read_lines(log) if line.get("kind") == "decision")
    windows = (window_json.from_json(WindowModel.model_validate(line["window"]), topology) for line in lines)
    return [window for window in windows if window.usable and window.requests.sum() > 0]


def _distance(one: Redecided) -> float:
    then = np.array(one.line["weights"], dtype=float)
    now = one.decision.control.as_weights().values.astype(float)
    difference = then / then.sum(axis=1, keepdims=True) - now / now.sum(axis=1, keepdims=True)
    return float(np.abs(difference).max())
