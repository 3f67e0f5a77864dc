"""Windows → what a bundle would do: stateless, so that any copy of it anywhere answers alike. Torch, but not Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from actuators.control import ServiceTimes, Weights
from actuators.errors import BundleError, DataError, DeepSchedError
from actuators.window import Window
from envs.baselines import InverseLatency
from envs.features import LatencyMemory
from tuning.advice import Advice, State
from tuning.bundle import Bundle


class NotANumberError(DeepSchedError):
    """The network's output is not finite. A retry cannot help."""


class Adviser:
    """One bundle, ready to act.

    Raises:
        BundleError: the network holds numbers that are not finite, or its residual is on an estimator of
            service times: those learn without end, so that no copy could answer without all windows before.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.topology = bundle, bundle.problem.topology
        if bundle.problem.options.action.estimator is not None:
            raise BundleError(
                "it sets the service times of expected_delay, not weights", where="bundle",
                remedy="judge it with `deepsched evaluate`, or train with decision.action.baseline=inverse_latency",
            )  # fmt: skip
        bad = [name for name, tensor in bundle.net.state_dict().items() if not bool(torch.isfinite(tensor).all())]
        if bad:
            raise BundleError(f"'{bad[0]}' of the network is not finite", where="policy.safetensors", remedy="train it")
        for module in bundle.net.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(_refuse_nan)
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
            DataError: no window at all.
        """
        if not windows:
            raise DataError("no window to act on", where="advice", remedy="give at least two readings")
        observer = self.bundle.problem.observer()
        if memory is not None:
            observer.memory = LatencyMemory(memory.fast_s.copy(), memory.slow_log.copy())
        after_first: LatencyMemory | None = None
        for window in windows:
            observation = observer.observe_window(window)
            after_first = after_first or LatencyMemory(observer.memory.fast_s.copy(), observer.memory.slow_log.copy())
        assert after_first is not None
        state = State(observation.posterior.argmax(axis=-1), observation.posterior, observation.novelty)
        advice = Advice(None, _weights(self._baseline.act(observation)), state, after_first)
        try:
            return replace(advice, policy=_weights(self._policy.act(observation)))
        except (DeepSchedError, RuntimeError, ArithmeticError, ValueError) as error:
            # Whatever goes wrong inside a policy, the baseline stands in for it; the guards say so.
            return replace(advice, problem=f"{type(error).__name__}: {error}"[:200])


def _weights(control: Weights | ServiceTimes) -> Weights:
    return control.as_weights() if isinstance(control, ServiceTimes) else control


def _refuse_nan(layer: Any, inputs: Any, output: torch.Tensor) -> None:
    if not bool(torch.isfinite(output).all()):
        raise NotANumberError("the network's output is not finite", where="policy")
