"""Connects stand-in servers with the stages that they share: `python -m actuators.social_network.stages_endpoint`.

A server sends a line for each request that has ended its work there, and gets one back when the request has passed all
stages of the script: ``enter ID ENDPOINT SEQUENCE`` and ``gone ID`` from the server, ``ID`` to it. The admin listener,
on loopback as well, has POST /play and GET /counters. Ends on SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import uvloop

from actuators.errors import DeepSchedError
from actuators.files import write_json
from actuators.social_network.http_protocol import Exchange, Listener
from actuators.social_network.stages import Stages, StagesPlan, Visitor

_LONGEST_LINE = 4096


class _ServerConnection(asyncio.Protocol):
    """The lines of one server."""

    def __init__(self, stages: Stages) -> None:
        self._stages, self._rest = stages, b""
        self._visitors: dict[bytes, Visitor] = {}
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        for visitor in self._visitors.values():
            visitor.gone = True

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            words = line.split(b" ")
            if words[0] == b"enter" and len(words) == 4:
                self._enter(words[1], words[2].decode("latin-1"), words[3].decode("latin-1"))
            elif words[0] == b"gone" and len(words) == 2 and words[1] in self._visitors:
                self._visitors[words[1]].gone = True
        if len(self._rest) > _LONGEST_LINE and self._transport is not None:
            self._transport.abort()

    def _enter(self, number: bytes, endpoint: str, sequence: str) -> None:
        visitor = Visitor(endpoint, sequence, lambda: self._leave(number))
        self._visitors[number] = visitor
        self._stages.enter(visitor)

    def _leave(self, number: bytes) -> None:
        del self._visitors[number]
        if self._transport is not None:
            self._transport.write(number + b"\n")


class StagesClient(asyncio.Protocol):
    """A server's connection to the stages.

    Args:
        failed: called once, with what was at the stages, when the connection is lost.
    """

    def __init__(self, failed: Callable[[list[Exchange]], None]) -> None:
        self._failed, self._rest, self._number = failed, b"", 0
        self._inside: dict[bytes, tuple[Exchange, Callable[[Exchange], None]]] = {}
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        inside, self._inside = self._inside, {}
        self._failed([exchange for exchange, _ in inside.values()])

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            found = self._inside.pop(line, None)
            if found is not None:
                exchange, passed = found
                passed(exchange)

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def enter(self, exchange: Exchange, passed: Callable[[Exchange], None]) -> None:
        """Sends the request through the stages; `passed` is called when it has passed them."""
        assert self._transport is not None
        self._number += 1
        number = b"%d" % self._number
        self._inside[number] = exchange, passed
        words = b"enter %b %b %b\n" % (number, exchange.request_type.encode(), exchange.sequence.encode("latin-1"))
        exchange.on_gone = lambda: self._gone(number)
        self._transport.write(words)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _gone(self, number: bytes) -> None:
        if self._transport is not None and number in self._inside:
            self._transport.write(b"gone %b\n" % number)


@dataclass
class _Admin:
    """The admin listener: POST /play ``{"plan": StagesPlan, "start_s": …}``, GET /counters."""

    stages: Stages
    _following: list[asyncio.TimerHandle] = field(default_factory=list)

    def handle(self, exchange: Exchange) -> None:
        try:
            if exchange.path == "/play":
                self._play(json.loads(exchange.data))
                exchange.answer(200, b"{}")
            elif exchange.path == "/counters":
                exchange.answer(200, json.dumps(self.stages.status()).encode())
            else:
                exchange.fail(404, f"unknown path '{exchange.path}'")
        except (ValueError, TypeError, KeyError) as error:
            exchange.fail(400, repr(error))

    def _play(self, message: Mapping[str, Any]) -> None:
        plan, start_s = StagesPlan.from_json(message["plan"]), float(message["start_s"])
        for handle in self._following:
            handle.cancel()
        self.stages.play(plan)
        loop = asyncio.get_running_loop()
        self._following = [
            loop.call_later(max(start_s + each.at_s - time.monotonic(), 0.0), self.stages.behave, each)
            for each in plan.behaviours
        ]


async def _serve(ready_file: Path) -> None:
    loop = asyncio.get_running_loop()
    stages = Stages(loop)
    public = await loop.create_server(lambda: _ServerConnection(stages), "127.0.0.1", 0)
    admin = Listener(_Admin(stages).handle, "127.0.0.1", 0)
    await admin.open()
    host, port = public.sockets[0].getsockname()
    write_json(ready_file, {"address": f"{host}:{port}", "admin": admin.address})
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()
    public.close()
    admin.close()
    stages.close()


def main() -> int:
    """Serves until SIGTERM; 2 with one line on stderr when it cannot start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ready-file", type=Path, required=True, help="receives both addresses as JSON")
    arguments = parser.parse_args()
    try:
        uvloop.run(_serve(arguments.ready_file))
    except DeepSchedError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
