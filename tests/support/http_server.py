"""A small scripted HTTP server in a thread, for tests of clients: answers, stalls or breaks as it is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.support.waiting import PATIENCE_S

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HANG = b"hang"
"""Answer that never comes."""
LATER = b"later"
"""Answer that comes with `answer_next`."""
CLOSE = b""
"""Answer that closes the connection without a byte."""


@dataclass(frozen=True)
class Received:
    """One request as the server saw it; `served` counts the requests before it on its connection."""

    line: str
    headers: dict[str, str]
    body: bytes
    served: int
    at_s: float


class ScriptedServer:
    """Answers each request with the bytes that `answer(request)` returns; closes after those without a length.

    Attributes:
        requests: everything received, in order.
        piece_bytes: writes answers in pieces of this size; 0 as a whole.
        pause_s: seconds between two pieces.
    """

    def __init__(self, answer: Callable[[Received], bytes] = lambda _: OK, *, host: str = "127.0.0.1") -> None:
        self._host = host
        self.requests: list[Received] = []
        self.piece_bytes, self.pause_s = 0, 0.0
        self._answer = answer
        self._waiting: list[asyncio.Future[bytes]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def waiting(self) -> int:
        """Requests whose answer comes `LATER`."""
        return len(self._waiting)

    def answer_next(self, answer: bytes = OK) -> None:
        """Answers the request that has waited longest."""
        self._loop.call_soon_threadsafe(self._waiting.pop(0).set_result, answer)

    def stall(self, duration_s: float) -> None:
        """Stops the whole server, once, for a while."""
        self._loop.call_soon_threadsafe(lambda: threading.Event().wait(duration_s))

    def refuse(self) -> None:
        """Takes no more connections from now on."""
        self._loop.call_soon_threadsafe(self._server.close)

    def die(self) -> None:
        """As the end of its process: no connection stays, new ones are refused."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(PATIENCE_S)

    def revive(self) -> None:
        """Listens again, on the same port."""
        start = asyncio.start_server(self._serve, self._host, self._port, backlog=4096)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(PATIENCE_S)

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def __enter__(self) -> Self:
        self._thread.start()
        start = asyncio.start_server(self._serve, self._host, 0, backlog=4096)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(PATIENCE_S)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.die()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served = 0
        try:
            while not writer.is_closing():
                request = await self._read(reader, served)
                self.requests.append(request)
                served += 1
                answer = self._answer(request)
                if answer == HANG:
                    await asyncio.Event().wait()
                if answer == LATER:
                    self._waiting.append(self._loop.create_future())
                    answer = await self._waiting[-1]
                pieces = [answer] if self.piece_bytes == 0 else _cut(answer, self.piece_bytes)
                for piece in pieces:
                    writer.write(piece)
                    await asyncio.sleep(self.pause_s)
                head = answer.lower()
                if b"content-length" not in head and b"chunked" not in head and b" 204 " not in head:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, served: int) -> Received:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *rest = head.strip().split("\r\n")
        headers = {name: value.strip() for name, _, value in (row.partition(":") for row in rest)}
        body = await reader.readexactly(int(headers.get("Content-Length", 0)))
        return Received(line, headers, body, served, self._loop.time())


def _cut(text: bytes, size: int) -> list[bytes]:
    return [text[start : start + size] for start in range(0, len(text), size)]
