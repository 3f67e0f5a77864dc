"""`serve` and `steer` together under mixed requests, one in five of them bad: nothing grows, nothing breaks.

Three minutes in `make drills`; `DEEPSCHED_SOAK_S=1800` is the full soak. `DEEPSCHED_SOAK_RECORD=FILE` keeps figures.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import psutil
import pytest
import requests

from actuators.http_client import http_session
from tests.support.serve_requests import bodies
from tests.support.served import serve_process
from tests.support.steer_site import Uneven, decisions, failures, running_site, steer_process
from tests.support.steering_cases import trained_bundle
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.nginx, pytest.mark.slow]
SOAK_S = float(os.environ.get("DEEPSCHED_SOAK_S", "180"))
RECORD = os.environ.get("DEEPSCHED_SOAK_RECORD")
RATE_RPS, CLIENTS, SAMPLE_S = 100, 16, 2.0
WARM_UP = 0.3
"""Share of the time after which nothing may grow any more."""
MOST_MORE = {"rss_mib": 24.0, "descriptors": 6, "threads": 8}
"""By how much the median of the last quarter may lie above that of the first quarter after the warm-up. The history of
15 minutes that the live page shows is still filling up in most of a soak, and so is the web framework's pool of 40."""

Deed = Callable[[requests.Session], int]
"""Sends one request; the status of the answer, 0 when none was to be expected."""


class Traffic:
    """Requests of every kind to one `serve`; what came back, by kind and status."""

    def __init__(self, url: str) -> None:
        self._url, self._port = url, int(url.rpartition(":")[2])
        weights = [self._sends("POST", "/v1/weights", body) for body in bodies()]
        pages = ("/healthz", "/v1/policy", "/v1/live", "/v1/history", "/metrics", "/")
        self._good = [*weights, *(self._sends("GET", path) for path in pages), self._watches]
        some = bodies()[0]
        self._bad = [
            self._sends("POST", "/v1/weights", some[: len(some) // 2]),
            self._sends("POST", "/v1/weights", b'{"documents": [{"upstreamZones": {"a": [{"server": 7}]}}]}'),
            self._sends("POST", "/v1/weights", some.replace(b"[", b"[1e400,", 1)),
            self._sends("POST", "/v1/weights", b"[" * 50_000),
            self._sends("POST", "/v1/weights", b"\xff\x00", {"Content-Encoding": "gzip"}),
            self._sends("POST", "/v1/weights", b"{" + b" " * 150_000),
            self._sends("POST", "/v1/orders", b'{"override": "paused"}'),
            self._sends("POST", "/v1/bundles", b'{"path": "x"}', {"Authorization": "Bearer " + "x" * 32}),
            self._sends("GET", "/v1/policy/../../token"),
            self._sends("DELETE", "/v1/weights"),
            self._sends("GET", "/healthz", None, {"Host": "elsewhere.example"}),
            self._leaves(b"POST /v1/weights HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n{"),
            self._leaves(b"GET / HTTP/1.1\r\nX-Slow: "),
            self._leaves(b"\x16\x03\x01\x02\x00\x01\x00"),
        ]
        self.found: Counter[tuple[str, int]] = Counter()
        self.repeated = 0
        self._lock = threading.Lock()

    def send(self, session: requests.Session, number: int) -> None:
        """The request of that number; every fifth is bad."""
        kind = "bad" if number % 5 == 4 else "good"
        deed = random.Random(number).choice(self._bad if kind == "bad" else self._good)
        try:
            status = deed(session)
        except requests.ConnectionError:
            # A server may close an idle connection when a request is on its way; every client asks once more.
            status = deed(session)
            with self._lock:
                self.repeated += 1
        with self._lock:
            self.found[kind, status] += 1

    def run(self) -> float:
        """Sends `RATE_RPS` a second for `SOAK_S`; seconds that it took."""
        began_s, numbers = time.monotonic(), itertools.count()

        def client(_: int) -> None:
            with http_session(PATIENCE_S) as session:
                session.get(f"{self._url}/healthz")
                # `next` of a count is one step: no two clients get the same number.
                for number in numbers:
                    if number >= RATE_RPS * SOAK_S:
                        return
                    time.sleep(max(began_s + number / RATE_RPS - time.monotonic(), 0.0))
                    self.send(session, number)

        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(client, range(CLIENTS)))
        return time.monotonic() - began_s

    def _sends(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Deed:
        def send(session: requests.Session) -> int:
            return session.request(method, self._url + path, data=body, headers=headers).status_code

        return send

    def _watches(self, session: requests.Session) -> int:
        """The first event of the live page, then it goes away."""
        with session.get(f"{self._url}/v1/live/events", stream=True) as answer:
            next(answer.iter_lines())
            return answer.status_code

    def _leaves(self, data: bytes) -> Deed:
        """What is no whole request, from a client that waits a moment and goes away."""

        def send(session: requests.Session) -> int:
            with socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE_S) as client:
                client.sendall(data)
                client.settimeout(0.05)
                try:
                    answer = client.recv(100)
                except (TimeoutError, ConnectionResetError):
                    return 0
                return int(answer.split()[1]) if answer else 0

        return send


class Figures(threading.Thread):
    """Memory, descriptors and threads of some processes, until it is ended."""

    def __init__(self, **pids: int) -> None:
        super().__init__(daemon=True)
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self.over = threading.Event()
        self.rows: list[dict[str, float]] = []

    def run(self) -> None:
        while not self.over.wait(SAMPLE_S):
            self.rows.append(
                {
                    f"{name} {what}": value
                    for name, process in self._processes.items()
                    for what, value in (
                        ("rss_mib", process.memory_info().rss / 2**20),
                        ("descriptors", process.num_fds()), ("threads", process.num_threads()),
                    )
                }
            )  # fmt: skip

    def ends(self) -> dict[str, tuple[float, float]]:
        """Name → medians of the first and the last quarter after the warm-up."""
        rows = self.rows[round(len(self.rows) * WARM_UP) :]
        part = max(len(rows) // 4, 1)
        return {
            name: (median(row[name] for row in rows[:part]), median(row[name] for row in rows[-part:]))
            for name in rows[0]
        }


def test_nothing_grows_and_nothing_breaks(short_dir: Path) -> None:
    trained_bundle().save(short_dir / "bundle")
    light = Uneven(duration_s=SOAK_S * 2 + 600, rate_rps=10.0)
    with (
        running_site(short_dir / "site", scenario=light) as site,
        serve_process(short_dir / "bundle", short_dir) as (served, url),
        steer_process(
            short_dir, site, "run", "--mode", "active", "--serve-url", url, "--set", "guards.novel_above=1e9",
            "--set", "guards.art_margin=1e9", "--set", "guards.reference_windows=3",
        ) as steering,
    ):  # fmt: skip
        wait_until(lambda: bool(decisions(short_dir)), steering.log_tail)
        traffic, figures = Traffic(url), Figures(serve=served.pid, steer=steering.pid)
        figures.start()
        took_s = traffic.run()
        figures.over.set()
        figures.join()
        known = len(decisions(short_dir))
        wait_until(lambda: len(decisions(short_dir)) > known + 2, steering.log_tail)
        lost = failures(site)
        assert (served.poll(), steering.poll()) == (None, None)
    told = {
        "seconds": took_s, "answers": {f"{kind} {status}": n for (kind, status), n in sorted(traffic.found.items())},
        "repeated": traffic.repeated, "first and last": figures.ends(), "decisions by": Counter(by(short_dir)),
        "failed requests": lost,
    }  # fmt: skip
    if RECORD:
        Path(RECORD).write_text(json.dumps({**told, "rows": figures.rows}, indent=1))
    statuses = {kind: {status for k, status in traffic.found if k == kind} for kind in ("good", "bad")}
    assert statuses["good"] <= {200, 503}, told
    assert all(status in (0, 503) or 400 <= status < 500 for status in statuses["bad"]), told
    assert traffic.found["good", 200] > traffic.found["good", 503], told
    assert lost == {}
    assert "serve" in told["decisions by"], told
    assert "Traceback" not in (short_dir / "serve.log").read_text() + (short_dir / "steer.log").read_text()
    for name, (first, last) in figures.ends().items():
        assert last - first <= MOST_MORE[name.split()[1]], told


def by(folder: Path) -> Iterator[str]:
    """Who gave the advice of each decision."""
    return (str(line["by"]).partition(" (")[0] for line in decisions(folder))
