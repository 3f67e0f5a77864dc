"""Runs policies beside each other on one testbed: short blocks, paired arrivals, balanced random order.

One controller on a testbed for one block: control in force, windows, drain.

How long the machine lets those wait that want a core: what a stalled or overloaded machine does to every latency.

The load engine runs ahead of everyone else and does not feel it; NGINX and the servers do.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from actuators.contract.arrays import FloatArray
from actuators.contract.script import RateStep, Scenario, Script
from actuators.contract.testbed import Testbed
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.errors import ActuationError, TestbedError
from tuning.judging.blocks import Block, Place, WindowRecord, flags_of, record_window, script_events, utilisation
from tuning.judging.evaluation import Evaluation
from tuning.judging.plan import Controller, JudgeOptions, balanced_orders, check_names, plan_blocks
from tuning.judging.tally import Tally


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


PERIOD_S = 0.01


class CoreWait:
    """While it is entered, a thread sleeps and notes how much later than due it gets its core back.

    Attributes:
        mean_ms: mean of what it has seen so far, 0 before the first time.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="core-wait", daemon=True)
        self._late_s, self._times = 0.0, 0

    @property
    def mean_ms(self) -> float:
        return 1e3 * self._late_s / max(self._times, 1)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            due_s = time.monotonic() + PERIOD_S
            if self._stop.wait(PERIOD_S):
                return
            self._late_s += time.monotonic() - due_s
            self._times += 1


__all__ = [
    "Controller", "EndingArrivals", "Judge", "JudgeOptions", "Progress", "balanced_orders", "judge", "plan_blocks",
]  # fmt: skip


@runtime_checkable
class Monitored(Protocol):
    """A testbed whose parts can die while the rest goes on."""

    def dead_parts(self) -> list[str]:
        """What has died, in words; empty when all is well."""
        ...


Remake = Callable[[int], Sequence[Controller]]


@dataclass(frozen=True)
class Progress:
    """What the judge does now: block `index` (from 0) of `total`, and for how many seconds it will last."""

    index: int
    total: int
    place: Place
    phase: str
    phase_s: float


class Judge:
    """Accumulates blocks; whatever has finished can be read at any time with `evaluation`.

    Args:
        deadlines_s: ``[groups]``, from the observation phase.
        progress: called before each phase of each block.
        machine: facts about the machine, saved with the result.
        finished: blocks of an earlier, interrupted run with the same options; usable ones are not run again.
        keep: called with every block as it ends.
        remake: gives the controllers of a further seed; without it the same ones go on.
        peers: policy → testbed of a balancer that is not ours and keeps no count of requests.
        kind: what the testbed is, ``live`` or ``simulated``.

    Raises:
        ConfigError: names are not unique, or the reference or the learned policy is not among them.
    """

    def __init__(
        self,
        testbed: Testbed,
        controllers: Sequence[Controller],
        scenario: Scenario,
        deadlines_s: FloatArray,
        options: JudgeOptions,
        *,
        progress: Callable[[Progress], None] | None = None,
        machine: Mapping[str, Any] | None = None,
        finished: Sequence[Block] = (),
        keep: Callable[[Block], None] | None = None,
        remake: Remake | None = None,
        peers: Mapping[str, Testbed] | None = None,
        kind: str = "",
    ) -> None:
        self._testbed, self._scenario, self._options = testbed, scenario, options
        self._controllers = {controller.name: controller for controller in controllers}
        self._deadlines_s, self._machine = deadlines_s, dict(machine or {})
        self._progress, self._keep = progress or (lambda _: None), keep or (lambda _: None)
        self._remake, self._run_seed = remake, options.seed
        self._peers, self._kind = dict(peers or {}), kind
        self.blocks: list[Block] = list(finished)
        check_names(controllers, options)
        self.plan = plan_blocks(controllers, options)

    def run(self) -> Evaluation:
        """Runs what is not finished yet. Raises TestbedError when a part of the testbed breaks; `blocks` are kept."""
        done = {block.place for block in self.blocks if block.usable}
        repeats = self._options.repeats
        for index, place in enumerate(self.plan):
            if place in done:
                continue
            self._meet(place.run_seed)
            self._judge_block(index, place)
            while repeats and not self.blocks[-1].usable:
                repeats -= 1
                self._judge_block(index, place)
        return self.evaluation()

    def evaluation(self) -> Evaluation:
        """What the finished blocks say; blocks of a round that was not finished are kept but not judged."""
        options, rounds = self._options, {place.round for place in self.plan}
        finished = {number for number in rounds if self._is_complete(number)}
        blocks = tuple(
            b if b.place.round in finished else replace(b, flags=(*b.flags, "the round was not finished"))
            for b in self.blocks
        )
        return Evaluation(
            scenario=self._scenario.name,
            topology=self._testbed.topology,
            deadlines_s=np.asarray(self._deadlines_s, dtype=float),
            blocks=blocks,
            machine=self._machine,
            testbed=self._kind,
            rounds=len(rounds),
            seed=options.seed,
            seeds=options.seeds,
            warm_up_s=options.warm_up_s,
            measure_s=options.measure_s,
            interval_s=options.interval_s,
            reference=options.reference,
            learned=options.learned,
        )

    def _meet(self, run_seed: int) -> None:
        """Policies start anew with each seed, so that what one seed taught them is no part of the next."""
        if run_seed != self._run_seed and self._remake is not None:
            self._controllers = {controller.name: controller for controller in self._remake(run_seed)}
        self._run_seed = run_seed

    def _judge_block(self, index: int, place: Place) -> None:
        """One more block; raises TestbedError, after it was kept, when a part of the testbed died in it."""
        block = self._run_block(index, place)
        dead = self._dead()
        block = replace(block, flags=(*block.flags, *(f"died: {part}" for part in dead)))
        self.blocks.append(block)
        self._keep(block)
        self._require_alive(dead, place)

    def _dead(self) -> list[str]:
        return self._testbed.dead_parts() if isinstance(self._testbed, Monitored) else []

    def _require_alive(self, dead: list[str], place: Place) -> None:
        # What is left would go on with other figures, and NGINX shuns a server for a while that is started again.
        if dead:
            raise TestbedError("; ".join(dead), where=f"round {place.round + 1}, {place.policy}")

    def _is_complete(self, number: int) -> bool:
        return {b.place.policy for b in self.blocks if b.place.round == number} == self._controllers.keys()

    def _run_block(self, index: int, place: Place) -> Block:
        controller, options = self._controllers[place.policy], self._options
        testbed = self._peers.get(place.policy, self._testbed)
        testbed.set_method(controller.method)
        run = BlockRun(testbed, controller, options.interval_s)
        if options.warm_up_s > 0:
            self._progress(Progress(index, len(self.plan), place, "warm-up", options.warm_up_s))
            run.phase(self._scenario, place.warm_up_seed, options.warm_up_s)
            self._require_alive(self._dead(), place)
        self._progress(Progress(index, len(self.plan), place, "measure", options.measure_s))
        created = datetime.now(UTC).isoformat(timespec="seconds")
        scenario = EndingArrivals(self._scenario, options.measure_s)
        with CoreWait() if self._kind == "live" else contextlib.nullcontext() as wait:
            windows, records, changes = run.phase(scenario, place.seed, options.measure_s)
        script = self._scenario.script(testbed.topology, place.seed)
        counted = place.policy not in self._peers
        return Block(
            place=place,
            created=created,
            duration_s=sum(window.duration_s for window in windows),
            tally=Tally.of(windows, counted=counted),
            windows=records,
            changes=changes,
            flags=(*flags_of(windows, script, options.interval_s), *run.failures, *self._stalled(wait)),
            events=script_events(script, testbed.topology),
            utilisation=utilisation(windows, script) if counted else (),
            core_wait_ms=None if wait is None else round(wait.mean_ms, 4),
        )

    def _stalled(self, wait: CoreWait | None) -> tuple[str, ...]:
        limit_ms = self._options.max_core_wait_ms
        if wait is None or wait.mean_ms <= limit_ms:
            return ()
        return (f"stall: the machine let everyone wait {wait.mean_ms:.1f} ms for a core, more than {limit_ms:g} ms",)


def judge(
    testbed: Testbed,
    controllers: Sequence[Controller],
    scenario: Scenario,
    *,
    deadlines_s: FloatArray,
    rounds: int,
    warm_up_s: float,
    measure_s: float,
    interval_s: float,
    seed: int,
    repeats: int = 2,
    reference: str = "least_conn",
    learned: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """Runs a whole evaluation; use `Judge` to keep finished blocks when it may be interrupted.

    In each round all controllers meet the same arrivals and service draws. Raises ConfigError for
    names that do not fit and TestbedError when the testbed breaks.
    """
    options = JudgeOptions(
        rounds=rounds, warm_up_s=warm_up_s, measure_s=measure_s, interval_s=interval_s, seed=seed, repeats=repeats,
        reference=reference, learned=learned,
    )  # fmt: skip
    return Judge(testbed, controllers, scenario, deadlines_s, options, progress=progress).run()
