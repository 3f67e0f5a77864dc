"""The ticks of admission in a batch: from what was counted since the last one to the limits at the gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actuators.contract.admission import Admission
from actuators.contract.arrays import BoolArray, FloatArray, IntArray
from actuators.contract.topology import Topology
from actuators.errors import ConfigError
from envs.admission.rule import Limits, TickCounts, where
from envs.simulator.lane import COUNTS


class GateTicks:
    """The limits of all environments of a batch; a tick comes every `tick_s` after an environment's reset.

    Args:
        gates, counts: ``[size, groups]`` records, states: ``[size]``, of the lanes, which go on living in them.

    Raises ConfigError when the admissions do not fit the topology, or each other.
    """

    def __init__(
        self, admissions: Sequence[Admission], topology: Topology, gates: NDArray[Any], counts: NDArray[Any],
        states: NDArray[Any],
    ) -> None:  # fmt: skip
        for admission in admissions:
            if len(admission.topology.groups) != len(topology.groups):
                what = f"{len(admission.topology.groups)} groups of {len(topology.groups)}"
                raise ConfigError(what, where="admission of a simulated batch", remedy="give the batch's groups")
        self._admissions = list(admissions)
        self._gates, self._counts, self._states = gates, counts, states
        self.next_s = np.zeros(len(admissions))
        self.peaks = np.zeros(len(admissions), np.int64)
        self._last = counts.copy()
        self._ticks = np.zeros(len(admissions), np.int64)
        self._rule = Limits(self._admissions)
        self._state = self._rule.start()

    def set(self, index: int, admission: Admission) -> None:
        """Other values for one environment, to be followed by `begin`. Raises ConfigError for another rule."""
        others, self._admissions[index] = self._admissions[index], admission
        try:
            rule = Limits(self._admissions)
        except ConfigError:
            self._admissions[index] = others
            raise
        state, first = self._state, rule.start()
        chosen = np.arange(len(self._admissions)) == index
        self._rule, self._state = rule, where(chosen, first, state)

    def set_factors(self, factors: FloatArray) -> None:
        """Factors ``[size, groups]`` on the limits from now on."""
        self._rule.set_factors(factors)
        self._gates["limit"] = self._rule.of(self._state)

    def begin(self, chosen: BoolArray, now_s: FloatArray) -> None:
        """Starts the rule anew in the chosen environments, in which it is `now_s`; ``[size]`` both."""
        self._state = where(chosen, self._rule.start(), self._state)
        self._ticks[chosen] = np.floor(now_s[chosen] / self._rule.tick_s + 1e-9)
        self.next_s[chosen] = (self._ticks[chosen] + 1) * self._rule.tick_s
        self.peaks[chosen] = 0
        for index in np.flatnonzero(chosen):
            admission, gates = self._admissions[index], self._gates[index]
            gates["deadline_s"], gates["idle_s"] = admission.deadlines_s, admission.idle_s
            gates["percent"], gates["most_refused"] = admission.percent, admission.numbers.most_refused
        self._put(chosen)
        self._begin_tick(chosen)

    def tick(self, due: BoolArray) -> None:
        """One tick in the environments that are `due` ``[size]``."""
        if due.any():
            self._state = where(due, self._rule.after(self._state, self._since_last()), self._state)
            self._ticks[due] += 1
            self.next_s[due] = (self._ticks[due] + 1) * self._rule.tick_s
            self._put(due & self._state.moved)
            self._begin_tick(due)

    def _since_last(self) -> TickCounts:
        now, last = self._counts, self._last

        def since(*names: str) -> IntArray:
            grown: IntArray = sum(now[name] - last[name] for name in names)
            return grown

        return TickCounts(
            offered=since("offered"), over=since("refused", "spared"), refused=since("refused"),
            finished=since("finished"), late=since("late", "failed"), quick=since("quick"),
            response_s=now["response_s"] - last["response_s"], in_flight=now["inside"].copy(),
            peak=self._states["peak"].copy(),
        )  # fmt: skip

    def _put(self, chosen: BoolArray) -> None:
        """Puts the limits in force."""
        gates = self._gates
        gates["limit"][chosen] = self._rule.of(self._state)[chosen]
        gates["offered"][chosen], gates["refused"][chosen] = self._state.offered[chosen], self._state.refused[chosen]
        gates["offered_before"][chosen] = self._counts["offered"][chosen]
        gates["refused_before"][chosen] = self._counts["refused"][chosen]

    def _begin_tick(self, chosen: BoolArray) -> None:
        self._last[chosen] = self._counts[chosen]
        self.peaks = np.maximum(self.peaks, self._states["peak"])
        self._states["peak"][chosen] = self._states["inside"][chosen]

    def take_peaks(self) -> IntArray:
        """``[size]``: the most that were inside since the last call."""
        found: IntArray = np.maximum(self.peaks, self._states["peak"])
        self.peaks = self._states["inside"].copy()
        return found


def counts_since(now: NDArray[Any], last: NDArray[Any]) -> dict[str, Any]:
    """What was counted between two readings, by name; `inside` as it is now. ``[size, groups]`` each."""
    grown = {name: now[name] - last[name] for name in (*COUNTS, "response_s")}
    return {**grown, "inside": now["inside"].copy()}
