"""Which server a real NGINX picks, request by request, and which one the simulator picks."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from actuators.nginx_detect import detect
from actuators.process import ManagedProcess
from envs.balancers import clock_s, note_result, pick_least_conn, pick_round_robin
from envs.compiling import compiled
from envs.lane import PEER, RULES

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
def nginx_over(
    folder: Path, servers: Sequence[str], extra: str = "", alive: int | None = None
) -> Iterator[UnixConnection]:
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
    command = [str(detect().binary), "-p", str(folder), "-c", str(config)]
    with ManagedProcess(command, name="nginx", log_path=folder / "log") as process:
        process.wait_ready((folder / "front").exists)
        connection = UnixConnection(folder / "front")
        yield connection
        connection.close()


def real_picks(connection: UnixConnection, count: int = PICKS) -> list[int]:
    """Servers that answered `count` requests sent one after the other."""
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
    weights: Sequence[int], *, down: tuple[int, ...] = (), alive: int = 99, max_fails: int = 1, least_conn: bool = False
) -> list[int]:
    """What the simulator's own functions pick; servers from `alive` on refuse, as in `nginx_over`."""
    peers, rules, picks = np.zeros(len(weights), PEER), np.zeros(1, RULES), np.zeros(PICKS, np.int64)
    peers["weight"] = peers["effective"] = weights
    peers["down"][list(down)] = 1
    rules["max_fails"], rules["fail_timeout_s"] = max_fails, 100_000
    _play(peers, rules, alive, picks, least_conn)
    return [int(pick) for pick in picks]
