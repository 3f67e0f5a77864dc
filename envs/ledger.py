"""What an environment keeps for the training log: the episodes it started, and the mean of every reward term."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Episode:
    """One started episode: the environment's row, the scenario's name and the seed that repeats its script."""

    row: int
    scenario: str
    seed: int


@dataclass
class Ledger:
    """Filled by an environment, emptied by whoever logs."""

    _episodes: list[Episode] = field(default_factory=list)
    _sums: dict[str, float] = field(default_factory=dict)
    _steps: int = 0

    def start(self, row: int, scenario: str, seed: int) -> None:
        """An episode began."""
        self._episodes.append(Episode(row, scenario, seed))

    def add(self, terms: Mapping[str, NDArray[np.float64]], rows: NDArray[np.bool_] | None = None) -> None:
        """The terms of a step, each scalar or ``[n]``; `rows` leaves out those that are False."""
        chosen = {name: np.atleast_1d(term) for name, term in terms.items()}
        for name, term in chosen.items():
            self._sums[name] = self._sums.get(name, 0.0) + float((term if rows is None else term[rows]).sum())
        self._steps += int(next(iter(chosen.values())).size if rows is None else rows.sum())

    def take_episodes(self) -> list[Episode]:
        """Episodes started since the last call."""
        taken, self._episodes = self._episodes, []
        return taken

    def take_means(self) -> dict[str, float]:
        """Mean per step of every term since the last call; empty when there was no step."""
        means = {name: total / self._steps for name, total in self._sums.items()} if self._steps else {}
        self._sums, self._steps = {}, 0
        return means
