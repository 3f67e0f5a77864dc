"""Windows → what a bundle would do: stateless, so that any copy of it anywhere answers alike. Torch, but not Ray.

What a bundle would do, as a value: handed from whoever asked the policy to the guards. Needs no torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from actuators.contract.control import Control, ServiceTimes
from actuators.contract.window import Window
from actuators.errors import BundleError, DataError, DeepSchedError
from envs.heuristics.weights import InverseLatency
from envs.observation.features import LatencyMemory
from envs.observation.observer import Observation
from tuning.policy.bundle import Bundle


@dataclass(frozen=True, eq=False)
class State:
    """What the encoder says after the last window.

    Attributes:
        cluster: ``[servers]``, the most likely one.
        posterior: ``[servers, K]``.
        novelty: ``[servers]``; above 1 lies outside every cluster.
    """

    cluster: NDArray[np.int64]
    posterior: NDArray[np.float64]
    novelty: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Advice:
    """What a bundle makes of some windows; the guards decide what becomes of it.

    Attributes:
        policy: what the learned policy would put in force; None when it failed, and `problem` says how.
        baseline: what its residual stands on, on the same observation: inverse latency's weights, or the service
            times that an estimator has learned.
        memory: averages after the first of the windows, to be given when that one has fallen off.
        by: who answered: ``serve``, ``local bundle``.
    """

    policy: Control | None
    baseline: Control
    state: State
    memory: LatencyMemory
    problem: str = ""
    by: str = "local bundle"


class Advises(Protocol):
    """A bundle that can be asked, here or elsewhere."""

    def advise(self, windows: Sequence[Window], memory: LatencyMemory | None = None) -> Advice: ...


def advisable(window: Window) -> bool:
    """Whether advice can be given on a window: it is usable and not empty."""
    return window.usable and bool(window.requests.sum() > 0)


class Recent:
    """The windows that the next advice needs, and the averages from before them: all that a caller must remember.

    Args:
        frames: windows that one observation spans.
    """

    def __init__(self, frames: int) -> None:
        self._windows: deque[Window] = deque(maxlen=frames)
        self._before: LatencyMemory | None = None
        self._after_first: LatencyMemory | None = None

    def moved(self, frames: int) -> Recent:
        """For another bundle: its windows begin anew, the averages of response times go on.

        They take some ten windows to settle, which would all look like nothing that was observed. What an estimator
        has learned is left behind: the other bundle may have another one.
        """
        other, last = Recent(frames), self._after_first
        if last is not None:
            other._before = replace(last, learned={})
        return other

    def ask(self, adviser: Advises, window: Window) -> Advice:
        """Advice after one more window."""
        if len(self._windows) == self._windows.maxlen:
            self._before = self._after_first
        self._windows.append(window)
        advice = adviser.advise(list(self._windows), self._before)
        self._after_first = advice.memory
        return advice


class NotANumberError(DeepSchedError):
    """The network's output is not finite. A retry cannot help."""


@dataclass(frozen=True, eq=False)
class _Encoded:
    """What was made of some windows, before the policy acts on it."""

    observation: Observation
    advice: Advice


class Adviser:
    """One bundle, ready to act.

    Args:
        workers: requests that a server serves at once, for a bundle that sets service times; 1 is safe.

    Raises:
        BundleError: the network holds numbers that are not finite.
    """

    def __init__(self, bundle: Bundle, workers: float = 1.0) -> None:
        if bundle.problem.workers is None:
            each = np.full(bundle.problem.topology.shape[1], float(workers))
            bundle = replace(bundle, problem=replace(bundle.problem, workers=each))
        self.bundle, self.topology = bundle, bundle.problem.topology
        bad = [name for name, tensor in bundle.net.state_dict().items() if not bool(torch.isfinite(tensor).all())]
        if bad:
            raise BundleError(f"'{bad[0]}' of the network is not finite", where="policy.safetensors", remedy="train it")
        # Inputs are within ±10 and parameters finite: what goes wrong between them is seen in the last layer, too.
        bundle.net.action[-1].register_forward_hook(_refuse_nan)
        self._policy = bundle.policy()
        self._baseline = InverseLatency(bundle.problem.codec)

    @property
    def frames(self) -> int:
        """Windows that one observation spans."""
        return self.bundle.problem.options.frames

    def advise(self, windows: Sequence[Window], memory: LatencyMemory | None = None) -> Advice:
        """What to do after the last of `windows` (oldest first, about this topology, all usable).

        Args:
            memory: averages from before these windows, see `Advice.memory`; None begins anew. It is not changed.

        Raises:
            DataError: no window at all, or one without the samples that the bundle's estimator needs: NGINX does
                not balance in memory.
        """
        return self._decided([self._see(windows, memory)])[0]

    def advise_each(
        self, cases: Sequence[tuple[Sequence[Window], LatencyMemory | None]]
    ) -> list[Advice | DeepSchedError]:
        """`advise` for many at once, with one call of the network; where it would raise, the error stands instead."""
        found: list[Advice | DeepSchedError] = []
        seen: list[_Encoded] = []
        for windows, memory in cases:
            try:
                seen.append(self._see(windows, memory))
                found.append(seen[-1].advice)
            except DeepSchedError as error:
                found.append(error)
        decided = iter(self._decided(seen))
        return [one if isinstance(one, DeepSchedError) else next(decided) for one in found]

    def _see(self, windows: Sequence[Window], memory: LatencyMemory | None) -> _Encoded:
        if not windows:
            raise DataError("no window to act on", where="advice", remedy="give at least two readings")
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
        """With the policy's part, or with what kept it from acting."""
        if not seen:
            return []
        first, *others = seen
        try:
            # A batch of one is no batch: the network sums in another order then.
            policies = (
                self._policy.act_each([one.observation for one in seen])
                if others
                else [self._policy.act(first.observation)]
            )
        except (DeepSchedError, RuntimeError, ArithmeticError, ValueError) as error:
            if others:
                # One of them spoils the call for all.
                return [advice for one in seen for advice in self._decided([one])]
            # Whatever goes wrong inside a policy, the baseline stands in for it; the guards say so.
            return [replace(first.advice, problem=f"{type(error).__name__}: {error}"[:200])]
        return [replace(one.advice, policy=policy) for one, policy in zip(seen, policies, strict=True)]

    def _standing_on(self, observation: Observation) -> Control:
        """What a residual of 0 does."""
        if observation.tau_s is None:
            return self._baseline.act(observation)
        return ServiceTimes(self.topology, observation.tau_s, self.bundle.problem.believed_workers)


def _refuse_nan(layer: Any, inputs: Any, output: torch.Tensor) -> None:
    if not bool(torch.isfinite(output).all()):
        raise NotANumberError("the network's output is not finite", where="policy")
