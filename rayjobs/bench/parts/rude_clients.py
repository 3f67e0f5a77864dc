"""Clients that go away before their answer, and such that send or read slowly, at random times of a seed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from actuators.contract.topology import Topology

_BODY = b"username=username_5&user_id=5&text=" + b"x" * 240 + b"&media_ids=[]&media_types=[]&post_type=0"
_QUERY = "?user_id=5&start=0&stop=10"
_SLOW_S, _PIECES = 1.0, 20
"""How long a slow client takes to send its body or to read its answer, and in how many pieces."""
_LIMIT_S = 60.0


@contextlib.contextmanager
def rude_clients(address: str, topology: Topology, aborts_per_s: float, slow_per_s: float, patience_s: float, seed: int
                 ) -> Iterator[Mapping[str, int]]:  # fmt: skip
    """Sends such requests to ``HOST:PORT`` until the block ends; what came of them so far, by outcome.

    Outcomes: ``aborted`` (the client has left), ``early`` (its answer came before), ``answered`` and ``failed`` (slow
    clients with an answer below 500 and without one), ``refused`` (no connection).

    Args:
        patience_s: a client leaves after a time drawn between 0 and this.
    """
    told: Counter[str] = Counter()
    ended = threading.Event()
    crowd = _Crowd(address, topology, patience_s, np.random.default_rng(seed), told)
    with ThreadPoolExecutor(1, "rude-clients") as pool:
        living = pool.submit(asyncio.run, crowd.live(aborts_per_s, slow_per_s, ended))
        try:
            yield told
        finally:
            ended.set()
            living.result()


class _Crowd:
    """All clients of one event loop."""

    def __init__(
        self, address: str, topology: Topology, patience_s: float, generator: np.random.Generator, told: Counter[str]
    ) -> None:
        self._host, _, port = address.rpartition(":")
        self._port, self._patience_s = int(port), patience_s
        self._generator, self._told = generator, told
        self._reads = [group for group in topology.groups if group.method == "GET"]
        (self._post,) = [group for group in topology.groups if group.method == "POST"]

    async def live(self, aborts_per_s: float, slow_per_s: float, ended: threading.Event) -> None:
        """Begins clients until `ended`, and waits for those that are on their way."""
        total = aborts_per_s + slow_per_s
        async with asyncio.TaskGroup() as tasks:
            while not ended.is_set():
                await asyncio.sleep(self._generator.exponential(1.0 / total))
                kind = self._abort if self._generator.random() < aborts_per_s / total else self._slow
                tasks.create_task(self._counted(kind()))

    async def _counted(self, client: Coroutine[Any, Any, str]) -> None:
        try:
            async with asyncio.timeout(_LIMIT_S):
                self._told[await client] += 1
        except ConnectionRefusedError:
            self._told["refused"] += 1
        except (OSError, TimeoutError):
            self._told["failed"] += 1

    async def _abort(self) -> str:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(self._get())
            try:
                async with asyncio.timeout(self._generator.uniform(0.0, self._patience_s)):
                    await reader.read(1)
            except TimeoutError:
                return "aborted"
            return "early"
        finally:
            writer.transport.abort()

    async def _slow(self) -> str:
        sock = socket.socket()
        sock.setblocking(False)
        # The least that Linux gives: an answer of some kilobytes does not fit into it.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (self._host, self._port))
        except OSError:
            sock.close()
            raise
        reader, writer = await asyncio.open_connection(sock=sock, limit=512)
        try:
            if self._generator.random() < 0.5:
                await self._send_slowly(writer)
            else:
                writer.write(self._get())
            status = int((await reader.readline()).split()[1])
            while await reader.read(512):
                await asyncio.sleep(_SLOW_S / _PIECES)
            return "answered" if status < 500 else "failed"
        except IndexError:
            return "failed"  # NGINX has closed the connection without a word.
        finally:
            writer.transport.abort()

    async def _send_slowly(self, writer: asyncio.StreamWriter) -> None:
        writer.write(
            f"POST {self._post.path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Length: {len(_BODY)}\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\n\r\n".encode()
        )
        size = -(-len(_BODY) // _PIECES)
        for first in range(0, len(_BODY), size):
            writer.write(_BODY[first : first + size])
            await writer.drain()
            await asyncio.sleep(_SLOW_S / _PIECES)

    def _get(self) -> bytes:
        path = self._reads[int(self._generator.integers(len(self._reads)))].path
        return f"GET {path}{_QUERY} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode()
