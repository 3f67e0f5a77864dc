"""Clients that are slow, many, or send much: they end by themselves and cost the others nothing."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import select
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import requests

from actuators.contract.topology import social_network
from actuators.http_client import responds
from actuators.processes.process import ManagedProcess
from actuators.processes.system import free_port
from rayjobs.bench.parts.serve import vts_documents
from rayjobs.serve import bundles, connections, intake
from rayjobs.serve.answers import Answers
from rayjobs.serve.app import PAGE
from rayjobs.serve.bundles import BundleStore
from tests.support.served import Served, served_bundles
from tests.support.steering_cases import trained_bundle
from tests.support.waiting import PATIENCE_S
from tests.support.windows import TOPOLOGY
from tuning.steering.options import GuardOptions

HEAD = "HTTP/1.1\r\nHost: 127.0.0.1\r\n"
LARGE = 2 * intake.SMALL_BYTES
SEND_BUFFER_BYTES = int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2])
UNREAD = 2 * SEND_BUFFER_BYTES // (PAGE / "page.js").stat().st_size
"""Answers that no buffer holds."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from served_bundles(tmp_path_factory.mktemp("serve"), "uvicorn")


def connected(served: Served, text: str) -> socket.socket:
    """A connection on which this was sent."""
    client = socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=PATIENCE_S)
    client.sendall(text.encode())
    return client


def begun(served: Served, sent: int) -> socket.socket:
    """A request of whose large body only a part has come."""
    return connected(served, f"POST /v1/weights {HEAD}Content-Length: {LARGE}\r\n\r\n" + " " * sent)


def leaving_unread(served: Served) -> socket.socket:
    """A client that has asked for more than the buffers between it and the server hold, and reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(PATIENCE_S)
    client.connect(("127.0.0.1", int(served.url.rpartition(":")[2])))
    client.sendall(f"GET /page.js {HEAD}\r\n".encode() * UNREAD)
    return client


def received(client: socket.socket) -> str:
    """What the server sends until it closes the connection."""
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts).decode()


@pytest.mark.parametrize("text", ["", "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "])
def test_headers_that_do_not_end_close_the_connection(
    served: Served, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADERS_S", 0.2)
    with connected(served, text) as client:
        assert received(client) == ""
    with connected(served, f"GET /healthz {HEAD}\r\n") as client:
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.sendall(b"GET /healthz HTT")
        assert received(client).count("HTTP/1.1") == 0


def test_a_body_that_does_not_end_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BODY_S", 0.2)
    for sent in (1, LARGE - 1):
        with begun(served, sent) as client:
            answer = received(client)
            assert answer.startswith("HTTP/1.1 408")
            assert "the body did not arrive within 0.2 s" in answer


@pytest.mark.parametrize(("length", "status"), [("0" * 5000, "HTTP/1.1 4"), ("0" * 30 + "9" * 12, "HTTP/1.1 413")])
def test_zeros_before_the_length_of_a_body_are_no_failure(served: Served, length: str, status: str) -> None:
    with connected(served, f"POST /v1/weights {HEAD}Connection: close\r\nContent-Length: {length}\r\n\r\n") as client:
        assert received(client).startswith(status)


def test_a_client_that_leaves_answers_unread_is_dropped(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[object] = []
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "error", lambda *said, **more: errors.append(more))
    monkeypatch.setattr(connections, "UNREAD_S", 0.2)
    with leaving_unread(served) as client:
        gone = select.poll()
        gone.register(client, select.POLLHUP | select.POLLERR)
        assert gone.poll(1e3 * PATIENCE_S), "its answers are still held for it"
        assert received(client).count("HTTP/1.1 200") < UNREAD
    assert served.get("/healthz").ok
    assert errors == []


def test_a_client_that_reads_slowly_gets_every_answer(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing pauses again and again; each time the client goes on reading."""
    monkeypatch.setattr(connections, "UNREAD_S", PATIENCE_S)
    with leaving_unread(served) as client:
        client.sendall(f"GET /healthz {HEAD}Connection: close\r\n\r\n".encode())
        assert received(client).count("HTTP/1.1 200") == UNREAD + 1


def test_with_too_many_connections_the_one_that_waited_longest_is_closed(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 8)
    monkeypatch.setattr(connections, "HEADERS_S", PATIENCE_S)
    # Connections from before have the shorter time, and would count as those that waited longest.
    assert served.get("/healthz").ok
    with ExitStack() as stack:
        waiting = [stack.enter_context(connected(served, "GET / HTTP/1.1\r\n")) for _ in range(8)]
        assert served.get("/healthz").ok
        assert received(waiting[0]) == ""
        waiting[-1].sendall(b"Host: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert received(waiting[-1]).startswith("HTTP/1.1 200")


def test_large_bodies_wait_for_room_and_small_ones_do_not(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "ROOM_S", 0.2)
    body = json.dumps({"documents": vts_documents(TOPOLOGY, 1)}).encode()
    padded = body + b" " * (LARGE - len(body))
    with ExitStack() as stack:
        for _ in range(intake.LARGE_AT_ONCE):
            held = stack.enter_context(begun(served, LARGE - 1))
        refused = served.post("/v1/weights", padded)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "other large requests" in refused.json()["detail"]
        assert served.post("/v1/weights", body).status_code == 200
        held.sendall(b"}")
        assert held.recv(100).startswith(b"HTTP/1.1 422")
        assert served.post("/v1/weights", padded).status_code == 200
    # The others have gone without an end of their bodies.
    for _ in range(intake.LARGE_AT_ONCE):
        assert served.post("/v1/weights", padded).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
def test_a_compressed_body_is_refused_by_its_header(served: Served, encoding: str) -> None:
    data = gzip.compress(json.dumps({"documents": vts_documents(TOPOLOGY, 1)}).encode())
    answer = requests.post(
        f"{served.url}/v1/weights", data=data, headers={"Content-Encoding": encoding}, timeout=PATIENCE_S
    )
    assert answer.status_code == 415
    assert answer.json()["detail"] == f"Content-Encoding: {encoding} is not read; send the body plain"


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    for name, seed in (("first", 0), ("second", 1)):
        trained_bundle(seed=seed).save(tmp_path / "bundles" / name)
    return BundleStore(tmp_path / "bundles" / "first", tmp_path / "bundles", tmp_path / "state")


def test_the_event_loop_goes_on_while_another_bundle_is_loaded(
    store: BundleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, before = Answers(store, GuardOptions(novel_above=1e9)), store.in_use().bundle.id
    BundleStore(tmp_path / "bundles" / "first", tmp_path / "bundles", tmp_path / "state").swap(Path("second"))
    began, go_on, load = threading.Event(), threading.Event(), bundles.load_bundle

    def slow(folder: Path) -> object:
        began.set()
        assert go_on.wait(PATIENCE_S)
        return load(folder)

    monkeypatch.setattr(bundles, "load_bundle", slow)

    async def ask() -> bytes:
        asked = asyncio.create_task(answers.answer(json.dumps({"documents": vts_documents(TOPOLOGY, 1)}).encode()))
        assert await asyncio.to_thread(began.wait, PATIENCE_S)
        go_on.set()
        return await asked

    assert json.loads(asyncio.run(ask()))["bundle"] != before


def test_unseen_server_names_read_no_bundle_again(store: BundleStore, tmp_path: Path) -> None:
    answers = Answers(store, GuardOptions(novel_above=1e9))
    shutil.rmtree(tmp_path / "bundles")
    for count in range(2, bundles.KEPT_TOPOLOGIES + 4):
        servers = tuple(f"10.0.{count}.{server}:80" for server in range(count))
        body = json.dumps({"documents": vts_documents(social_network(servers), 1, ring=2)}).encode()
        assert json.loads(asyncio.run(answers.answer(body)))["servers"] == list(servers)


@pytest.mark.slow
def test_fifty_large_bodies_cost_no_gigabyte_and_their_memory_comes_back(tmp_path: Path) -> None:
    trained_bundle().save(tmp_path / "bundle")
    port = free_port("127.0.0.1")
    command = [
        sys.executable, "-m", "rayjobs.serve", str(tmp_path / "bundle"), "--front", "uvicorn", "--port", str(port),
        "--folder", str(tmp_path / "state"),
    ]  # fmt: skip
    body = b'{"documents": [' + b",".join([b'{"a": [' + b"1," * 1000 + b"1]}"] * (15 * 2**20 // 2010)) + b"]}"
    url = f"http://127.0.0.1:{port}"
    with ManagedProcess(command, name="serve", log_path=tmp_path / "log") as process:
        process.wait_ready(lambda: responds(f"{url}/healthz"), PATIENCE_S)
        server = psutil.Process(process.pid)
        base, most, over = server.memory_info().rss, 0, threading.Event()

        def look() -> None:
            nonlocal most
            while not over.wait(0.02):
                most = max(most, server.memory_info().rss)

        def send(_: int) -> int:
            return requests.post(f"{url}/v1/weights", data=body, timeout=PATIENCE_S).status_code

        with ThreadPoolExecutor(51) as pool:
            looking = pool.submit(look)
            found = set(pool.map(send, range(50)))
            over.set()
            looking.result()
        assert found <= {422, 503}
        assert 422 in found
        assert (most - base) / 2**20 < 400
        assert responds(f"{url}/healthz")
        process.wait_ready(lambda: server.memory_info().rss < base + 32 * 2**20, PATIENCE_S)
