"""Windows → what a bundle would do: pure and stateless, so that any copy of it, anywhere, answers alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actuators.control import ServiceTimes, Weights
from actuators.errors import BundleError, DataError, DeepSchedError
from actuators.window import Window
from envs.baselines import InverseLatency
from envs.features import LatencyMemory
from tuning.bundle import Bundle


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
        policy: the learned policy's weights; None when it failed, and `problem` says how.
        baseline: the inverse-latency heuristic's weights on the same observation.
        memory: to be given with the next window: the averages that outlive a window.
        by: who answered: ``serve``, ``own copy``.
    """

    policy: Weights | None
    baseline: Weights
    state: State
    memory: LatencyMemory
    problem: str = ""
    by: str = "own copy"


class NotANumberError(DeepSchedError):
    """The network's output is not finite. A retry cannot help."""


class Adviser:
    """One bundle, ready to act.

    Raises:
        BundleError: the network holds numbers that are not finite.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.topology = bundle, bundle.problem.topology
        bad = [name for name, tensor in bundle.net.state_dict().items() if not bool(torch.isfinite(tensor).all())]
        if bad:
            raise BundleError(f"'{bad[0]}' of the network is not finite", where="policy.safetensors", remedy="train it")
        bundle.net.register_forward_hook(_refuse_nan)
        self._policy = bundle.policy()
        self._baseline = InverseLatency(bundle.problem.codec)

    def advise(self, windows: Sequence[Window], memory: LatencyMemory | None = None) -> Advice:
        """What to do after the last of `windows` (oldest first, about this topology, all usable).

        Args:
            memory: as the advice before these windows gave it; None begins anew. It is not changed.

        Raises:
            DataError: no window at all.
        """
        if not windows:
            raise DataError("no window to act on", where="advice", remedy="give at least two readings")
        observer = self.bundle.problem.observer()
        if memory is not None:
            observer.memory = LatencyMemory(memory.fast_s.copy(), memory.slow_log.copy())
        for window in windows:
            observation = observer.observe_window(window)
        state = State(observation.posterior.argmax(axis=-1), observation.posterior, observation.novelty)
        baseline = _weights(self._baseline.act(observation))
        advice = Advice(None, baseline, state, observer.memory)
        try:
            return replace(advice, policy=_weights(self._policy.act(observation)))
        except (DeepSchedError, RuntimeError, ArithmeticError, ValueError) as error:
            # Whatever goes wrong inside a policy, the baseline stands in for it; the guards say so.
            return replace(advice, problem=f"{type(error).__name__}: {error}"[:200])


def _weights(control: Weights | ServiceTimes) -> Weights:
    return control.as_weights() if isinstance(control, ServiceTimes) else control


def _refuse_nan(net: Any, inputs: Any, outputs: tuple[torch.Tensor, ...]) -> None:
    if not bool(torch.isfinite(outputs[0]).all()):
        raise NotANumberError("the network's output is not finite", where="policy")
