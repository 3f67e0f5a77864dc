"""A policy together with its observer, steering one testbed: windows in, controls out."""

from __future__ import annotations

from typing import Protocol

from actuators.control import BalancingMethod, Control, Weights
from actuators.topology import Topology
from actuators.window import Window
from envs.baselines import Policy
from envs.observation import Observation, Observer


class Steered(Protocol):
    """What steers a testbed: `tuning.judge.Controller`, as wrappers in this layer see it."""

    name: str
    method: BalancingMethod

    def begin(self, topology: Topology) -> Control: ...
    def decide(self, window: Window) -> Control | None: ...


class FixedController:
    """Equal weights for ever: NGINX as shipped with this balancing method."""

    def __init__(self, name: str, method: BalancingMethod) -> None:
        self.name, self.method = name, method

    def begin(self, topology: Topology) -> Control:
        return Weights.equal(topology)

    def decide(self, window: Window) -> Control | None:
        return None


class Recorded:
    """A policy that remembers every observation it acted on, for reports about short runs."""

    def __init__(self, policy: Policy) -> None:
        self.name, self._policy = policy.name, policy
        self.seen: list[Observation] = []

    def act(self, observation: Observation) -> Control:
        self.seen.append(observation)
        return self._policy.act(observation)


class PolicyController:
    """Observes every usable window and asks the policy; keeps its last control over a new block.

    A window with a fault is not observed and changes nothing.

    Args:
        first: control before the first decision; equal weights when None.
    """

    def __init__(
        self, name: str, method: BalancingMethod, policy: Policy, observer: Observer, first: Control | None = None
    ) -> None:
        self.name, self.method, self._policy, self._observer = name, method, policy, observer
        self._control = first

    def begin(self, topology: Topology) -> Control:
        return self._control if self._control is not None else Weights.equal(topology)

    def decide(self, window: Window) -> Control | None:
        if not window.usable or window.requests.sum() == 0:
            return None
        self._control = self._policy.act(self._observer.observe_window(window))
        return self._control
