"""Real stand-in servers over time: interference, crashes, hangs, a killed process, writers at once."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import threading
import time
from pathlib import Path

import pytest
import requests

from actuators.contract.script import Behaviour
from actuators.errors import ProcessError, ServiceError
from actuators.social_network.capacity import ServerPlan
from actuators.social_network.server import SocialNetworkServer
from actuators.social_network.store import create_database
from tests.support.social_site import OPTIONS, READ, USER, Servers, call, compose, timeline
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.thorough


def test_a_new_speed_holds_for_the_work_in_progress(server: SocialNetworkServer) -> None:
    server.play_plan(ServerPlan(workers=1, service_s=(("home_read", 30.0),)))
    answered: list[int] = []
    thread = threading.Thread(target=lambda: answered.append(call(server.address, READ)[0]))
    thread.start()
    wait_until(lambda: server.counters()["busy"] == 1)
    server.behave(Behaviour(0.0, 0, speed=1000.0))
    thread.join(timeout=PATIENCE_S)
    assert answered == [200]


def test_a_crash_resets_and_refuses_and_a_recovery_takes_the_same_address(server: SocialNetworkServer) -> None:
    address = server.address
    server.play_plan(ServerPlan(service_s=(("home_read", 30.0),)))
    failures: list[str] = []

    def read() -> None:
        with pytest.raises(requests.ConnectionError) as caught:
            call(address, READ)
        failures.append(str(caught.value))

    thread = threading.Thread(target=read)
    thread.start()
    wait_until(lambda: server.counters()["busy"] == 1)
    server.behave(Behaviour(0.0, 0, refused=True))
    thread.join(timeout=PATIENCE_S)
    assert len(failures) == 1
    assert "reset by peer" in failures[0]
    with pytest.raises(requests.ConnectionError, match="Connection refused"):
        call(address, "/healthz")
    assert server.counters()["reset"] == 1
    assert server.counters()["busy"] == 0
    server.behave(Behaviour(0.0, 0))
    assert server.address == address
    assert call(address, "/healthz")[0] == 200


def test_a_hang_answers_nothing_and_loses_only_the_impatient(server: SocialNetworkServer) -> None:
    server.play_plan(ServerPlan(workers=1, service_s=(("home_read", 30.0),)))
    answered: list[float] = []

    def read() -> None:
        assert call(server.address, READ)[0] == 200
        answered.append(time.monotonic())

    threads = [threading.Thread(target=read) for _ in range(2)]
    threads[0].start()
    wait_until(lambda: server.counters()["busy"] == 1)
    server.behave(Behaviour(0.0, 0, hang=True))
    with pytest.raises(requests.Timeout):
        compose(server, "impatient", timeout_s=0.3)  # type: ignore[arg-type]
    threads[1].start()
    wait_until(lambda: server.counters()["hung"] == 2)
    assert answered == []
    assert not server.healthy()
    recovery_s = time.monotonic()
    server.behave(Behaviour(0.0, 0, speed=100.0))
    for thread in threads:
        thread.join()
    assert answered[0] > recovery_s
    assert answered[1] >= recovery_s + 0.3
    assert not timeline(server, USER, 5)[0].startswith("impatient")


def test_patterns_by_hand_and_their_mistakes(server: SocialNetworkServer) -> None:
    assert call(server.admin, "/behaviours", '{"pattern": "errors", "ratio": 1, "duration_s": 3}') == (200, {})
    assert call(server.address, READ)[0] == 500
    wait_until(lambda: call(server.address, READ)[0] == 200)
    status, answer = call(server.admin, "/behaviours", '{"pattern": "eror"}')
    assert (status, answer) == (400, {"error": "unknown pattern 'eror'; did you mean 'errors'?"})
    assert call(server.admin, "/behaviours", "{")[0] == 400
    endless = '{"pattern": "periodic", "speed": 0.5, "duration_s": 9, "period_s": 0}'
    assert call(server.admin, "/behaviours", endless)[0] == 400
    assert call(server.admin, "/play", "[]")[0] == 400
    assert call(server.admin, "/plan", "{}") == (404, {"error": "unknown path '/plan'; did you mean '/play'?"})


def test_a_killed_server_costs_only_itself_and_restarts_on_its_address(tmp_path: Path) -> None:
    """Bar 7: SIGKILL amid composes; the other goes on, the database stays whole, what was confirmed is there."""
    database = tmp_path / "network.sqlite"
    create_database(database, OPTIONS, seed=2)
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(SocialNetworkServer(OPTIONS, work_dir=tmp_path, database=database, index=index))
            for index in range(2)
        ]
        confirmed: list[list[str]] = [[], []]
        lost: list[Exception] = []
        killed = threading.Event()

        def write(index: int) -> None:
            try:
                while len(confirmed[index]) < 150 and not (killed.is_set() and len(confirmed[index]) > 60):
                    text = f"s{index}n{len(confirmed[index])}"
                    assert compose(servers[index], text)[0] == 200
                    confirmed[index].append(text)
            except OSError as error:
                lost.append(error)

        threads = [threading.Thread(target=write, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: min(map(len, confirmed)) > 20)
        address = servers[1].address
        servers[1].kill()
        killed.set()
        for thread in threads:
            thread.join()
        assert len(lost) == 1
        assert len(confirmed[0]) > 60
        with pytest.raises(ServiceError, match="start it"):
            servers[1].counters()
        connection = sqlite3.connect(database)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
        stored = {text.split(" @")[0] for text in timeline(servers[0], USER, 5, 0, 350)}
        assert set(confirmed[0]) | set(confirmed[1]) <= stored
        servers[1].start()
        assert servers[1].address == address
        assert timeline(servers[1], USER, 5, 0, 1) == timeline(servers[0], USER, 5, 0, 1)


def test_servers_that_write_at_once_lose_nothing(servers: Servers) -> None:
    def write(index: int) -> None:
        for number in range(25):
            assert compose(servers[index % 2], f"w{index}n{number}")[0] == 200

    for server in servers:
        server.play_plan(ServerPlan())
    threads = [threading.Thread(target=write, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = [text.split(" @")[0] for text in timeline(servers[0], USER, 5, 0, 100)]
    assert sorted(stored) == sorted(f"w{index}n{number}" for index in range(4) for number in range(25))
    assert sum(server.counters()["store_errors"] for server in servers) == 0


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    missing = SocialNetworkServer(OPTIONS, work_dir=tmp_path, database=tmp_path / "none.sqlite", index=0)
    with pytest.raises(ProcessError, match="cannot open the database"):
        missing.start()
    missing.close()
    create_database(tmp_path / "network.sqlite", OPTIONS, seed=1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        late = SocialNetworkServer(OPTIONS, work_dir=tmp_path, database=tmp_path / "network.sqlite", index=0, port=port)
        with pytest.raises(ProcessError, match="choose another port"):
            late.start()
        late.close()
    with pytest.raises(ServiceError, match="is not running"):
        late.counters()
