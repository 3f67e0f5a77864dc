"""Whether an NGINX can hold requests at all."""

from __future__ import annotations

from actuators.errors import ActuationError
from actuators.nginx.control_endpoint import beside
from actuators.statistics.reader import StatusReader


def require_slots(control_url: str) -> None:
    """Raises ActuationError when the locations of this NGINX ask for no slot, StatusError when it cannot be read."""
    with StatusReader(beside(control_url, "status")) as reader:
        balancer = reader.snapshot().balancer
    if balancer is None or balancer.holding is None or balancer.holding.state == "absent":
        remedy = "write its snippet with --set memory.late_binding=true"
        raise ActuationError("the locations of this NGINX ask for no slot", where=control_url, remedy=remedy)
