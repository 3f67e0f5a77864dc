"""A port for a program that we start ourselves."""

from __future__ import annotations

import socket

from actuators.errors import ProcessError


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago; another program may take it first. Raises ProcessError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.bind((host, 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ProcessError(
            f"cannot listen on {host}: {error.strerror}", remedy="use an address of this machine"
        ) from error
