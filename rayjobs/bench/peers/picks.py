"""Which server a real program picks, request by request, and which one the simulator's rule picks in the same state.

The servers hold every request until they are told to answer, so that the requests in flight at each pick are known
exactly, on however busy a machine.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from actuators.contract.arrays import IntArray
from actuators.contract.topology import Group, Topology
from actuators.errors import LoadError
from actuators.testbed.peers import Peer
from envs.simulator import lane, rivals
from envs.simulator.balancers import clock_s, pick_random_two
from envs.simulator.compiling import compiled

SERVERS = 5
MOST_HELD = 4 * SERVERS
"""Requests in flight walk at random between 0 and this."""
PATH = "/picks"
_TIMEOUT_S = 10.0
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_MANY = 1_000_000


@dataclass(frozen=True)
class Picks:
    """A series of picks.

    Attributes:
        in_flight: ``[picks, servers]``, before each.
        chosen: ``[picks]``.
    """

    in_flight: IntArray
    chosen: IntArray

    @property
    def ranks(self) -> IntArray:
        """``[picks]``: how many servers had fewer requests in flight than the chosen one."""
        own = self.in_flight[np.arange(len(self.chosen)), self.chosen]
        ranks: IntArray = (self.in_flight < own[:, None]).sum(axis=1)
        return ranks

    @property
    def ties(self) -> IntArray:
        """``[picks]``: how many servers had as many as the chosen one, itself among them."""
        own = self.in_flight[np.arange(len(self.chosen)), self.chosen]
        ties: IntArray = (self.in_flight == own[:, None]).sum(axis=1)
        return ties


def real_picks(name: str, work_dir: Path, count: int, seed: int) -> Picks:
    """Of a program of `actuators.testbed.peers`, over new connections.

    Raises LoadError when it gives no answer or sends a request twice; errors as `Peer`.
    """
    return asyncio.run(_play(name, work_dir, count, seed))


@dataclass
class _Servers:
    """They count and hold what comes; `arrived` has the server and the event that lets it answer."""

    arrived: asyncio.Queue[tuple[int, asyncio.Event]] = field(default_factory=asyncio.Queue)
    addresses: tuple[str, ...] = ()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            ports = []
            for index in range(SERVERS):
                handler = self._handler(index)
                server = await stack.enter_async_context(await asyncio.start_server(handler, "127.0.0.1", 0))
                ports.append(server.sockets[0].getsockname()[1])
            self.addresses = tuple(f"127.0.0.1:{port}" for port in ports)
            yield

    def _handler(self, index: int) -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    await reader.readuntil(b"\r\n\r\n")
                    answer = asyncio.Event()
                    self.arrived.put_nowait((index, answer))
                    await answer.wait()
                    writer.write(_ANSWER)
                    await writer.drain()
            writer.close()

        return serve


async def _play(name: str, work_dir: Path, count: int, seed: int) -> Picks:
    servers, generator = _Servers(), np.random.default_rng(seed)
    in_flight, chosen = np.zeros((count, SERVERS), np.int64), np.zeros(count, np.int64)
    now = np.zeros(SERVERS, np.int64)
    async with servers.listening():
        topology = Topology((Group("all", "all", "GET", PATH, 2.0, servers.addresses),))
        # The programs start and end in a thread: they connect to the servers meanwhile.
        peer = await asyncio.to_thread(Peer, name, topology, work_dir)
        held: list[tuple[int, asyncio.Event, asyncio.Task[None]]] = []
        try:
            for pick in range(count):
                client = asyncio.create_task(_ask(peer.address))
                server, answer = await asyncio.wait_for(servers.arrived.get(), _TIMEOUT_S)
                in_flight[pick], chosen[pick] = now, server
                now[server] += 1
                held.append((server, answer, client))
                keep = int(generator.integers(0, MOST_HELD)) if generator.random() < 0.2 else len(held) - 1
                while len(held) > keep:
                    server, answer, client = held.pop(int(generator.integers(len(held))))
                    answer.set()
                    await asyncio.wait_for(client, _TIMEOUT_S)
                    now[server] -= 1
                if not servers.arrived.empty():
                    raise LoadError(f"{name} sent a request twice", remedy="run it again")
        except TimeoutError as error:
            raise LoadError(f"{name} did not pass a request on within {_TIMEOUT_S:g} s") from error
        finally:
            for _, answer, client in held:
                answer.set()
                client.cancel()
            await asyncio.to_thread(peer.close)
    return Picks(in_flight, chosen)


async def _ask(address: str) -> None:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"GET {PATH} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise LoadError(f"a request was answered with {answer[:40]!r}", where=address)
    finally:
        writer.close()


def simulated_picks(rule: str, in_flight: IntArray, seed: int) -> Picks:
    """What a rule of the simulator picks when so many requests are in flight.

    Args:
        rule: `least_request` (two draws, maybe of the same server), `random_two` (two different servers),
            `random_choose` (Caddy's two), or `shared_least_conn` (the least, ties by smooth weighted round robin),
            which goes on from pick to pick.
    """
    peers, rules = np.zeros((1, SERVERS), lane.PEER), np.zeros(1, lane.RULES)
    state, chosen = np.zeros(1, lane.STATE), np.zeros(len(in_flight), np.int64)
    peers["weight"] = peers["effective"] = 1
    state["pick_key"] = seed
    codes = {"random_two": 0, **{name: rivals.RIVAL_CODES[name] for name in RIVALS}}
    room = np.full(SERVERS, _MANY)
    _pick_all(peers, room, codes[rule], in_flight, rules, state, np.zeros(1, np.int64), chosen)
    return Picks(in_flight, chosen)


RIVALS = ("least_request", "random_choose", "shared_least_conn")


@compiled
def _pick_all(
    peers: Any, room: Any, method: int, in_flight: Any, rules: Any, state: Any, tried: Any, chosen: Any
) -> None:
    clock = clock_s(0.0)
    for pick in range(len(chosen)):
        for server in range(len(room)):
            peers[0, server].conns = in_flight[pick, server]
        if method == rivals.LEAST_REQUEST:
            chosen[pick] = rivals.pick_least_request(peers, method, 0, tried, clock, rules[0], state[0])
        elif method == rivals.RANDOM_CHOOSE:
            chosen[pick] = rivals.pick_random_choose(peers, method, 0, tried, clock, rules[0], state[0])
        elif method == rivals.SHARED_LEAST_CONN:
            chosen[pick] = rivals.pick_shared_least_conn(peers, room, method, 0, tried, clock, rules[0])
        else:
            chosen[pick] = pick_random_two(peers[0], tried, clock, rules[0], state[0])
