"""What the tests of the stand-in servers share: two running servers and ways to call them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from actuators.http_client import http_session
from actuators.social_network.capacity import ServerPlan
from actuators.social_network.server import SocialNetworkServer
from actuators.social_network.store import SocialNetworkOptions, create_database
from tests.support.waiting import PATIENCE_S

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
    address: str, path: str, body: str | None = None, *, sequence: str = "", timeout_s: float = PATIENCE_S
) -> tuple[int, object]:
    headers = {"X-Request-Sequence": sequence} if sequence else {}
    with http_session(timeout_s) as session:
        answer = session.request(
            "GET" if body is None else "POST", f"http://{address}{path}", data=body, headers=headers
        )
        return answer.status_code, answer.json()


def compose(server: SocialNetworkServer, text: str, **options: str) -> tuple[int, object]:
    return call(server.address, "/wrk2-api/post/compose", COMPOSE.format(text), **options)  # type: ignore[arg-type]


def timeline(server: SocialNetworkServer, path: str, user: int, start: int = 0, stop: int = 10) -> list[str]:
    status, posts = call(server.address, f"{path}?user_id={user}&start={start}&stop={stop}")
    assert status == 200
    assert isinstance(posts, list)
    return [post["text"] for post in posts]


def raw(server: SocialNetworkServer, request: bytes) -> bytes:
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(request)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received
