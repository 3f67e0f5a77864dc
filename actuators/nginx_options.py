"""Options of an NGINX that we run ourselves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from actuators.control import BalancingMethod
from actuators.options import Options


class NginxOptions(Options):
    """How the testbed's own NGINX runs."""

    binary: str = "nginx"
    """Program, by name or path."""
    method: BalancingMethod = "least_conn"
    """Balancing method at the start."""
    statistics: Literal["auto", "vts", "lua"] = "auto"
    """Who counts: nginx-module-vts, our status.lua, or vts where it is installed."""
    actuation: Literal["auto", "memory", "reload"] = "auto"
    """How controls are applied: in memory (Lua, no reload), by reload, or in memory where the method allows it."""
    worker_processes: int = Field(default=1, ge=1, le=64)
    """NGINX worker processes."""
    worker_connections: int = Field(default=4096, ge=64)
    """Connections per worker, clients and servers together."""
    upstream_keepalive: int = Field(default=64, ge=1)
    """Idle connections to the servers of a group that a worker keeps."""
    max_fails: int = Field(default=1, ge=0)
    """Failed attempts after which a server pauses for `fail_timeout_s`; 0 never pauses."""
    fail_timeout_s: int = Field(default=10, ge=1)
    """Seconds of that pause."""
    connect_timeout_s: float = Field(default=2.0, gt=0)
    """Seconds to connect to a server."""
    read_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds between two reads from (and writes to) a server."""
    shutdown_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds that a worker of an old configuration may take to finish its requests."""
    max_body_bytes: int = Field(default=2**20, ge=1024)
    """Largest request body; it is buffered in memory."""
    workers_per_server: float = Field(default=1.0, ge=0.25)
    """Requests that a server serves at once, as `expected_delay` believes until service times tell; rather too low."""
    load_balancers: int = Field(default=1, ge=1)
    """NGINXs before the same servers that share the traffic equally; `expected_delay` multiplies what it sees."""
    start_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds until NGINX must answer."""
