"""One controller on a testbed for one block: control in force, windows, drain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from actuators.errors import ActuationError
from actuators.script import RateStep, Scenario, Script
from actuators.testbed import Testbed
from actuators.topology import Topology
from actuators.window import Window
from tuning.blocks import WindowRecord, record_window
from tuning.plan import Controller


@runtime_checkable
class Informed(Protocol):
    """An oracle: it is told what the script does to the servers."""

    def inform(self, script: Script) -> None:
        """Called before each phase of each block with the script that it plays."""
        ...


@dataclass(frozen=True)
class EndingArrivals:
    """A scenario whose arrivals end shortly before `measure_s`, so that all policies of a round get the very same.

    On a live testbed the drain begins some milliseconds sooner or later; without this, blocks of a round
    would differ by the requests that were due in between.
    """

    scenario: Scenario
    measure_s: float

    @property
    def name(self) -> str:
        return self.scenario.name

    def script(self, topology: Topology, seed: int) -> Script:
        """The scenario's script with silence from 0.1 s (at most a tenth of it all) before the end on."""
        script = self.scenario.script(topology, seed)
        end_s = self.measure_s - min(0.1, 0.1 * self.measure_s)
        streams = (
            replace(stream, steps=(*(step for step in stream.steps if step.start_s < end_s), RateStep(end_s, 0.0)))
            for stream in script.streams
        )
        return replace(script, streams=tuple(streams))


class BlockRun:
    """One controller on the testbed for one block; carries its control from the warm-up to the measured part."""

    def __init__(self, testbed: Testbed, controller: Controller, interval_s: float) -> None:
        self._testbed, self._controller, self._interval_s = testbed, controller, interval_s
        self._control = controller.begin(testbed.topology)
        self.failures: tuple[str, ...] = ()

    def phase(
        self, scenario: Scenario, seed: int, duration_s: float
    ) -> tuple[tuple[Window, ...], tuple[WindowRecord, ...], int]:
        """Starts the script, puts the control in force, advances for `duration_s`, drains.

        Returns windows, their records and how often the control was changed.
        """
        self._testbed.reset(scenario, seed)
        script = scenario.script(self._testbed.topology, seed)
        if isinstance(self._controller, Informed):
            self._controller.inform(script)
            self._control = self._controller.begin(self._testbed.topology)
        # reset() left equal weights in force: without this the block would begin untrained.
        self._apply()
        windows: list[Window] = []
        records: list[WindowRecord] = []
        intervals, changes = max(round(duration_s / self._interval_s), 1), 0
        for number in range(intervals):
            windows.append(self._testbed.advance(self._interval_s))
            records.append(record_window(windows[-1], self._control, script, (number + 0.5) * self._interval_s))
            decision = self._controller.decide(windows[-1]) if number < intervals - 1 else None
            if decision is not None:
                before, self._control = self._control, decision
                if self._apply():
                    changes += 1
                else:
                    self._control = before
        windows.append(self._testbed.drain())
        records.append(record_window(windows[-1], self._control, script, intervals * self._interval_s, drain=True))
        return tuple(windows), tuple(records), changes

    def _apply(self) -> bool:
        try:
            return self._testbed.apply(self._control).changed
        except ActuationError as error:
            self.failures = (f"not_in_force: {error.what}",)
            return False
