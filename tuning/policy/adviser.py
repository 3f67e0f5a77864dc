"""Windows → advice: the control that a bundle's policy would set, and its baseline's.

An Adviser is stateless: every copy of a bundle gives the same answer. Needs neither torch nor Ray.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actuators.contract.control import Control, ServiceTimes
from actuators.contract.window import Window
from actuators.errors import BundleError, DataError, DeepSchedError
from envs.heuristics.weights import InverseLatency
from envs.observation.features import LatencyMemory
from envs.observation.observer import Observation
from tuning.policy.bundle import Bundle
from tuning.policy.learned import LearnedPolicy


@dataclass(frozen=True, eq=False)
class State:
    """Output of the encoder after the last window.

    Attributes:
        cluster: ``[servers]``, index of the most likely cluster.
        posterior: ``[servers, K]``, probability of every cluster.
        novelty: ``[servers]``, docs/glossary.md#novelty; above 1 the server lies outside every cluster.
    """

    cluster: NDArray[np.int64]
    posterior: NDArray[np.float64]
    novelty: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Advice:
    """Advice of a bundle on some windows; the guards decide whether it is applied.

    Attributes:
        policy: control of the learned policy; None when the policy failed, then `problem` gives the reason.
        baseline: control of the residual's baseline for the same observation: the weights of inverse latency, or the
            service times that an estimator has learned.
        memory: averages after the first of the windows; pass it to `advise` once that window is dropped.
        problem: why the policy failed; empty otherwise.
        by: source of the advice, ``serve`` or ``local bundle``.
    """

    policy: Control | None
    baseline: Control
    state: State
    memory: LatencyMemory
    problem: str = ""
    by: str = "local bundle"


class Advises(Protocol):
    """A source of advice: a bundle in this process or a remote service."""

    def advise(self, windows: Sequence[Window], memory: LatencyMemory | None = None) -> Advice: ...


def advisable(window: Window) -> bool:
    """Whether a window is usable and not empty, so that advice is possible."""
    return window.usable and bool(window.requests.sum() > 0)


class Recent:
    """The state that a caller keeps between advices: the latest windows and the averages from before them.

    Args:
        frames: windows that one observation spans.
    """

    def __init__(self, frames: int) -> None:
        self._windows: deque[Window] = deque(maxlen=frames)
        self._before: LatencyMemory | None = None
        self._after_first: LatencyMemory | None = None

    def moved(self, frames: int) -> Recent:
        """The state for another bundle: no windows, but the averages of response times are kept.

        New averages would take about ten windows to settle, all of them novel to the encoder. Learned service times
        are dropped because the other bundle may use another estimator.
        """
        other, last = Recent(frames), self._after_first
        if last is not None:
            other._before = replace(last, learned={})
        return other

    def ask(self, adviser: Advises, window: Window) -> Advice:
        """Adds a window and returns the advice on it."""
        if len(self._windows) == self._windows.maxlen:
            self._before = self._after_first
        self._windows.append(window)
        advice = adviser.advise(list(self._windows), self._before)
        self._after_first = advice.memory
        return advice


class Adviser:
    """Gives the advice of one bundle.

    Args:
        workers: requests that a server processes in parallel, for a bundle that sets service times; 1 is safe.

    Raises:
        BundleError: a parameter of the network is not finite.
    """

    def __init__(self, bundle: Bundle, workers: float = 1.0) -> None:
        if bundle.problem.workers is None:
            each = np.full(bundle.problem.topology.shape[1], float(workers))
            bundle = replace(bundle, problem=replace(bundle.problem, workers=each))
        self.bundle, self.topology = bundle, bundle.problem.topology
        bad = [name for name, array in bundle.net.arrays().items() if not np.isfinite(array).all()]
        if bad:
            raise BundleError(f"'{bad[0]}' of the network is not finite", where="policy.safetensors", remedy="train it")
        # Inputs are within ±10 and parameters are finite, so an overflow in any layer shows in the last one.
        self._policy = LearnedPolicy(bundle.net, bundle.problem, finite=True)
        self._baseline = InverseLatency(bundle.problem.codec)

    @property
    def frames(self) -> int:
        """Windows that one observation spans."""
        return self.bundle.problem.options.frames

    def advise(self, windows: Sequence[Window], memory: LatencyMemory | None = None) -> Advice:
        """Advice for the interval after the last of `windows`.

        Args:
            windows: oldest first, all usable and of this topology.
            memory: averages from before these windows (`Advice.memory`), not modified; None starts without averages.

        Raises:
            DataError: `windows` is empty, or a window lacks the samples that the bundle's estimator needs because
                NGINX does not balance in memory.
        """
        return self._decided([self._see(windows, memory)])[0]

    def advise_each(
        self, cases: Sequence[tuple[Sequence[Window], LatencyMemory | None]]
    ) -> list[Advice | DeepSchedError]:
        """`advise` for several cases with one call of the network; an error of a case is returned, not raised."""
        results: list[Advice | DeepSchedError] = []
        seen: list[_Encoded] = []
        for windows, memory in cases:
            try:
                seen.append(self._see(windows, memory))
                results.append(seen[-1].advice)
            except DeepSchedError as error:
                results.append(error)
        decided = iter(self._decided(seen))
        return [one if isinstance(one, DeepSchedError) else next(decided) for one in results]

    def _see(self, windows: Sequence[Window], memory: LatencyMemory | None) -> _Encoded:
        if not windows:
            raise DataError("no windows", where="advice", remedy="give at least two readings")
        try:
            return self._observed(windows, memory)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # A document that nobody thought of costs its own answer, not the controller or other requests.
            what = f"the windows cannot be observed: {type(error).__name__}: {error}"
            raise DataError(what[:300], where="advice", remedy="check what the statistics show") from error

    def _observed(self, windows: Sequence[Window], memory: LatencyMemory | None) -> _Encoded:
        observer = self.bundle.problem.observer()
        if memory is not None:
            observer.recall(memory)
        after_first: LatencyMemory | None = None
        for window in windows:
            observation = observer.observe_window(window)
            after_first = after_first or observer.remembered()
        assert after_first is not None
        state = State(observation.posterior.argmax(axis=-1), observation.posterior, observation.novelty)
        return _Encoded(observation, Advice(None, self._standing_on(observation), state, after_first))

    def _decided(self, seen: Sequence[_Encoded]) -> list[Advice]:
        """The advices with the policy's control, or with the reason why it failed."""
        if not seen:
            return []
        first, *others = seen
        try:
            # A single case does not form a batch: in a batch the network may sum in another order.
            policies = (
                self._policy.act_each([one.observation for one in seen])
                if others
                else [self._policy.act(first.observation)]
            )
        except (DeepSchedError, RuntimeError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            if others:
                # One failing case fails the whole call: repeat them one by one.
                return [advice for one in seen for advice in self._decided([one])]
            # When the policy fails, the baseline replaces it; the guards report the reason.
            return [replace(first.advice, problem=f"{type(error).__name__}: {error}"[:200])]
        return [replace(one.advice, policy=policy) for one, policy in zip(seen, policies, strict=True)]

    def _standing_on(self, observation: Observation) -> Control:
        """The control of a residual of 0."""
        if observation.tau_s is None:
            return self._baseline.act(observation)
        return ServiceTimes(self.topology, observation.tau_s, self.bundle.problem.believed_workers)


@dataclass(frozen=True, eq=False)
class _Encoded:
    """Observation and advice without the policy's part."""

    observation: Observation
    advice: Advice
