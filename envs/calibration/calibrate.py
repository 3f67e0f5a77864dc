"""Calibrates the simulator to windows of a live system: fits to three quarters of them, compares on the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.topology import Group, Topology, social_network
from actuators.contract.window import Window
from actuators.errors import DataError
from actuators.statistics.vts import Snapshot
from envs.calibration.fit import LEAST_REQUESTS, bootstrap, fit
from envs.calibration.options import CalibrateOptions
from envs.calibration.replay import Evidence, Replay, ReplayCounts, gather
from envs.calibration.result import Calibration, HeldOutComparison, RecordingSummary
from envs.observation.features import quantile_s

BLOCK_WINDOWS = 5


def calibrate(
    windows: Sequence[Window],
    topology: Topology,
    options: CalibrateOptions,
    seed: int,
    source: str = "",
    report: Callable[[str, float], None] = lambda text, fraction: None,
) -> Calibration:
    """Fits a simulator to the system that the windows show, with confidence intervals.

    Args:
        report: called with the step that is done and the share of the work that is done, 0…1.

    Raises:
        DataError: too few usable windows, no histograms, or a group without requests.
    """
    evidence = gather(_spread(windows, options.most_windows), topology)
    held_out = _held_out(len(evidence.windows), options.held_out)
    weights = (~held_out).astype(float)
    report(f"{len(evidence.windows)} windows, {evidence.requests.sum():.0f} requests", 0.05)
    fitted = fit(evidence, options, weights, seed)
    best = fitted.best.parameters
    report(f"{best.workers} workers, cv {best.service_cv:.2f}, overhead {best.overhead_ms:.2f} ms", 0.5)
    members = bootstrap(
        evidence, options, weights, fitted, seed, lambda n: report("bootstrap", 0.5 + 0.45 * n / options.bootstraps)
    )
    # With other random draws than those of the fit, which it has adapted to.
    fresh = Replay(evidence, options.method, options.load_balancers, options.replicas, seed + 1000)
    return Calibration(
        groups=tuple(group.name for group in topology.groups),
        request_types=topology.request_types,
        servers=topology.servers,
        method=options.method,
        load_balancers=options.load_balancers,
        observed=_observed(evidence, source),
        parameters=best,
        ensemble=members,
        arrivals=evidence.arrivals,
        held_out=compare(evidence, fresh.play(best), held_out.astype(float)),
    )


def compare(evidence: Evidence, answers: ReplayCounts, weights: FloatArray) -> tuple[HeldOutComparison, ...]:
    """Compares simulated with live answers in the weighted windows: a row per group, each followed by its servers.

    Rows with fewer than 20 live requests are left out. p50 and p99 are interpolated linearly inside a bucket.
    """
    topology, rows = evidence.topology, []
    live = [np.tensordot(weights, a, 1) for a in (evidence.histogram, evidence.requests, evidence.response_ms)]
    simulated = [np.tensordot(weights, a, 1) for a in (answers.histogram, answers.requests, answers.response_ms)]
    for g, group in enumerate(topology.groups):
        servers = [topology.server_index(server) for server in group.servers]
        for name, chosen in [("", servers), *((topology.servers[s], [s]) for s in servers)]:
            ours, theirs = (_figures(counted, g, chosen, evidence.bounds_ms) for counted in (live, simulated))
            requests = int(live[1][g, chosen].sum())
            if requests >= LEAST_REQUESTS:
                rows.append(
                    HeldOutComparison(
                        group=group.name, server=name, requests=requests, live_ms=ours, simulated_ms=theirs
                    )
                )
    return tuple(rows)


def windows_topology(snapshots: Sequence[Snapshot]) -> Topology:
    """The groups that had requests, with every server that appears in them.

    A group named as in the social network gets that request type; any other group is a request type by itself.

    Raises:
        DataError: no group had requests.
    """
    known = {group.name: group for group in social_network().groups}
    servers: dict[str, dict[str, int]] = {}
    for snapshot in snapshots:
        for name, entries in snapshot.groups.items():
            for address, counters in entries.items():
                most = max(servers.setdefault(name, {}).get(address, 0), counters.request_counter)
                servers[name][address] = most
    groups = []
    for name, requests in servers.items():
        if sum(requests.values()) == 0 or name.startswith("::"):
            continue
        like = known.get(name) or Group(name, name.removesuffix("_backend"), "GET", "/", 2.0, ("any:80",))
        groups.append(Group(name, like.request_type, like.method, like.path, like.priority, tuple(requests)))
    if not groups:
        remedy = "record under load"
        raise DataError("no upstream group had a request", where="snapshots", remedy=remedy)
    return Topology(tuple(groups))


def _figures(
    counted: Sequence[FloatArray], group: int, servers: list[int], bounds_ms: tuple[int, ...]
) -> tuple[float, float, float]:
    """Mean, p50 and p99 in ms of histogram, requests and response times summed over these servers."""
    histogram, requests, total_ms = (array[group, servers].sum(axis=0) for array in counted)
    p50, p99 = (1e3 * float(quantile_s(histogram.astype(np.int64), bounds_ms, q)) for q in (0.5, 0.99))
    return float(total_ms / max(requests, 1)), p50, p99


def _spread(windows: Sequence[Window], most: int) -> list[Window]:
    """At most `most` windows, in blocks spread evenly over the recording."""
    blocks = [windows[at : at + BLOCK_WINDOWS] for at in range(0, len(windows), BLOCK_WINDOWS)]
    wanted = max(most // BLOCK_WINDOWS, 1)
    if len(blocks) > wanted:
        blocks = [blocks[round(i)] for i in np.linspace(0, len(blocks) - 1, wanted)]
    return [window for block in blocks for window in block]


def _held_out(windows: int, share: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Mask ``[windows]`` of every n-th block, n = 1 / share, starting in the middle of the first period."""
    block = max(min(BLOCK_WINDOWS, round(windows * share / 2)), 1)
    period = 1 / share
    number = np.arange(windows) // block
    held: np.ndarray[tuple[int], np.dtype[np.bool_]] = np.floor((number + 0.5) / period + 0.5) > np.floor(
        (number - 0.5) / period + 0.5
    )
    return held


def _observed(evidence: Evidence, source: str) -> RecordingSummary:
    requests = float(evidence.requests.sum())
    errors = sum(float(window.server_errors.sum()) for window in evidence.windows)
    return RecordingSummary(
        source=source,
        windows=len(evidence.windows),
        left_out=evidence.left_out,
        requests=int(requests),
        seconds=float(evidence.durations_s.sum()),
        error_ratio=errors / max(requests, 1.0),
    )
