"""Nodes with fake conductors: for what a thousand testbeds cost the process that drives them, on one machine.

A node is a real relay, an actor that gets and sends real messages. Behind it are no actors but testbeds that only wait;
they are stepped in turn, and the first one's wait is that of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rayjobs.bench.parts.waiting_testbed import make_waiting
from tuning.live.conductor import Stepped, TestbedDriver
from tuning.live.relay import RELAY, Answer, Answers, Channel, Orders, Relayed


class InTurn:
    """Implements `relay.Channel` over waiting testbeds of this process."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._drivers: dict[str, TestbedDriver] = {}
        self._orders: Orders | None = None

    def send(self, orders: Orders) -> None:
        self._orders = orders

    def receive(self) -> Answers:
        orders = self._orders
        assert orders is not None
        # Not in the constructor: a relay gets this object pickled.
        if not self._drivers:
            self._drivers = {name: TestbedDriver(name, make_waiting, "least_conn") for name in self.names}
        stepped: list[Stepped] = [
            self._drivers[name].step(orders.control(index), orders.interval_s)
            for index, name in enumerate(orders.steps)
        ]
        # An episode begins at once: with an interval each, the testbeds of a node would wait one after the other.
        stepped += [self._drivers[name].reset(orders.scenario, seed, 0.0) for name, seed in orders.resets]
        return Answers.of([Answer(each) for each in stepped])

    def close(self) -> None:
        """The testbeds hold nothing."""


class FakeNodes:
    """Implements `vector_env.Leasing`: nodes with `per_node` waiting testbeds each.

    Args:
        relayed: behind real relays; else in the process that drives them.
    """

    def __init__(self, per_node: int, *, relayed: bool = True) -> None:
        self._per_node, self._relayed = per_node, relayed

    def lease(self, count: int) -> dict[str, Any]:
        return {f"fake-{number}": None for number in range(count)}

    def channels(self, leased: Mapping[str, Any]) -> tuple[list[Channel], dict[str, str]]:
        names = list(leased)
        parts = [names[first : first + self._per_node] for first in range(0, len(names), self._per_node)]
        channels: list[Channel] = [
            Relayed(part, RELAY.remote(InTurn(part))) if self._relayed else InTurn(part) for part in parts
        ]
        return channels, {name: f"node-{number}" for number, part in enumerate(parts) for name in part}

    def release(self) -> None:
        """Nobody else could lease them."""
