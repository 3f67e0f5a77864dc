"""Orders to the testbeds of one node and their windows, as one message each way.

An environment with many testbeds on a node reaches them through a relay, an actor on that node: serialising, sending
and unpacking thousands of small messages would take the driver longer than a control interval (docs/scale.md).
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import ray
from numpy.typing import NDArray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actuators.contract.arrays import BoolArray, FloatArray, IntArray
from actuators.contract.control import Control, ServiceTimes, Weights
from actuators.contract.script import Scenario
from actuators.contract.topology import Topology
from actuators.contract.window import Window
from actuators.contract.window_stack import WindowStack
from actuators.errors import DeepSchedError, TestbedError
from actuators.processes.system import set_realtime_priority
from tuning.live.conductor import Stepped

FEWEST = 8
"""Testbeds on a node from which an environment has a relay there; fewer are called one by one, a hop less."""
ANSWER_SLACK_S, SLACK_PER_TESTBED_S = 30.0, 0.1
"""How long after the end of an interval a testbed may answer: the latter for each testbed of its node."""
RELAY_SLACK_S = 30.0
"""How much longer a relay may take than its slowest testbed."""
START_TIMEOUT_S, START_PER_TESTBED_S = 240.0, 5.0
"""How long conductors may take to start; the latter for each of them, as if all were on one core."""


@dataclass(frozen=True, eq=False)
class Orders:
    """What the testbeds of a node shall do for one interval; a testbed is in one of the two lists at most.

    Attributes:
        steps: testbeds that go on, under `values`.
        values: ``[len(steps), groups, servers]``, weights or, with `workers`, service times in seconds.
        workers: ``[servers]`` that are believed; None for weights.
        resets: testbeds that begin an episode, each with its seed.
    """

    interval_s: float
    topology: Topology
    scenario: Scenario
    steps: tuple[str, ...] = ()
    values: NDArray[Any] = field(default_factory=lambda: np.zeros(0))
    workers: FloatArray | None = None
    resets: tuple[tuple[str, int], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of all testbeds that have orders, in the order of the answer."""
        return (*self.steps, *(name for name, _ in self.resets))

    def control(self, index: int) -> Control:
        """Of one of `steps`."""
        if self.workers is None:
            return Weights(self.topology, self.values[index])
        return ServiceTimes(self.topology, self.values[index], self.workers)


@dataclass(frozen=True, eq=False)
class Answers:
    """What the testbeds of a node did, in the order of `Orders.names`.

    Attributes:
        windows: of the testbeds `with_window`; None without any.
        with_window: indices of those whose window is usable.
        faults: index → why the window of that testbed does not count.
        late: indices of those that did not answer in time; they have a fault.
        changed: ``[n]``.
        waited_s, apply_s, collect_s: ``[n]``, see `Stepped`.
        fatal: why a conductor cannot be started at all; empty for none.
    """

    windows: WindowStack | None
    with_window: IntArray
    faults: dict[int, str]
    late: tuple[int, ...]
    changed: BoolArray
    waited_s: FloatArray
    apply_s: FloatArray
    collect_s: FloatArray
    fatal: str = ""

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Answers:
        """Collects the answers of single testbeds."""
        faults: dict[int, str] = {}
        windows: list[Window] = []
        with_window: list[int] = []
        for index, answer in enumerate(answers):
            window = None if answer.stepped is None else answer.stepped.window
            fault = answer.trouble or ("" if answer.stepped is None else answer.stepped.fault)
            if not fault and (window is None or not window.usable):
                fault = "no usable window"
            if fault or window is None:
                faults[index] = fault
            else:
                with_window.append(index)
                windows.append(window)
        stepped = [answer.stepped or Stepped(None) for answer in answers]
        return cls(
            windows=WindowStack.of(windows) if windows else None,
            with_window=np.array(with_window, dtype=np.int64),
            faults=faults,
            late=tuple(index for index, answer in enumerate(answers) if answer.late),
            changed=np.array([each.changed for each in stepped], dtype=bool),
            waited_s=np.array([each.waited_s for each in stepped]),
            apply_s=np.array([each.apply_s for each in stepped]),
            collect_s=np.array([each.collect_s for each in stepped]),
            fatal=next((answer.fatal for answer in answers if answer.fatal), ""),
        )

    @classmethod
    def none(cls, count: int, trouble: str, *, late: bool = False) -> Answers:
        """Of a node that did not answer, for this reason."""
        return cls.of([Answer(None, trouble, late=late)] * count)


@dataclass(frozen=True, eq=False)
class Answer:
    """Of one testbed: what it did, or why there is nothing."""

    stepped: Stepped | None
    trouble: str = ""
    late: bool = False
    fatal: str = ""


class Channel(Protocol):
    """The way to the testbeds of one node, which are called `names`."""

    names: tuple[str, ...]

    def send(self, orders: Orders) -> None:
        """Sends orders; the testbeds begin at once."""

    def receive(self) -> Answers:
        """Waits for the answers to the last orders."""

    def close(self) -> None:
        """Ends what belongs to the channel; the testbeds stay."""


class Direct:
    """Calls each testbed by itself.

    Args:
        conductors: name → handle of its Conductor.
    """

    def __init__(self, conductors: Mapping[str, Any]) -> None:
        self.names = tuple(conductors)
        self._conductors = conductors
        self._pending: list[Any] = []
        self._deadline_s = self._timeout_s = 0.0

    def send(self, orders: Orders) -> None:
        steps = [
            self._conductors[name].step.remote(orders.control(index), orders.interval_s)
            for index, name in enumerate(orders.steps)
        ]
        resets = [
            self._conductors[name].reset.remote(orders.scenario, seed, orders.interval_s)
            for name, seed in orders.resets
        ]
        self._pending = [*steps, *resets]
        self._timeout_s = time_limit_s(orders)
        self._deadline_s = time.monotonic() + self._timeout_s

    def receive(self) -> Answers:
        return Answers.of([self._answer(reference) for reference in self._pending])

    def close(self) -> None:
        """Nothing is there but handles."""

    def _answer(self, reference: Any) -> Answer:
        try:
            left_s = max(self._deadline_s - time.monotonic(), 0.0)
            return Answer(Stepped.load(ray.get(reference, timeout=left_s)))
        except ray.exceptions.ActorDiedError as error:
            # Ray restarts a conductor that dies later; this one failed in its constructor.
            return Answer(None, "the testbed's conductor could not be started", fatal=_last_line(error))
        except ray.exceptions.RayActorError:
            return Answer(None, "the testbed's conductor died and is being restarted")
        except ray.exceptions.GetTimeoutError:
            what = f"the testbed's conductor did not answer within {self._timeout_s:g} s; its window is not used"
            return Answer(None, what, late=True)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DeepSchedError):
                return Answer(None, str(error.cause))
            raise


class Relay:
    """What an actor on the testbeds' node does; `Relayed` is its other end.

    Args:
        channel: to the testbeds.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        set_realtime_priority()

    def run(self, orders: bytes) -> bytes:
        """Pickled `Orders` → pickled `Answers`, after the interval.

        Both are bytes because Ray itself takes several times as long to serialise many small arrays. It unpickles: only
        this program's own processes may call it.
        """
        given = pickle.loads(orders)
        assert isinstance(given, Orders)
        self._channel.send(given)
        return pickle.dumps(self._channel.receive(), pickle.HIGHEST_PROTOCOL)


RELAY: Any = ray.remote(num_cpus=0, max_restarts=-1)(Relay)
"""The actor class of `Relay`; Ray restarts it without limit."""


class Relayed:
    """The testbeds of one node through its relay.

    Args:
        relay: handle of an actor of `Relay` over these testbeds; `close` ends it.
    """

    def __init__(self, names: Sequence[str], relay: Any) -> None:
        self.names, self._relay = tuple(names), relay
        self._count, self._timeout_s = 0, 0.0
        self._pending: Any = None

    def send(self, orders: Orders) -> None:
        self._count, self._timeout_s = len(orders.names), time_limit_s(orders) + RELAY_SLACK_S
        self._pending = self._relay.run.remote(pickle.dumps(orders, pickle.HIGHEST_PROTOCOL))

    def receive(self) -> Answers:
        try:
            answers = pickle.loads(ray.get(self._pending, timeout=self._timeout_s))
        except ray.exceptions.RayActorError:
            return Answers.none(self._count, "the relay to the testbed died and is being restarted")
        except ray.exceptions.GetTimeoutError:
            what = f"the relay to the testbed did not answer within {self._timeout_s:g} s; its window is not used"
            return Answers.none(self._count, what, late=True)
        assert isinstance(answers, Answers)
        return answers

    def close(self) -> None:
        ray.kill(self._relay)


def open_channels(conductors: Mapping[str, Any]) -> tuple[list[Channel], dict[str, str]]:
    """A channel per node with many of these testbeds, and one to all others; also name → address of its node.

    Waits until the conductors have started. Raises TestbedError when one cannot be started.
    """
    timeout_s = START_TIMEOUT_S + START_PER_TESTBED_S * len(conductors)
    try:
        found = ray.get([conductor.place.remote() for conductor in conductors.values()], timeout=timeout_s)
    except ray.exceptions.RayActorError as error:
        raise TestbedError("a testbed's conductor could not be started", evidence=_last_line(error)) from error
    except ray.exceptions.GetTimeoutError as error:
        raise TestbedError(f"the conductors did not start within {timeout_s:g} s") from error
    by_node: dict[str, dict[str, Any]] = {}
    for name, (node_id, _) in zip(conductors, found, strict=True):
        by_node.setdefault(node_id, {})[name] = conductors[name]
    channels: list[Channel] = []
    single: dict[str, Any] = {}
    for node_id, there in by_node.items():
        if len(there) < FEWEST:
            single |= there
            continue
        at_node = NodeAffinitySchedulingStrategy(node_id, soft=True)
        channels.append(Relayed(tuple(there), RELAY.options(scheduling_strategy=at_node).remote(Direct(there))))
    if single:
        channels.append(Direct(single))
    return channels, {name: address for name, (_, address) in zip(conductors, found, strict=True)}


def time_limit_s(orders: Orders) -> float:
    """How long the testbeds of a node may take for these orders; begins of episodes may build or repair a testbed."""
    count = len(orders.names)
    if not orders.resets:
        return orders.interval_s + ANSWER_SLACK_S + SLACK_PER_TESTBED_S * count
    return orders.interval_s + repair_limit_s(count)


REPAIR_TIMEOUT_S, REPAIR_PER_TESTBED_S = 180.0, 5.0
"""How long the repair of a broken testbed may take; the latter for each that begins on the same node."""


def repair_limit_s(testbeds: int) -> float:
    """How long so many testbeds of a node may take to be built or repaired at the same time."""
    return REPAIR_TIMEOUT_S + REPAIR_PER_TESTBED_S * testbeds


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
