"""Runs policies beside each other on one testbed: short blocks, paired arrivals, balanced random order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
from pydantic import Field

from actuators.control import BalancingMethod, Control
from actuators.errors import ActuationError, ConfigError, closest
from actuators.options import Options
from actuators.script import RateStep, Scenario, Script
from actuators.testbed import Testbed
from actuators.topology import Topology
from actuators.window import FloatArray, Window
from tuning.blocks import Block, Place, WindowRecord, flags_of, record_window, script_events
from tuning.evaluation import Evaluation
from tuning.tally import Tally


class Controller(Protocol):
    """A policy as the judge sees it: an observer of windows that decides on controls."""

    name: str
    method: BalancingMethod

    def begin(self, topology: Topology) -> Control:
        """The control to start a block with; adaptive ones may return what they last had."""
        ...

    def decide(self, window: Window) -> Control | None:
        """The next control, or None to leave it as it is."""
        ...


class JudgeOptions(Options):
    """How long, how often and in what order policies are judged."""

    rounds: int = Field(default=8, ge=1)
    """How often every policy has its turn; intervals need at least 2."""
    warm_up_s: float = Field(default=3.0, ge=0)
    """Seconds of load before each measured part, with a script of its own; not counted."""
    measure_s: float = Field(default=10.0, gt=0)
    """Seconds of measured load per block."""
    interval_s: float = Field(default=1.0, gt=0)
    """Control interval in seconds."""
    seed: int = Field(default=1, ge=0)
    """Fixes arrivals, service times, the order of the blocks and the bootstrap."""
    repeats: int = Field(default=2, ge=0)
    """How many spoiled blocks (stalled machine, saturated load client), in all, are run again at once."""
    reference: str = "least_conn"
    """The policy that ratios are to."""
    learned: str | None = None
    """The policy that is on trial; the table says where it does not win."""


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
        finished: blocks of an earlier, interrupted run with the same options; they are not run again.

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
    ) -> None:
        self._testbed, self._scenario, self._options = testbed, scenario, options
        self._controllers = {controller.name: controller for controller in controllers}
        self._deadlines_s, self._machine = deadlines_s, dict(machine or {})
        self._progress = progress or (lambda _: None)
        self.blocks: list[Block] = list(finished)
        _check_names(controllers, options)
        self.plan = plan_blocks(controllers, options)

    def run(self) -> Evaluation:
        """Runs what is not finished yet. Raises TestbedError when the testbed breaks; `blocks` are kept."""
        done = {block.place for block in self.blocks}
        repeats = self._options.repeats
        for index, place in enumerate(self.plan):
            if place in done:
                continue
            self.blocks.append(self._run_block(index, place))
            while repeats and not self.blocks[-1].usable:
                repeats -= 1
                self.blocks.append(self._run_block(index, place))
        return self.evaluation()

    def evaluation(self) -> Evaluation:
        """What the finished blocks say; blocks of a round that was not finished are kept but not judged."""
        finished = {round for round in range(self._options.rounds) if self._is_complete(round)}
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
            **self._options.model_dump(exclude={"repeats"}),
        )

    def _is_complete(self, number: int) -> bool:
        return {b.place.policy for b in self.blocks if b.place.round == number} == self._controllers.keys()

    def _run_block(self, index: int, place: Place) -> Block:
        controller, options = self._controllers[place.policy], self._options
        run = _BlockRun(self._testbed, controller, options.interval_s)
        self._testbed.set_method(controller.method)
        if options.warm_up_s > 0:
            self._progress(Progress(index, len(self.plan), place, "warm-up", options.warm_up_s))
            self._testbed.reset(self._scenario, place.warm_up_seed)
            run.phase(options.warm_up_s)
        self._progress(Progress(index, len(self.plan), place, "measure", options.measure_s))
        created = datetime.now(UTC).isoformat(timespec="seconds")
        self._testbed.reset(EndingArrivals(self._scenario, options.measure_s), place.seed)
        windows, records, changes = run.phase(options.measure_s)
        script = self._scenario.script(self._testbed.topology, place.seed)
        return Block(
            place=place,
            created=created,
            duration_s=sum(window.duration_s for window in windows),
            tally=Tally.of(windows),
            windows=records,
            changes=changes,
            flags=(*flags_of(windows, script, options.interval_s), *run.failures),
            events=script_events(script, self._testbed.topology),
        )


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


class _BlockRun:
    """One controller on the testbed for one block; carries its control from the warm-up to the measured part."""

    def __init__(self, testbed: Testbed, controller: Controller, interval_s: float) -> None:
        self._testbed, self._controller, self._interval_s = testbed, controller, interval_s
        self._control = controller.begin(testbed.topology)
        self.failures: tuple[str, ...] = ()

    def phase(self, duration_s: float) -> tuple[tuple[Window, ...], tuple[WindowRecord, ...], int]:
        """Puts the control in force, advances for `duration_s`, drains: windows, records, changes of the control."""
        # reset() left equal weights in force: without this the block would begin untrained.
        self._apply(self._control)
        windows: list[Window] = []
        records: list[WindowRecord] = []
        intervals, changes = max(round(duration_s / self._interval_s), 1), 0
        for number in range(intervals):
            windows.append(self._testbed.advance(self._interval_s))
            records.append(record_window(windows[-1], self._control))
            decision = self._controller.decide(windows[-1]) if number < intervals - 1 else None
            if decision is not None and self._apply(decision):
                self._control, changes = decision, changes + 1
        windows.append(self._testbed.drain())
        records.append(record_window(windows[-1], self._control, drain=True))
        return tuple(windows), tuple(records), changes

    def _apply(self, control: Control) -> bool:
        try:
            return self._testbed.apply(control).changed
        except ActuationError as error:
            self.failures = (f"not_in_force: {error.what}",)
            return False


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


def plan_blocks(controllers: Sequence[Controller], options: JudgeOptions) -> tuple[Place, ...]:
    """All blocks in the order they are run: the same for equal names and options."""
    orders = balanced_orders(len(controllers), options.rounds, options.seed)
    plan = []
    for number, order in enumerate(orders):
        seed, warm_up_seed = (int(s) for s in np.random.SeedSequence([options.seed, number]).generate_state(2))
        plan += [
            Place(number, position, controllers[index].name, controllers[index].method, seed, warm_up_seed)
            for position, index in enumerate(order)
        ]
    return tuple(plan)


def balanced_orders(count: int, rounds: int, seed: int) -> list[list[int]]:
    """One order per round: in every `count` rounds each policy has each position once.

    The squares are Williams' (1949, doi 10.1071/CH9490149): over a square and its mirror image each policy
    follows each other one equally often. Names and rows are shuffled by the seed.
    """
    rng = np.random.default_rng([seed, count])
    zigzag = [(-(i // 2) if i % 2 == 0 else (i + 1) // 2) % count for i in range(count)]
    orders: list[list[int]] = []
    while len(orders) < rounds:
        names = rng.permutation(count)
        for first in (zigzag, zigzag[::-1]):
            shifts = rng.permutation(count)
            orders += [[int(names[(step + shift) % count]) for step in first] for shift in shifts]
    return orders[:rounds]


def _check_names(controllers: Sequence[Controller], options: JudgeOptions) -> None:
    names = [controller.name for controller in controllers]
    if len(set(names)) != len(names):
        raise ConfigError(f"policies are {names}", where="evaluation", remedy="name each policy once")
    for field, name in (("reference", options.reference), ("learned", options.learned)):
        if name is not None and name not in names:
            raise ConfigError(f"unknown policy '{name}'", where=f"evaluation.{field}", remedy=closest(name, names))
