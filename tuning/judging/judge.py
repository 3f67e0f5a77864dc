"""Judges policies side by side on one testbed: short blocks in a balanced order, with paired arrivals.

The load engine runs ahead of everything else and does not feel a stalled machine, NGINX and the servers do: on a live
testbed a thread measures the scheduling delay, and blocks above the limit are spoiled.
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
from envs.heuristics.controllers import Controller
from tuning.judging.blocks import Block, flags_of, record_window, script_events, utilisation
from tuning.judging.content import WindowRecord
from tuning.judging.evaluation import Evaluation
from tuning.judging.plan import JudgeOptions, PlannedBlock, check_names, plan_blocks
from tuning.judging.tally import BlockTally

Remake = Callable[[int], Sequence[Controller]]
"""Seed → fresh controllers."""
_PERIOD_S = 0.01


@runtime_checkable
class Informed(Protocol):
    """An oracle: a controller that receives the script."""

    def inform(self, script: Script) -> None:
        """Receives the script of the next phase of a block."""
        ...


@runtime_checkable
class Stateless(Protocol):
    """A controller that says whether it forgets everything after a block; any other is taken to learn."""

    stateless: bool


@runtime_checkable
class Monitored(Protocol):
    """A testbed whose parts can end while the rest goes on."""

    def dead_parts(self) -> list[str]:
        """The parts that have ended, each in words; empty when none has."""
        ...


@dataclass(frozen=True)
class JudgeProgress:
    """The phase that begins: block `index` (from 0) of `total`, `phase` ``warm-up`` or ``measure``, its length."""

    index: int
    total: int
    planned: PlannedBlock
    phase: str
    phase_s: float


@dataclass(frozen=True)
class EndingArrivals:
    """A scenario whose arrivals end shortly before `measure_s`, so that all policies of a round get the same ones.

    On a live testbed the drain begins some milliseconds sooner or later; otherwise the blocks of a round would differ
    by the requests that were due in between.
    """

    scenario: Scenario
    measure_s: float

    @property
    def name(self) -> str:
        return self.scenario.name

    def script(self, topology: Topology, seed: int) -> Script:
        """The scenario's script without arrivals in the last 0.1 s (at most in the last tenth)."""
        script = self.scenario.script(topology, seed)
        end_s = self.measure_s - min(0.1, 0.1 * self.measure_s)
        streams = (
            replace(stream, steps=(*(step for step in stream.steps if step.start_s < end_s), RateStep(end_s, 0.0)))
            for stream in script.streams
        )
        return replace(script, streams=tuple(streams))


class Judge:
    """Runs the blocks of one evaluation; `evaluation` can be called at any time and covers the finished ones.

    Args:
        deadlines_s: ``[groups]``, from the observation phase.
        progress: called before each phase of each block.
        machine: facts about the machine, saved with the result.
        finished: blocks of an interrupted run with the same options; usable ones are not run again, but see `relearn`.
        relearn: what a policy had learned is lost with the interrupted run: of a seed that is not finished it repeats
            its earlier blocks, and the later usable ones count; `Stateless` ones go on. False: all go on, untrained.
        keep: called with every block as it ends.
        remake: returns the controllers of a further seed; None keeps the same ones.
        arms: policy → testbed of another NGINX of ours before the same servers; other policies use `testbed`.
        peers: policy → testbed of an external balancer, which does not count requests.
        kind: ``live`` or ``simulated``.

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
        progress: Callable[[JudgeProgress], None] | None = None,
        machine: Mapping[str, Any] | None = None,
        finished: Sequence[Block] = (),
        relearn: bool = True,
        keep: Callable[[Block], None] | None = None,
        remake: Remake | None = None,
        arms: Mapping[str, Testbed] | None = None,
        peers: Mapping[str, Testbed] | None = None,
        kind: str = "",
    ) -> None:
        self._testbed, self._scenario, self._options = testbed, scenario, options
        self._controllers = {controller.name: controller for controller in controllers}
        self._deadlines_s, self._machine = deadlines_s, dict(machine or {})
        self._progress, self._keep = progress or (lambda _: None), keep or (lambda _: None)
        self._remake, self._run_seed = remake, options.seed
        self._peers, self._kind = dict(peers or {}), kind
        self._testbeds = {**(arms or {}), **self._peers}
        self.blocks: list[Block] = _counted(finished)
        self._relearn = relearn
        self._latest: Evaluation | None = None
        check_names(controllers, options)
        self.plan = plan_blocks(controllers, options)

    def run(self) -> Evaluation:
        """Runs the unfinished blocks. Raises TestbedError when a part of the testbed fails; `blocks` are kept."""
        repeats = self._options.repeats
        for index, planned in self._unfinished():
            self._meet(planned.run_seed)
            self._judge_block(index, planned)
            while repeats and not self.blocks[-1].usable:
                repeats -= 1
                self._judge_block(index, planned)
        return self.evaluation()

    def _unfinished(self) -> list[tuple[int, PlannedBlock]]:
        """What is still to run, with its place in the plan; a course is finished as a whole or begins anew."""
        done = {block.planned for block in self.blocks if block.usable}
        missing = [planned for planned in self.plan if planned not in done]
        again = {self._course(planned) for planned in missing if self._relearn and self._learns(planned.policy)}
        wanted = {*missing, *(planned for planned in self.plan if self._course(planned) in again)}
        return [(index, planned) for index, planned in enumerate(self.plan) if planned in wanted]

    def _course(self, planned: PlannedBlock) -> tuple[int, str]:
        """The blocks in which one controller goes on learning: those of a policy and, where it is remade, of a seed."""
        return planned.run_seed if self._remake is not None else self._options.seed, planned.policy

    def _learns(self, policy: str) -> bool:
        controller = self._controllers[policy]
        return not (isinstance(controller, Stateless) and controller.stateless)

    def evaluation(self) -> Evaluation:
        """The evaluation of the finished blocks; blocks of an unfinished round are kept but not judged.

        The same object until a further block ends: it computes its statistics once.
        """
        if self._latest is None:
            self._latest = self._evaluated()
        return self._latest

    def _evaluated(self) -> Evaluation:
        options, rounds = self._options, {planned.round for planned in self.plan}
        finished = {number for number in rounds if self._is_complete(number)}
        blocks = tuple(
            b if b.planned.round in finished else replace(b, flags=(*b.flags, "the round was not finished"))
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
        """Policies start anew with each seed, so that nothing learned with one seed acts in the next."""
        if run_seed != self._run_seed and self._remake is not None:
            self._controllers = {controller.name: controller for controller in self._remake(run_seed)}
        self._run_seed = run_seed

    def _judge_block(self, index: int, planned: PlannedBlock) -> None:
        """Runs one block; raises TestbedError, after the block was kept, when a part of the testbed ended in it."""
        block = self._run_block(index, planned)
        dead = self._dead()
        block = replace(block, flags=(*block.flags, *(f"died: {part}" for part in dead)))
        self.blocks, self._latest = _counted([*self.blocks, block]), None
        self._keep(block)
        self._require_alive(dead, planned)

    def _dead(self) -> list[str]:
        return self._testbed.dead_parts() if isinstance(self._testbed, Monitored) else []

    def _require_alive(self, dead: list[str], planned: PlannedBlock) -> None:
        # The remaining parts would give other figures, and NGINX avoids a restarted server for a while.
        if dead:
            raise TestbedError("; ".join(dead), where=f"round {planned.round + 1}, {planned.policy}")

    def _is_complete(self, number: int) -> bool:
        return {b.planned.policy for b in self.blocks if b.planned.round == number} == self._controllers.keys()

    def _run_block(self, index: int, planned: PlannedBlock) -> Block:
        controller, options = self._controllers[planned.policy], self._options
        testbed = self._testbeds.get(planned.policy, self._testbed)
        testbed.set_method(controller.method)
        run = _BlockRun(testbed, controller, options.interval_s)
        if options.warm_up_s > 0:
            self._progress(JudgeProgress(index, len(self.plan), planned, "warm-up", options.warm_up_s))
            run.phase(self._scenario, planned.warm_up_seed, options.warm_up_s)
            self._require_alive(self._dead(), planned)
        self._progress(JudgeProgress(index, len(self.plan), planned, "measure", options.measure_s))
        created = datetime.now(UTC).isoformat(timespec="seconds")
        scenario = EndingArrivals(self._scenario, options.measure_s)
        with _SchedulingDelay() if self._kind == "live" else contextlib.nullcontext() as wait:
            windows, records, changes = run.phase(scenario, planned.seed, options.measure_s)
        script = self._scenario.script(testbed.topology, planned.seed)
        counted = planned.policy not in self._peers
        return Block(
            planned=planned,
            created=created,
            duration_s=sum(window.duration_s for window in windows),
            tally=BlockTally.of(windows, counted=counted),
            windows=records,
            changes=changes,
            flags=(*flags_of(windows, script, options.interval_s), *run.failures, *self._stalled(wait)),
            events=script_events(script, testbed.topology),
            utilisation=utilisation(windows, script) if counted else (),
            core_wait_ms=None if wait is None else round(wait.mean_ms, 4),
            proxy_cpu_s=_proxy_cpu_s(windows),
        )

    def _stalled(self, wait: _SchedulingDelay | None) -> tuple[str, ...]:
        limit_ms = self._options.max_core_wait_ms
        if wait is None or wait.mean_ms <= limit_ms:
            return ()
        return (f"stall: mean scheduling delay {wait.mean_ms:.1f} ms, more than {limit_ms:g} ms",)


def _proxy_cpu_s(windows: Sequence[Window]) -> float | None:
    known_s = [window.proxy_cpu_s for window in windows if window.proxy_cpu_s is not None]
    return round(sum(known_s), 4) if known_s else None


def _counted(blocks: Sequence[Block]) -> list[Block]:
    """Without the usable blocks that were run again and were usable again."""
    latest = {block.planned: index for index, block in enumerate(blocks) if block.usable}
    return [block for index, block in enumerate(blocks) if not block.usable or latest[block.planned] == index]


class _BlockRun:
    """One controller on the testbed for one block; its control stays in force from the warm-up to the measured part."""

    def __init__(self, testbed: Testbed, controller: Controller, interval_s: float) -> None:
        self._testbed, self._controller, self._interval_s = testbed, controller, interval_s
        self._control = controller.begin(testbed.topology)
        self.failures: tuple[str, ...] = ()

    def phase(
        self, scenario: Scenario, seed: int, duration_s: float
    ) -> tuple[tuple[Window, ...], tuple[WindowRecord, ...], int]:
        """Starts the script, applies the control, advances for `duration_s`, drains.

        Returns windows, their records and the number of control changes.
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


class _SchedulingDelay:
    """While it is entered, a thread sleeps for fixed periods and measures how late it is woken.

    Attributes:
        mean_ms: mean delay so far, 0 before the first period.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="scheduling-delay", daemon=True)
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
            due_s = time.monotonic() + _PERIOD_S
            if self._stop.wait(_PERIOD_S):
                return
            self._late_s += time.monotonic() - due_s
            self._times += 1
