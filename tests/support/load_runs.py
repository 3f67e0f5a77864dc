"""Short runs of the load engine against a scripted server, for its tests."""

from typing import Any

from actuators.contract.script import RateStep, Stream
from actuators.contract.topology import social_network
from actuators.load.engine import LoadEngine
from actuators.load.summary import LoadSummary
from tests.support.http_server import ScriptedServer

TOPOLOGY = social_network()


def constant(rate_rps: float, *types: str) -> list[Stream]:
    return [Stream(name, (RateStep(0.0, rate_rps, "fixed"),)) for name in types or TOPOLOGY.request_types]


def run(
    engine: LoadEngine, server: ScriptedServer, streams: list[Stream], *, within_s: float = 60.0, **options: Any
) -> LoadSummary:
    """Runs to the end; the last answers must come within that time."""
    options = {"seed": 1, "duration_s": 0.5, "window_s": 0.1, **options}
    engine.start(server.address, TOPOLOGY, streams, **options)
    return engine.finish(within_s)
