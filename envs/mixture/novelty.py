"""Checks whether a fitted encoder still fits a system: recalibrate when too many windows are novel.

The rule of novelty: docs/glossary.md#novelty.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import BundleError, ConfigError, DataError
from envs.observation.encoder import Encoder
from envs.observation.observer import Observer, sample_names

FIRST_WINDOWS = 10
"""Windows that are not checked, because the slow averages of the features have not settled."""


@dataclass(frozen=True)
class Novelty:
    """The result of a check.

    Attributes:
        windows: number of checked windows.
        novel: number of these in which a server lay outside mean ± 3σ of every cluster.
        typical: median over the windows of the largest novelty of a server; above 1 is novel.
    """

    windows: int
    novel: int
    typical: float

    @property
    def share(self) -> float:
        """Share of novel windows among the checked ones, 0…1."""
        return self.novel / self.windows


def check(windows: Sequence[Window], topology: Topology, encoder: Encoder, deadlines_s: FloatArray) -> Novelty:
    """The share of novel windows among the usable ones after the first 10. Raises DataError when none is left."""
    observer = Observer(topology, deadlines_s, encoder)
    novelties = [float(observer.observe_window(w).novelty.max()) for w in windows if w.usable and w.requests.any()]
    judged = np.array(novelties[FIRST_WINDOWS:])
    if not len(judged):
        what = f"{len(novelties)} usable windows with requests"
        raise DataError(what, where="check", remedy=f"record more than {FIRST_WINDOWS}")
    return Novelty(len(judged), int((judged > 1.0).sum()), float(np.median(judged)))


def load_known(folder: Path, topology: Topology) -> tuple[Topology, Encoder, FloatArray]:
    """Encoder and deadlines ``[groups]`` in seconds of a bundle or of a run of `observe`, for this topology.

    The topology comes back with its groups in the encoder's order.

    Raises:
        BundleError: a file is missing or of another format.
        ConfigError: the encoder has other request types, or is a joint one for another number of servers.
    """
    encoder = Encoder.load(folder / "encoder.npz")
    deadlines_s = _deadlines_s(folder)
    types = {group.request_type: group for group in topology.groups}
    if set(types) != set(deadlines_s):
        what = f"the system has {', '.join(sorted(types))}, the encoder {', '.join(sorted(deadlines_s))}"
        raise ConfigError(what, where=str(folder), remedy="check one of the same request types")
    ordered = Topology(tuple(types[name] for name in deadlines_s))
    if sample_names(ordered, encoder.kind) != encoder.names:
        remedy = "check a system with as many servers as were observed"
        raise ConfigError("the encoder has other features", where=str(folder), remedy=remedy)
    return ordered, encoder, np.array(list(deadlines_s.values()))


def _deadlines_s(folder: Path) -> dict[str, float]:
    """Request type → deadline, in the encoder's order."""
    bundle = folder / "bundle.json"
    path = bundle if bundle.exists() else folder / "deadlines.json"
    try:
        data = json.loads(path.read_bytes())
        if path == bundle:
            types = [str(group["request_type"]) for group in data["topology"]]
            return {name: float(value) for name, value in zip(types, data["deadlines_s"], strict=True)}
        return {str(name): float(value) / 1e3 for name, value in data["deadlines_ms"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "give a bundle, or the folder of a run of observe"
        raise BundleError(f"no deadlines: {error}", where=str(path), remedy=remedy) from error
