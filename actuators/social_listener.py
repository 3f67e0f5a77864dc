"""A listening socket that can be closed and opened again on the same port, as a crash and a recovery do."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from actuators.errors import ServiceError
from actuators.social_http import Exchange, HttpConnection

_BACKLOG = 4096


class Listener:
    """Accepts connections for `handle` between `open` and `close`.

    While it is closed, a bound socket that does not listen keeps the port: the kernel refuses connections.
    Binds at once; raises ServiceError when the port is taken.
    """

    def __init__(self, handle: Callable[[Exchange], None], host: str, port: int) -> None:
        self._handle = handle
        self._connections: set[HttpConnection] = set()
        self._server: asyncio.Server | None = None
        if port:
            # Sharing a port is for our own two sockets only; another program's listener is an error.
            _bind(host, port, shared=False).close()
        self._anchor = _bind(host, port)
        self._host, self.port = self._anchor.getsockname()[:2]

    @property
    def address(self) -> str:
        return f"[{self._host}]:{self.port}" if ":" in self._host else f"{self._host}:{self.port}"

    async def open(self) -> None:
        """Listens; nothing when it already does."""
        if self._server is None:
            loop, listener = asyncio.get_running_loop(), _bind(self._host, self.port)
            self._server = await loop.create_server(
                lambda: HttpConnection(self._handle, self._connections), sock=listener, backlog=_BACKLOG
            )

    def close(self) -> int:
        """Refuses connections from now on and resets the open ones; how many it reset."""
        if self._server is not None:
            self._server.close()
            self._server = None
        open_connections = list(self._connections)
        for connection in open_connections:
            connection.reset()
        return len(open_connections)


def _bind(host: str, port: int, *, shared: bool = True) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise ServiceError(f"cannot listen: {error}", where=f"{host}:{port}", remedy="choose another port") from error
    return bound
