"""Real stand-in server processes: endpoints, capacity, behaviour over time, pairing, death."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actuators.errors import ProcessError, ServiceError
from actuators.script import Behaviour, Script, ServerProfile
from actuators.social_capacity import ServerPlan
from actuators.social_database import SocialNetworkOptions, create_database
from actuators.social_server import SocialNetworkServer
from actuators.topology import social_network

OPTIONS = SocialNetworkOptions(users=50, follows_per_user=5, posts_per_user=3)
COMPOSE = 'username=username_5&user_id=5&text={} @username_7 http://abc&media_ids=["1"]&media_types=["png"]&post_type=0'
HOME, USER = "/wrk2-api/home-timeline/read", "/wrk2-api/user-timeline/read"
READ = f"{HOME}?user_id=7&start=0&stop=1"
Servers = list[SocialNetworkServer]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("social")
    create_database(folder / "network.sqlite", OPTIONS, seed=1)
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                SocialNetworkServer(OPTIONS, work_dir=folder, database=folder / "network.sqlite", index=index)
            )
            for index in range(2)
        ]


@pytest.fixture
def server(servers: Servers) -> SocialNetworkServer:
    servers[0].play_plan(ServerPlan())
    return servers[0]


def call(
    address: str, path: str, body: str | None = None, *, sequence: str = "", timeout_s: float = 5.0
) -> tuple[int, object]:
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    headers = {"X-Request-Sequence": sequence} if sequence else {}
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def compose(server: SocialNetworkServer, text: str, **options: str) -> tuple[int, object]:
    return call(server.address, "/wrk2-api/post/compose", COMPOSE.format(text), **options)  # type: ignore[arg-type]


def timeline(server: SocialNetworkServer, path: str, user: int, start: int = 0, stop: int = 10) -> list[str]:
    status, posts = call(server.address, f"{path}?user_id={user}&start={start}&stop={stop}")
    assert status == 200
    assert isinstance(posts, list)
    return [post["text"] for post in posts]


def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)


def raw(server: SocialNetworkServer, request: bytes) -> bytes:
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(request)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


def test_a_post_is_read_from_the_other_server_newest_first_and_paged(servers: Servers) -> None:
    first, second = servers
    for number in range(3):
        status, answer = compose(servers[number % 2], f"post {number}")
        assert (status, list(answer)) == (200, ["post_id"])  # type: ignore[call-overload]
    for server, path, user in ((second, USER, 5), (first, HOME, 7)):
        assert [text.split(" @")[0] for text in timeline(server, path, user, 0, 3)] == ["post 2", "post 1", "post 0"]
        assert [text.split(" @")[0] for text in timeline(server, path, user, 1, 2)] == ["post 1"]
        assert timeline(server, path, user, 2, 2) == []


@pytest.mark.parametrize(("path", "body"), [
    (f"{HOME}?user_id=5&start=0", None),
    (f"{HOME}?user_id=5&start=3&stop=2", None),
    (f"{HOME}?user_id=5&start=0&stop=100000", None),
    (f"{USER}?user_id=x&start=0&stop=1", None),
    (f"{USER}?user_id=50&start=0&stop=1", None),
    (f"{USER}?user_id=5&user_id=6&start=0&stop=1", None),
    ("/wrk2-api/post/compose", ""),
    ("/wrk2-api/post/compose", "username=username_5&user_id=5&text=lost"),
    ("/wrk2-api/post/compose", "username=username_6&user_id=5&text=lost&post_type=0"),
    ("/wrk2-api/post/compose", "username=username_5&user_id=5&text=lost&post_type=0&media_ids=[1"),
])  # fmt: skip
def test_wrong_parameters_are_a_400_and_store_nothing(server: SocialNetworkServer, path: str, body: str | None) -> None:
    status, answer = call(server.address, path, body)
    assert status == 400
    assert isinstance(answer, dict)
    assert answer["error"]
    assert "lost" not in " ".join(timeline(server, USER, 5))


def test_unknown_paths_wrong_methods_and_the_admin_paths_are_refused(server: SocialNetworkServer) -> None:
    assert call(server.address, "/healthz") == (200, {"status": "ok"})
    assert call(server.address, "/elsewhere")[0] == 404
    assert call(server.address, "/counters")[0] == 404
    assert call(server.address, "/play", "{}")[0] == 404
    assert call(server.address, "/wrk2-api/post/compose")[0] == 405
    assert call(server.address, f"{USER}?user_id=5&start=0&stop=1", "x")[0] == 405


def test_absolute_form_pipelining_and_bad_syntax(server: SocialNetworkServer) -> None:
    target = f"GET http://localhost:8080{USER}?user_id=5&start=0&stop=0 HTTP/1.1\r\nHost: x\r\n"
    answers = raw(server, f"{target}\r\nGET /healthz HTTP/1.1\r\n\r\n{target}Connection: close\r\n\r\n".encode())
    assert answers.count(b"HTTP/1.1 200 OK") == 3
    assert answers.index(b"[]") < answers.index(b'"ok"') < answers.rindex(b"[]")
    assert raw(server, b"GARBAGE\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert raw(server, b"GET /healthz HTTP/1.0\r\n\r\n").endswith(b'{"status": "ok"}')
    body = (
        b"POST /wrk2-api/post/compose HTTP/1.1\r\nConnection: close\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 2000000
    )
    assert raw(server, body).startswith(b"HTTP/1.1 413 ")


def test_answers_come_after_their_service_time_and_in_fifo_order(server: SocialNetworkServer) -> None:
    server.play_plan(ServerPlan(workers=1, service_s=(("home_read", 0.1),)))
    begin_s, ends = time.monotonic(), []

    def read() -> None:
        assert call(server.address, READ)[0] == 200
        ends.append(time.monotonic() - begin_s)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.counters()["waiting"] == 2)
    assert server.counters()["busy"] == 1
    for thread in threads:
        thread.join()
    assert all(end >= number * 0.1 for number, end in enumerate(sorted(ends), 1))
    counters = server.counters()
    assert counters["requests"] == {"home_read": {"200": 3}}
    assert counters["service_s"] == pytest.approx(0.3)


def test_a_full_queue_answers_503_and_stores_nothing(server: SocialNetworkServer) -> None:
    server.play_plan(ServerPlan(workers=1, queue_limit=0, service_s=(("compose", 0.5),)))
    first = threading.Thread(target=compose, args=(server, "kept"))
    first.start()
    wait_until(lambda: server.counters()["busy"] == 1)
    status, answer = compose(server, "rejected")
    assert (status, answer) == (503, {"error": "the queue is full"})
    first.join()
    assert timeline(server, USER, 5)[0].startswith("kept")
    counters = server.counters()
    assert counters["rejected"] == 1
    assert counters["requests"]["compose"] == {"200": 1, "503": 1}


def test_the_same_request_has_the_same_work_and_fate_on_every_server(servers: Servers) -> None:
    """Two servers and two runs agree request by request, in whatever order the requests come."""
    plan = ServerPlan(
        seed=4, service_s=(("home_read", 0.002),), distribution="lognormal", behaviours=(Behaviour(0, 0, 1, 0.5),)
    )
    outcomes = []
    for server, order in ((servers[0], 1), (servers[1], -1), (servers[0], -1)):
        server.play_plan(plan)
        names = [f"home_read-{number}" for number in range(40)][::order]
        statuses = {name: call(server.address, READ, sequence=name)[0] for name in names}
        outcomes.append((statuses, round(server.counters()["service_s"], 9)))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert 8 <= list(outcomes[0][0].values()).count(500) <= 32


def test_play_takes_the_servers_own_part_of_a_script(servers: Servers) -> None:
    topology = social_network(tuple(server.address for server in servers))
    profiles = ServerProfile((1.0, 1.0, 1.0)), ServerProfile((1.0, 1.0, 0.5))
    script = Script(
        "s", 1, 10, (), profiles, (0.0, 0.0, 0.05), service_distribution="constant",
        behaviours=(Behaviour(0.0, 1, error_ratio=1.0), Behaviour(0.3, 1)),
    )  # fmt: skip
    for server in servers:
        server.play(script, topology)
    path = f"{USER}?user_id=5&start=0&stop=1"
    assert [call(server.address, path)[0] for server in servers] == [200, 500]
    wait_until(lambda: call(servers[1].address, path)[0] == 200)
    begin_s = time.monotonic()
    call(servers[1].address, path)
    assert time.monotonic() - begin_s >= 0.1


def test_a_new_speed_holds_for_the_work_in_progress(server: SocialNetworkServer) -> None:
    server.play_plan(ServerPlan(workers=1, service_s=(("home_read", 30.0),)))
    answered: list[int] = []
    thread = threading.Thread(target=lambda: answered.append(call(server.address, READ, timeout_s=20)[0]))
    thread.start()
    wait_until(lambda: server.counters()["busy"] == 1)
    server.behave(Behaviour(0.0, 0, speed=1000.0))
    thread.join(timeout=5)
    assert answered == [200]


def test_a_crash_resets_and_refuses_and_a_recovery_takes_the_same_address(server: SocialNetworkServer) -> None:
    address = server.address
    server.play_plan(ServerPlan(service_s=(("home_read", 30.0),)))
    failures: list[Exception] = []

    def read() -> None:
        with pytest.raises(ConnectionError) as caught:
            call(address, READ)
        failures.append(caught.value)

    thread = threading.Thread(target=read)
    thread.start()
    wait_until(lambda: server.counters()["busy"] == 1)
    server.behave(Behaviour(0.0, 0, refused=True))
    thread.join(timeout=5)
    assert [type(failure) for failure in failures] == [ConnectionResetError]
    with pytest.raises(ConnectionRefusedError):
        call(address, "/healthz")
    assert server.counters()["reset"] == 1
    assert server.counters()["busy"] == 0
    server.behave(Behaviour(0.0, 0))
    assert server.address == address
    assert call(address, "/healthz")[0] == 200


def test_a_hang_answers_nothing_and_loses_only_the_impatient(server: SocialNetworkServer) -> None:
    server.play_plan(ServerPlan(workers=1, service_s=(("home_read", 0.2),)))
    answered: list[float] = []

    def read() -> None:
        assert call(server.address, READ)[0] == 200
        answered.append(time.monotonic())

    threads = [threading.Thread(target=read) for _ in range(2)]
    threads[0].start()
    wait_until(lambda: server.counters()["busy"] == 1)
    server.behave(Behaviour(0.0, 0, hang=True))
    with pytest.raises(TimeoutError):
        compose(server, "impatient", timeout_s=0.3)  # type: ignore[arg-type]
    threads[1].start()
    wait_until(lambda: server.counters()["hung"] == 2)
    assert answered == []
    assert not server.healthy()
    recovery_s = time.monotonic()
    server.behave(Behaviour(0.0, 0))
    for thread in threads:
        thread.join()
    assert answered[0] > recovery_s
    assert answered[1] >= recovery_s + 0.2
    assert not timeline(server, USER, 5)[0].startswith("impatient")


def test_patterns_by_hand_and_their_mistakes(server: SocialNetworkServer) -> None:
    assert call(server.admin, "/behaviours", '{"pattern": "errors", "ratio": 1, "duration_s": 0.3}') == (200, {})
    assert call(server.address, READ)[0] == 500
    wait_until(lambda: call(server.address, READ)[0] == 200)
    status, answer = call(server.admin, "/behaviours", '{"pattern": "eror"}')
    assert (status, answer) == (400, {"error": "unknown pattern 'eror'; did you mean 'errors'?"})
    assert call(server.admin, "/behaviours", "{")[0] == 400
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
                while len(confirmed[index]) < 300 and not (killed.is_set() and len(confirmed[index]) > 150):
                    text = f"s{index}n{len(confirmed[index])}"
                    assert compose(servers[index], text)[0] == 200
                    confirmed[index].append(text)
            except OSError as error:
                lost.append(error)

        threads = [threading.Thread(target=write, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: min(map(len, confirmed)) > 20, timeout_s=20)
        address = servers[1].address
        servers[1].kill()
        killed.set()
        for thread in threads:
            thread.join()
        assert len(lost) == 1
        assert len(confirmed[0]) > 150
        with pytest.raises(ServiceError, match="start it"):
            servers[1].counters()
        connection = sqlite3.connect(database)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
        stored = {text.split(" @")[0] for text in timeline(servers[0], USER, 5, 0, 700)}
        assert set(confirmed[0]) | set(confirmed[1]) <= stored
        servers[1].start()
        assert servers[1].address == address
        assert timeline(servers[1], USER, 5, 0, 1) == timeline(servers[0], USER, 5, 0, 1)


def test_servers_that_write_at_once_lose_nothing(servers: Servers) -> None:
    def write(index: int) -> None:
        for number in range(60):
            assert compose(servers[index % 2], f"w{index}n{number}")[0] == 200

    for server in servers:
        server.play_plan(ServerPlan())
    threads = [threading.Thread(target=write, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = [text.split(" @")[0] for text in timeline(servers[0], USER, 5, 0, 240)]
    assert sorted(stored) == sorted(f"w{index}n{number}" for index in range(4) for number in range(60))
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
