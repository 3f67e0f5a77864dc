"""Real stand-in server processes: endpoints, capacity, pairing."""

from __future__ import annotations

import threading
import time

import pytest

from actuators.contract.script import Behaviour, Script, ServerProfile
from actuators.contract.topology import social_network
from actuators.social_network.capacity import ServerPlan
from actuators.social_network.costs import SPANS, post_work, read_work
from actuators.social_network.server import SocialNetworkServer
from tests.support.social_site import HOME, READ, USER, Servers, call, compose, raw, timeline
from tests.support.waiting import wait_until


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
    server.play_plan(ServerPlan(workers=1, service_s=(("home_read", 0.3),)))
    begin_s, ends = time.monotonic(), []

    def read() -> None:
        assert call(server.address, READ)[0] == 200
        ends.append(time.monotonic() - begin_s)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(end >= number * 0.3 for number, end in enumerate(sorted(ends), 1))
    counters = server.counters()
    assert counters["requests"] == {"home_read": {"200": 3}}
    assert counters["service_s"] == pytest.approx(0.9)


def test_busy_workers_and_waiting_requests_are_counted(server: SocialNetworkServer) -> None:
    server.play_plan(ServerPlan(workers=1, service_s=(("home_read", 30.0),)))
    threads = [threading.Thread(target=call, args=(server.address, READ)) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.counters()["waiting"] == 2)
    assert server.counters()["busy"] == 1
    server.behave(Behaviour(0.0, 0, speed=1000.0))
    for thread in threads:
        thread.join()
    assert (server.counters()["waiting"], server.counters()["busy"]) == (0, 0)


def test_a_full_queue_answers_503_and_stores_nothing(server: SocialNetworkServer) -> None:
    server.play_plan(ServerPlan(workers=1, queue_limit=0, service_s=(("compose", 30.0),)))
    first = threading.Thread(target=compose, args=(server, "kept"))
    first.start()
    wait_until(lambda: server.counters()["busy"] == 1)
    status, answer = compose(server, "rejected")
    assert (status, answer) == (503, {"error": "the queue is full"})
    server.behave(Behaviour(0.0, 0, speed=1000.0))
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


def test_work_depends_on_the_request_where_the_plan_says_so(server: SocialNetworkServer) -> None:
    plan = ServerPlan(service_s=(("home_read", 0.001), ("compose", 0.001)), varied=True)
    server.play_plan(plan)
    for span in SPANS:
        path = f"/wrk2-api/home-timeline/read?user_id=1&start=7&stop={7 + span}"
        assert call(server.address, path)[0] == 200
    expected_s = 0.001 * sum(read_work(span) for span in SPANS)
    assert server.counters()["service_s"] == pytest.approx(expected_s)
    assert compose(server, "hello")[0] == 200
    assert server.counters()["service_s"] == pytest.approx(expected_s + 0.001 * post_work(1, 1))


def test_play_takes_the_servers_own_part_of_a_script(servers: Servers) -> None:
    topology = social_network(tuple(server.address for server in servers))
    profiles = ServerProfile((1.0, 1.0, 1.0)), ServerProfile((1.0, 1.0, 0.5))
    script = Script(
        "s", 1, 10, (), profiles, (0.0, 0.0, 0.05), service_distribution="constant",
        behaviours=(Behaviour(0.0, 1, error_ratio=1.0), Behaviour(3.0, 1)),
    )  # fmt: skip
    for server in servers:
        server.play(script, topology)
    path = f"{USER}?user_id=5&start=0&stop=1"
    assert [call(server.address, path)[0] for server in servers] == [200, 500]
    wait_until(lambda: call(servers[1].address, path)[0] == 200)
    begin_s = time.monotonic()
    call(servers[1].address, path)
    assert time.monotonic() - begin_s >= 0.1
