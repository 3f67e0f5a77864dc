"""Windows → what a policy observes. The observer remembers earlier windows, so that policies need no memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from actuators.contract.arrays import FloatArray
from actuators.contract.control import Weights
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.contract.window_stack import WindowStack
from envs.estimators.base import Estimator, ServiceSamples, learned, recall
from envs.observation.encoder import Encoder
from envs.observation.features import (
    FEATURES_VERSION,
    SERVER_FEATURES,
    Counters,
    FeaturesVersion,
    LatencyMemory,
    group_features,
    server_features,
)  # fmt: skip
from envs.simulator.window_batch import WindowBatch

Rows = NDArray[np.float32]


class FrameStack:
    """The last `frames - 1` rows of a testbed or of a batch, newest first.

    Missing frames at the start of an episode are copies of its first interval.

    Args:
        batch: leading axes, ``()`` or ``(n,)``.
    """

    def __init__(self, frames: int, batch: tuple[int, ...] = ()) -> None:
        self._earlier, self._batch = frames - 1, batch
        self._rows: Rows | None = None
        self._fresh = np.ones(batch, dtype=bool)

    def forget(self, index: int | None = None) -> None:
        """The next rows begin a new episode, of one row of the batch or of all."""
        self._fresh[... if index is None else index] = True

    def push(self, rows: Rows) -> Rows:
        """Takes the rows ``[..., servers, size]``; the earlier ones, ``[..., servers, (frames - 1) * size]``."""
        held = rows[..., None, :]
        if self._rows is None:
            self._rows = np.repeat(held, self._earlier, axis=-2)
        else:
            self._rows = np.where(self._fresh[..., None, None, None], held, self._rows)
        self._fresh[...] = False
        past = self._rows
        self._rows = np.concatenate([held, past[..., :-1, :]], axis=-2)
        return past.reshape(*past.shape[:-2], -1)


ObservationName = Literal["posterior+features", "posterior", "label", "fisher", "features"]

_LIMIT = 10.0


@dataclass(frozen=True, eq=False)
class Observation:
    """What a policy observes after a window. Leading axes ``...`` are empty for one testbed, ``[n]`` for a batch.

    Attributes:
        features: ``[..., groups, servers, len(SERVER_FEATURES)]``.
        groups: ``[..., groups]``, see `features.group_features`.
        posterior: ``[..., servers, K]`` (a joint mixture repeats its posterior for every server).
        novelty: ``[..., servers]``; above 1 is outside every cluster.
        latency_s: ``[..., groups, servers]`` EWMA(0.5) of response times, errors charged; nan if unknown.
        weights: ``[..., groups, servers]`` in force, 1/τ of service times; context, never part of the mixture.
        in_flight: ``[..., groups, servers]`` at the window's end, None when they are not counted.
        tau_s: ``[..., groups, servers]`` service times in seconds as an estimator sees them, None without one.
        past: ``[..., servers, (frames - 1) * size]`` rows of earlier intervals, newest first (`frame_row`).
    """

    topology: Topology
    features: FloatArray
    groups: FloatArray
    posterior: FloatArray
    novelty: FloatArray
    latency_s: FloatArray
    weights: NDArray[np.int64] | FloatArray
    past: Rows | None = None
    in_flight: NDArray[np.int64] | None = None
    tau_s: FloatArray | None = None


class Observer:
    """Turns windows into observations; keeps the averages that outlive a window.

    Args:
        deadlines_s: ``[groups]``.
        encoder: None gives an empty posterior (K = 0) and novelty 0.
        batch: leading axes, ``()`` or ``(n,)``.
        frames: how many intervals an observation spans; `row` says what is kept of each, needed above 1.
        estimator: learns the service times of `expected_delay`; its batch is this one's.
        features_version: of the features without an encoder; an encoder has its own.
    """

    def __init__(
        self,
        topology: Topology,
        deadlines_s: FloatArray,
        encoder: Encoder | None,
        batch: tuple[int, ...] = (),
        frames: int = 1,
        row: Callable[[Observation], Rows] | None = None,
        estimator: Estimator | None = None,
        features_version: FeaturesVersion = FEATURES_VERSION,
    ) -> None:
        self.topology, self.deadlines_s, self.encoder = topology, deadlines_s, encoder
        self._version = features_version if encoder is None else encoder.features_version
        self._batch, self._row, self._estimator = batch, row, estimator
        self._stack = FrameStack(frames, batch) if frames > 1 else None
        self.reset()

    def reset(self, index: int | None = None) -> None:
        """Forgets all earlier windows, or those of one row of a batch."""
        if index is None:
            self.memory = LatencyMemory.empty((*self._batch, *self.topology.shape))
        else:
            self.memory.forget(index)
        if self._estimator is not None:
            self._estimator.forget(... if index is None else index)
        if self._stack is not None:
            self._stack.forget(index)

    def observe(
        self, counters: Counters, duration_s: float | FloatArray, weights: NDArray[np.int64] | FloatArray
    ) -> Observation:
        """The observation after one window; `duration_s` is the window's length, or ``[...]`` of each of a batch.

        With an estimator, `counters` must be a Window, a WindowBatch or a WindowStack of `expected_delay`; DataError
        otherwise.
        """
        features = server_features(counters, self.deadlines_s, self.memory, self._version)
        posterior, novelty = self._encode(features)
        tau_s = None
        if self._estimator is not None:
            assert isinstance(counters, Window | WindowBatch | WindowStack)
            samples = ServiceSamples.of(counters)
            tau_s, weights = self._estimator.update(samples), _in_force(samples.seen().tau_s)
        observation = Observation(
            self.topology, features, group_features(counters, duration_s), posterior, novelty,
            self.memory.fast_s.copy(), weights, in_flight=getattr(counters, "active", None), tau_s=tau_s,
        )  # fmt: skip
        if self._stack is None or self._row is None:
            return observation
        return replace(observation, past=self._stack.push(self._row(observation)))

    def remembered(self) -> LatencyMemory:
        """A copy of the averages and of what the estimator has learned; `recall` restores it."""
        known = {} if self._estimator is None else learned(self._estimator)
        return LatencyMemory(self.memory.fast_s.copy(), self.memory.slow_log.copy(), known)

    def recall(self, memory: LatencyMemory) -> None:
        """Restores a memory. Raises DataError when another estimator learned it."""
        self.memory = LatencyMemory(memory.fast_s.copy(), memory.slow_log.copy())
        if self._estimator is not None and memory.learned:
            recall(self._estimator, memory.learned)

    def observe_window(self, window: Window) -> Observation:
        """The observation after one window of one testbed."""
        return self.observe(window, window.duration_s, window.weight)

    def _encode(self, features: FloatArray) -> tuple[FloatArray, FloatArray]:
        servers = self.topology.shape[1]
        if self.encoder is None:
            return np.zeros((*self._batch, servers, 0)), np.zeros((*self._batch, servers))
        posterior, novelty = self.encoder.encode(samples_of(features, self.encoder.kind))
        if self.encoder.kind == "joint":
            posterior = np.repeat(posterior[..., None, :], servers, axis=-2)
            novelty = np.repeat(novelty[..., None], servers, axis=-1)
        return posterior, novelty


def samples_of(features: FloatArray, kind: str) -> FloatArray:
    """Mixture samples: ``[..., servers, groups * F]`` per server, or ``[..., groups * servers * F]`` joint."""
    if kind == "joint":
        return features.reshape(*features.shape[:-3], -1)
    by_server = np.moveaxis(features, -2, -3)
    return by_server.reshape(*by_server.shape[:-2], -1)


def sample_names(topology: Topology, kind: str) -> tuple[str, ...]:
    """Names of a sample's features, in the order of `samples_of`."""
    types = topology.request_types
    if kind == "joint":
        servers = range(topology.shape[1])
        return tuple(f"{t}.server_{s + 1}.{f}" for t in types for s in servers for f in SERVER_FEATURES)
    return tuple(f"{t}.{f}" for t in types for f in SERVER_FEATURES)


def log_shares(weights: NDArray[np.float64] | NDArray[np.int64]) -> FloatArray:
    """``[..., groups, servers]``: log of each weight relative to its group's mean; 0 where the weight is 0."""
    usable = weights > 0
    mean = np.where(usable, weights, 0).sum(axis=-1, keepdims=True) / np.maximum(usable.sum(axis=-1, keepdims=True), 1)
    return np.where(usable, np.log(np.where(usable, weights, 1) / np.maximum(mean, 1e-9)), 0.0)


def observation_size(topology: Topology, encoder: Encoder, name: ObservationName, frames: int = 1) -> int:
    """Features per server row of `as_array`."""
    groups = topology.shape[0]
    return frames * frame_size(topology, encoder, name) + 2 * groups


def frame_size(topology: Topology, encoder: Encoder, name: ObservationName) -> int:
    """Features per server row of `frame_row`."""
    groups, clusters = topology.shape[0], encoder.clusters
    own = {
        "features": len(SERVER_FEATURES) * groups,
        "posterior": clusters + 1,
        "label": clusters + 1,
        "fisher": clusters * len(encoder.names) + 1,
    }
    return sum(own[part] for part in name.split("+")) + groups


def frame_row(observation: Observation, encoder: Encoder, name: ObservationName) -> Rows:
    """What is seen of one interval, float32 ``[..., servers, frame_size]`` within ±10.

    Per server the parts that `name` lists, each of the mixture's with the novelty beside it, and the
    log of the weight in force in every group.
    """
    parts = [_part(observation, encoder, part) for part in name.split("+")]
    parts.append(np.moveaxis(log_shares(observation.weights), -2, -1))
    return np.clip(np.concatenate(parts, axis=-1), -_LIMIT, _LIMIT).astype(np.float32)


def as_array(observation: Observation, encoder: Encoder, base_shares: FloatArray, name: ObservationName) -> Rows:
    """The network's input: float32 ``[..., servers, observation_size]``, within ±10.

    A server's row holds `frame_row`, then per group the log of its baseline share, the log rates of all
    groups, and the rows of earlier intervals. Rows are built alike for every server, so that a network
    shared by all servers fits any number of them.
    """
    servers = observation.topology.shape[1]
    context = [
        np.moveaxis(log_shares(base_shares), -2, -1),
        np.repeat(observation.groups[..., None, :], servers, axis=-2),
    ]
    now = np.clip(np.concatenate(context, axis=-1), -_LIMIT, _LIMIT).astype(np.float32)
    past = [] if observation.past is None else [observation.past]
    return np.concatenate([frame_row(observation, encoder, name), now, *past], axis=-1)


def equal_weights(topology: Topology, batch: tuple[int, ...] = ()) -> NDArray[np.int64]:
    """Integer weights ``[..., groups, servers]`` as at the start of every episode."""
    return np.broadcast_to(Weights.equal(topology).values, (*batch, *topology.shape)).copy()


def _in_force(tau_s: FloatArray) -> FloatArray:
    """Service times as shares; equal while none are in force, where the balancer counts connections."""
    return np.where(tau_s > 0, 1.0 / np.where(tau_s > 0, tau_s, 1.0), 1.0)


def _part(observation: Observation, encoder: Encoder, part: str) -> FloatArray:
    if part == "features":
        samples = samples_of(observation.features, "server")
        return encoder.standardise(samples) if encoder.kind == "server" else samples
    posterior = observation.posterior
    if part == "label":
        posterior = np.eye(encoder.clusters)[posterior.argmax(axis=-1)]
    elif part == "fisher":
        posterior = _fisher(observation, encoder)
    return np.concatenate([posterior, observation.novelty[..., None]], axis=-1)


def _fisher(observation: Observation, encoder: Encoder) -> FloatArray:
    samples = samples_of(observation.features, encoder.kind)
    if encoder.kind == "server":
        return encoder.fisher(samples, observation.posterior)
    vector = encoder.fisher(samples, observation.posterior[..., 0, :])
    return np.repeat(vector[..., None, :], observation.topology.shape[1], axis=-2)
