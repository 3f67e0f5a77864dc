"""Describes the states of a fitted mixture: frequency, response times, and transitions by the weights in force."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import DataError
from envs.observation.deadlines import response_deviation_s
from envs.observation.encoder import Encoder
from envs.observation.observer import Observer, log_shares, samples_of

MORE, LESS = np.log(1.25), -np.log(1.25)
"""Thresholds on the log of a weight over its group's mean: above MORE (below LESS) it is more (less) than equal."""


@dataclass(frozen=True, eq=False)
class Meaning:
    """Statistics of an encoder's states. A sample is one server in one window, or a whole window for a joint encoder.

    Attributes:
        windows: number of usable windows.
        seconds: their total duration.
        share: ``[K]``, share of the samples, 0 to 1.
        features: ``[K, D]``, mean over the state's samples, in the units of the features; nan without samples.
        mean_ms: ``[K, groups]``, mean response time of the state's requests; nan without requests.
        deviation_ms: ``[K, groups]``, standard deviation of their response times; nan without requests.
        slow: ``[K]``, rank value of docs/studies.md#reward: (mean + 3 deviations) / deadline, mean over the groups;
            nan without requests.
        transitions: action family → counts ``[K, K]`` from one window's state (row) to the next one's (column), by
            the weights in force during the next window.
        labels: per server (one row for a joint encoder) time in s, posterior ``[K]`` and novelty of every window.
    """

    encoder: Encoder
    topology: Topology
    deadlines_s: FloatArray
    windows: int
    seconds: float
    share: FloatArray
    features: FloatArray
    mean_ms: FloatArray
    deviation_ms: FloatArray
    slow: FloatArray
    transitions: dict[str, NDArray[np.int64]]
    labels: tuple[tuple[tuple[float, FloatArray, float], ...], ...]

    @property
    def places(self) -> list[int | None]:
        """Rank of every state by `slow`, 1 is the fastest; None for a state without requests."""
        order = [int(k) for k in np.argsort(self.slow) if np.isfinite(self.slow[k])]
        return [order.index(k) + 1 if k in order else None for k in range(self.encoder.clusters)]


@dataclass(frozen=True, eq=False)
class _Seen:
    """One usable window: a row per server, or one row if joint."""

    window: Window
    samples: FloatArray
    posterior: FloatArray
    novelty: FloatArray
    families: tuple[str, ...]
    follows: bool

    @property
    def states(self) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self.posterior.argmax(axis=-1)
        return found


def meaning(windows: Sequence[Window], topology: Topology, deadlines_s: FloatArray, encoder: Encoder) -> Meaning:
    """Computes the statistics of the encoder's states from windows in the order of time; unusable ones are skipped.

    Raises:
        DataError: no window is usable.
    """
    seen = list(_walk(windows, topology, deadlines_s, encoder))
    if not seen:
        raise DataError("no usable window", where="clusters", remedy="observe longer")
    states = np.array([entry.states for entry in seen])
    clusters = encoder.clusters
    share = np.bincount(states.ravel(), minlength=clusters) / states.size
    samples = np.array([entry.samples for entry in seen])
    features = np.full((clusters, len(encoder.names)), np.nan)
    mean_ms = np.full((clusters, topology.shape[0]), np.nan)
    deviation_ms = mean_ms.copy()
    for state in range(clusters):
        inside = states == state
        if inside.any():
            features[state] = samples[inside].mean(axis=0)
            mean_ms[state], deviation_ms[state] = _response_ms(seen, inside)
    relative = (mean_ms + 3 * deviation_ms) / (1e3 * deadlines_s)
    with_requests = np.isfinite(relative)
    slow = np.where(
        with_requests.any(axis=1),
        np.where(with_requests, relative, 0.0).sum(axis=1) / np.maximum(with_requests.sum(axis=1), 1),
        np.nan,
    )
    return Meaning(
        encoder, topology, deadlines_s, len(seen), sum(entry.window.duration_s for entry in seen), share, features,
        mean_ms, deviation_ms, slow, _transitions(seen, clusters), _labels(seen),
    )  # fmt: skip


def _walk(windows: Sequence[Window], topology: Topology, deadlines_s: FloatArray, encoder: Encoder) -> Iterator[_Seen]:
    observer, before = Observer(topology, deadlines_s, encoder), False
    for window in windows:
        if not window.usable or not window.requests.any():
            before = False
            continue
        observation = observer.observe_window(window)
        samples = samples_of(observation.features, encoder.kind).reshape(-1, len(encoder.names))
        rows = len(samples)
        shares = log_shares(observation.weights).mean(axis=0)
        families = tuple(map(_family, shares)) if encoder.kind == "server" else (_favoured(shares),)
        yield _Seen(window, samples, observation.posterior[:rows], observation.novelty[:rows], families, before)
        before = True


def _family(log_share: float) -> str:
    """Action family of a server, from the mean over the groups of log(weight / mean weight of the group)."""
    if log_share > MORE:
        return "more than an equal share"
    return "less than an equal share" if log_share < LESS else "about an equal share"


def _favoured(shares: FloatArray) -> str:
    """Action family of all servers together, for a joint encoder."""
    return f"most to server {int(shares.argmax()) + 1}" if shares.max() > MORE else "about equal shares"


def _response_ms(seen: Sequence[_Seen], inside: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation per group ``[groups]`` over the chosen (window, row) pairs."""
    servers = seen[0].window.requests.shape[1]
    chosen = np.broadcast_to(inside if inside.shape[1] == servers else inside[:, :1], (len(seen), servers)).astype(
        float
    )
    requests, total_ms, histogram = (
        np.einsum("ws,wgs...->g...", chosen, np.array([getattr(entry.window, name) for entry in seen], float))
        for name in ("requests", "response_ms_sum", "latency_histogram")
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_ms = total_ms / requests
    deviation_s = response_deviation_s(histogram, seen[0].window.bounds_ms, mean_ms / 1e3)
    return mean_ms, 1e3 * deviation_s


def _transitions(seen: Sequence[_Seen], clusters: int) -> dict[str, NDArray[np.int64]]:
    found: dict[str, NDArray[np.int64]] = {}
    for before, after in itertools.pairwise(seen):
        if after.follows:
            for row, family in enumerate(after.families):
                counts = found.setdefault(family, np.zeros((clusters, clusters), np.int64))
                counts[before.states[row], after.states[row]] += 1
    return dict(sorted(found.items(), key=lambda item: _ORDER.get(item[0], item[0])))


_ORDER = {"less than an equal share": "0", "about an equal share": "1", "more than an equal share": "2"}


def _labels(seen: Sequence[_Seen]) -> tuple[tuple[tuple[float, FloatArray, float], ...], ...]:
    start_s = seen[0].window.start_s
    return tuple(
        tuple((entry.window.start_s - start_s, entry.posterior[row], float(entry.novelty[row])) for entry in seen)
        for row in range(len(seen[0].samples))
    )
