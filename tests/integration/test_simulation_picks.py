"""A real NGINX and the simulated one pick the same servers, request by request."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actuators.process import ManagedProcess
from envs.balancers import clock_s, note_result, pick_least_conn, pick_round_robin
from envs.draws import compiled
from envs.lane import PEER, RULES

pytestmark = pytest.mark.nginx

PICKS = 1000


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket: no port to choose."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


@contextmanager
def nginx_over(folder: Path, servers: list[str], extra: str = "", alive: int | None = None) -> Iterator[UnixConnection]:
    """An NGINX whose upstream has servers 0, 1, …, each answering its number; those from `alive` on do not listen."""
    lines = "".join(f"server unix:{folder}/{i} {options};" for i, options in enumerate(servers))
    listeners = "".join(
        f'server {{ listen unix:{folder}/{i}; keepalive_requests 100000; location / {{ return 200 "{i}"; }} }}'
        for i in range(len(servers) if alive is None else alive)
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    config = folder / "nginx.conf"
    config.write_text(
        f"""daemon off; master_process off; pid {folder}/pid; error_log stderr crit;
        events {{ worker_connections 256; }}
        http {{ access_log off; {temporary}
        upstream group {{ {extra} {lines} }}
        server {{ listen unix:{folder}/front; keepalive_requests 100000; location / {{ proxy_pass http://group; }} }}
        {listeners} }}"""
    )
    command = ["/usr/sbin/nginx", "-p", str(folder), "-c", str(config)]
    with ManagedProcess(command, name="nginx", log_path=folder / "log") as process:
        process.wait_ready((folder / "front").exists)
        connection = UnixConnection(folder / "front")
        yield connection
        connection.close()


def real_picks(connection: UnixConnection, count: int = PICKS) -> list[int]:
    picks = []
    for _ in range(count):
        connection.request("GET", "/")
        picks.append(int(connection.getresponse().read()))
    return picks


@compiled
def _play(peers: Any, rules: Any, alive: Any, picks: Any, least_conn: Any) -> None:
    for k in range(len(picks)):
        tried = 0
        while True:
            if least_conn:
                server = pick_least_conn(peers, tried, clock_s(0.0), rules[0])
            else:
                server = pick_round_robin(peers, tried, clock_s(0.0), rules[0])
            peers[server].conns += 1
            failed = server >= alive
            note_result(peers[server], failed, clock_s(0.0), rules[0], False)
            if not failed:
                break
            tried |= 1 << server
        picks[k] = server


def simulated_picks(
    weights: list[int], *, down: tuple[int, ...] = (), alive: int = 99, max_fails: int = 1, least_conn: bool = False
) -> list[int]:
    peers, rules, picks = np.zeros(len(weights), PEER), np.zeros(1, RULES), np.zeros(PICKS, np.int64)
    peers["weight"] = peers["effective"] = weights
    peers["down"][list(down)] = 1
    rules["max_fails"], rules["fail_timeout_s"] = max_fails, 100_000
    _play(peers, rules, alive, picks, least_conn)
    return [int(pick) for pick in picks]


@pytest.mark.parametrize("weights", [[1, 1, 1], [5, 1, 1], [5, 3, 2], [100, 61, 7], [13, 100, 1, 42, 8]])
@pytest.mark.parametrize("method", ["", "least_conn;"])
def test_weighted_picks(short_dir: Path, weights: list[int], method: str) -> None:
    with nginx_over(short_dir, [f"weight={w}" for w in weights], method) as connection:
        assert real_picks(connection) == simulated_picks(weights, least_conn=bool(method))


def test_picks_without_a_server_that_is_down(short_dir: Path) -> None:
    with nginx_over(short_dir, ["weight=5", "weight=3 down", "weight=2"]) as connection:
        assert real_picks(connection) == simulated_picks([5, 3, 2], down=(1,))


@pytest.mark.parametrize("max_fails", [0, 1, 3])
def test_picks_beside_a_dead_server(short_dir: Path, max_fails: int) -> None:
    # The dead server's effective weight falls and recovers; passed over, it stays out of the sequence.
    options = [f"weight={w} max_fails={max_fails} fail_timeout=100000s" for w in (5, 3, 2, 4)]
    with nginx_over(short_dir, options, alive=3) as connection:
        assert real_picks(connection) == simulated_picks([5, 3, 2, 4], alive=3, max_fails=max_fails)
