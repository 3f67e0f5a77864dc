"""Connections of uvicorn, which bounds neither their number before a request nor the time that a client may take."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADERS_S = 5.0
"""Longest time in which the headers of a request must arrive; an idle connection is closed after the same time."""
UNREAD_S = 30.0
"""Longest time that a client may leave an answer unread."""
MOST_CONNECTIONS = 256
"""With more, the one that has waited longest for a request is closed."""
_turns = itertools.count()
"""Counts waits for a request: the clock of uvloop has whole milliseconds, within which many begin."""
_NO_LINGER = struct.pack("ii", 1, 0)


class BoundedConnection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # of httptools, or of h11 without it
    """One connection; `connections` are all of the server."""

    _late: asyncio.TimerHandle | None = None
    _turn = 0
    _unread: asyncio.TimerHandle | None = None
    _answering: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._expect_headers()
        if len(self.connections) > MOST_CONNECTIONS:
            waiting = (one for one in self.connections if one._late is not None)
            min(waiting, key=lambda one: one._turn).transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._expect_headers()
        elif self._late is not None:
            self._late.cancel()
            self._late = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_S, self._drop)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._late, self._unread):
            if timer is not None:
                timer.cancel()
        if self._answering is not None:
            # uvicorn tells it to the request that came last. Of several it is another one that writes, and fails.
            self._answering.disconnected = True
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _drop(self) -> None:
        """Ends the connection and what the kernel holds of the answer, which it would offer for minutes."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    def _expect_headers(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEADERS_S, self.transport.abort)
            self._turn = next(_turns)
