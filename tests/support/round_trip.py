"""What every actuator of another balancer's weights does."""

from __future__ import annotations

from collections.abc import Sequence

from actuators.contract.control import Weights
from actuators.external.actuator import parse_weights
from actuators.external.envoy import EnvoyActuator
from actuators.external.haproxy import HaproxyActuator


def check_round_trip(actuator: EnvoyActuator | HaproxyActuator, servers: Sequence[str]) -> None:
    """Equal weights at first; a change is made once, read back, and taken back."""
    first = actuator.control()
    assert first == Weights.equal(actuator.topology)
    changed = parse_weights([f"{servers[0]}=100", f"{servers[1]}=down"], first)
    assert actuator.apply(changed).changed
    assert not actuator.apply(changed).changed
    assert actuator.control() == changed
    back = actuator.restore(first)
    assert back.changed
    assert back.missing == back.added == ()
    assert actuator.control() == first
