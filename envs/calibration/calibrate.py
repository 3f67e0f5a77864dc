"""Calibrates the simulator to windows of a live system: fits to three quarters of them, compares on the rest."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.contract.topology import Topology, group_of
from actuators.contract.window import Window
from actuators.errors import ConfigError, DataError, closest
from actuators.statistics.vts import Snapshot
from envs.calibration.fit import LEAST_REQUESTS, bootstrap, fit
from envs.calibration.options import CalibrateOptions
from envs.calibration.replay import Evidence, Replay, ReplayCounts, gather, within_limits
from envs.calibration.result import (
    Calibration,
    HeldOutComparison,
    RecordingSummary,
    ResponseTimes,
    derived_deadline_ms,
)
from envs.observation.deadlines import response_deviation_s
from envs.observation.features import quantile_s, tail_quantile_s

BLOCK_WINDOWS = 5


class Recorded(NamedTuple):
    """The system that a recording shows.

    Attributes:
        topology: the groups that can be used.
        left_out: why others cannot, by name.
        spare: group → server → why it is not in the topology although the group is.
    """

    topology: Topology
    left_out: dict[str, str]
    spare: dict[str, dict[str, str]]


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
        ConfigError: a priority or deadline for a group that there is not.
    """
    topology = topology.with_priorities(options.priorities)
    topology.check_groups(options.deadlines_ms)
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
        members=tuple(group.servers for group in topology.groups),
        priorities=tuple(group.priority for group in topology.groups),
        response_times=_response_times(evidence, options),
        weights=tuple(tuple(map(int, row)) for row in within_limits(evidence.windows[-1].weight, topology)),
        down=tuple(tuple(map(bool, row)) for row in _last_down(evidence)),
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

    Rows with fewer than 20 live requests are left out. Inside a bucket, p50 is interpolated linearly and p99 as a tail
    that decays exponentially.
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


def windows_topology(
    snapshots: Sequence[Snapshot], chosen: Sequence[str] = (), *, in_rotation: bool = False
) -> Recorded:
    """The groups that had requests while the snapshots were taken, with every server that appears in them.

    Each group is a request type by itself, with the names of the social network for its groups. Left out are groups
    without requests and groups that list a server twice, whose lines vts counts together.

    Args:
        chosen: names of the groups that are wanted; all when empty.
        in_rotation: without servers that got no request, backups, and servers that are gone at the end. A server that
            answered and was then taken out of rotation stays: its service times are known.

    Raises:
        DataError: no group had requests.
        ConfigError: a chosen group is not in the snapshots, or cannot be used.
    """
    shown = list(dict.fromkeys(name for snapshot in snapshots for name in snapshot.groups if not name.startswith("::")))
    for name in chosen:
        if name not in shown:
            raise ConfigError(f"no group '{name}' in the recording", where="--groups", remedy=closest(name, shown))
    spare = {name: _spare(name, snapshots) if in_rotation else {} for name in shown}
    left_out = {
        name: why for name in shown if (not chosen or name in chosen) and (why := _unfit(name, snapshots, spare[name]))
    }
    for name in chosen:
        if name in left_out:
            raise ConfigError(f"group {name} {left_out[name]}", where="--groups", remedy="leave it out")
    wanted = [name for name in shown if (not chosen or name in chosen) and name not in left_out]
    if not wanted:
        what = "; ".join(f"{name} {why}" for name, why in left_out.items()) or "there is no upstream group"
        if len(snapshots) == 1:
            raise DataError("one reading makes no window", where="snapshots", remedy="record for a minute or more")
        raise DataError(f"nothing to learn from: {what}", where="snapshots", remedy="record under load")
    groups = [
        group_of(name, tuple(server for server in _servers(name, snapshots) if server not in spare[name]))
        for name in wanted
    ]
    types = [group.request_type for group in groups]
    groups = [
        group if types.count(group.request_type) == 1 else group_of(group.name, group.servers, group.name)
        for group in groups
    ]
    return Recorded(Topology(tuple(groups)), left_out, {name: spare[name] for name in wanted if spare[name]})


def _servers(name: str, snapshots: Sequence[Snapshot]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(server for each in snapshots for server in each.groups.get(name, {})))


def _spare(name: str, snapshots: Sequence[Snapshot]) -> dict[str, str]:
    """Servers of a group that balancing gives no requests, and why, in a word or two."""
    last = next(each.groups[name] for each in reversed(snapshots) if name in each.groups)
    found = {}
    for server in _servers(name, snapshots):
        seen = [each.groups.get(name, {}).get(server) for each in snapshots]
        counts = [0 if counters is None else counters.request_counter for counters in seen]
        if server not in last:
            found[server] = "gone"
        elif last[server].backup:
            found[server] = "backup"
        elif not any(later > earlier for earlier, later in itertools.pairwise(counts)):
            found[server] = "down" if last[server].down else "without requests"
    return found


def _unfit(name: str, snapshots: Sequence[Snapshot], spare: Container[str]) -> str:
    """Why a group cannot be used without these servers, in words; empty when it can."""
    twice = sorted({server for each in snapshots for group, server in each.duplicates if group == name})
    if twice:
        return f"lists {twice[0]} more than once"
    counts = [sum(c.request_counter for c in each.groups.get(name, {}).values()) for each in snapshots]
    if not any(later > earlier for earlier, later in itertools.pairwise(counts)):
        return "had no requests"
    in_rotation = any(server not in spare for server in _servers(name, snapshots))
    return "" if in_rotation else "had no requests at servers in rotation"


def _figures(
    counted: Sequence[FloatArray], group: int, servers: list[int], bounds_ms: tuple[int, ...]
) -> tuple[float, float, float]:
    """Mean, p50 and p99 in ms of histogram, requests and response times summed over these servers."""
    histogram, requests, total_ms = (array[group, servers].sum(axis=0) for array in counted)
    counts = histogram.astype(np.int64)
    p50, p99 = (1e3 * float(found(counts, bounds_ms, q)) for found, q in ((quantile_s, 0.5), (tail_quantile_s, 0.99)))
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


def _last_down(evidence: Evidence) -> NDArray[np.bool_]:
    """Servers out of rotation at the end; none of a group whose servers are all out."""
    down = evidence.windows[-1].down & evidence.topology.mask
    whole = (down | ~evidence.topology.mask).all(axis=1, keepdims=True)
    return np.asarray(down & ~whole)


def _response_times(evidence: Evidence, options: CalibrateOptions) -> tuple[ResponseTimes, ...]:
    """Of all usable windows; as `envs.observation.deadlines`, but also of few requests."""
    requests = evidence.requests.sum(axis=(0, 2))
    mean_s = evidence.response_ms.sum(axis=(0, 2)) / np.maximum(requests, 1) / 1e3
    deviation_s = response_deviation_s(evidence.histogram.sum(axis=(0, 2)), evidence.bounds_ms, mean_s)
    found = []
    for g, group in enumerate(evidence.topology.groups):
        mean_ms, deviation_ms = float(mean_s[g] * 1e3), float(deviation_s[g] * 1e3)
        deadline_ms = derived_deadline_ms(mean_ms, deviation_ms, group.priority)
        found.append(
            ResponseTimes(
                mean_ms=mean_ms,
                deviation_ms=deviation_ms,
                deadline_ms=options.deadlines_ms.get(group.name, deadline_ms),
                requests=int(requests[g]),
            )
        )
    return tuple(found)


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
