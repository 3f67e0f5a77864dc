"""Options of `deepsched contract`. Import nothing heavy here: `--help` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from actuators.options import GIVEN, NOT_GIVEN, Only, Options

PORTS = range(9101, 9111)


class ContractOptions(Options):
    """Which proxies, and how they are controlled."""

    proxy: str = ""
    """http://HOST:PORT of your proxy, which passes every path below /emulated/ to the test servers of --servers. All
    load goes to this address and no other. Programs that are installed here when not given."""
    servers: Annotated[tuple[str, ...], Only(proxy=GIVEN)] = Field(
        tuple(f"127.0.0.1:{port}" for port in PORTS), min_length=4, max_length=32
    )
    """Loopback addresses where the test servers start; your proxy balances over these and no others. One of them is
    made slow, fails and goes away."""
    weights_command: Annotated[str, Only(proxy=GIVEN)] = ""
    """Program with arguments that puts weights in force; {weights} stands for one number per server with commas, in the
    order of --servers. Weights are not judged when not given."""
    reload_command: Annotated[str, Only(proxy=GIVEN)] = ""
    """Program with arguments that makes the proxy read its configuration again. Not judged when not given."""
    proxies: Annotated[tuple[str, ...], Only(proxy=NOT_GIVEN)] = ()
    """Proxies that are started here: expected_delay and least_conn (ours), or programs of docs/peers.md. When
    not given, the first one and every program that is installed."""
    rate_rps: float = Field(1000.0, ge=200, le=5000)
    """Requests per second, to all servers together; they take 10, 20 and 60 ms."""
    workers: int = Field(4, ge=1, le=64)
    """Requests that a test server serves at once."""
    seed: int = Field(1, ge=0)
    """Fixes arrivals and service times."""
    out: Path | None = None
    """Folder for the run's folder; `runs` when not given."""
