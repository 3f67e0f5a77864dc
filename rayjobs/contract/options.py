"""Options of `deepsched contract`. Import nothing heavy here: `--help` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from actuators.options import GIVEN, NOT_GIVEN, Only, Options

PORTS = range(9101, 9111)
LEAST_RATE_RPS = 200.0


class ContractOptions(Options):
    """Which proxies, and how they are controlled."""

    proxy: str = ""
    """http://HOST:PORT of your proxy, which passes every path below /emulated/ to the test servers of --servers. All
    load goes to this address only. When not given, programs that are installed here are tested."""
    servers: Annotated[tuple[str, ...], Only(proxy=GIVEN)] = Field(
        tuple(f"127.0.0.1:{port}" for port in PORTS), min_length=4, max_length=32
    )
    """Loopback addresses where the test servers start; your proxy balances over these only. One of them is made slow,
    one fails, and two refuse connections for a while."""
    weights_command: Annotated[str, Only(proxy=GIVEN)] = ""
    """Program with arguments that applies weights; {weights} stands for one number per server, separated by commas, in
    the order of --servers. When not given, weights are not tested."""
    reload_command: Annotated[str, Only(proxy=GIVEN)] = ""
    """Program with arguments that makes the proxy reload its configuration. When not given, reloads are not tested."""
    proxies: Annotated[tuple[str, ...], Only(proxy=NOT_GIVEN)] = ()
    """Proxies that are started here: expected_delay and least_conn (ours), or programs of docs/peers.md. When
    not given, the first one and every installed program."""
    rate_rps: float = Field(1000.0, ge=LEAST_RATE_RPS, le=5000)
    """Requests per second, to all servers together; they take 10, 20 and 60 ms. At most 70 % of what all servers but
    one can do."""
    workers: int = Field(4, ge=1, le=64)
    """Requests that a test server serves at once."""
    seed: int = Field(1, ge=0)
    """Fixes arrivals and service times."""
    out: Path | None = None
    """Folder for the run's folder; `runs` when not given."""
