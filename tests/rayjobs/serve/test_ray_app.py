"""The served policy under Ray Serve with HAProxy: bundles swap, and nothing listens beyond loopback."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
import requests

from rayjobs.serve.haproxy_loopback import on_loopback
from tests.support.served import served_bundles
from tests.support.windows import window
from tuning.steering import window_json

LISTENING = "0A"
LOOPBACK = "0100007F"


def test_haproxys_listeners_move_to_loopback() -> None:
    text = "frontend prometheus\n    bind :9101\nlisten stats\n  bind *:8404\nfrontend h\n    bind 127.0.0.1:8000\n"
    assert on_loopback(text) == text.replace("bind :", "bind 127.0.0.1:").replace("bind *:", "bind 127.0.0.1:")


def haproxy_listeners() -> list[str]:
    """Addresses as /proc/net/tcp and tcp6 print them, in hexadecimal, that a process called haproxy listens on."""
    inodes = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if (process / "comm").read_text().strip() == "haproxy":
                inodes |= {os.readlink(file).strip("socket:[]") for file in (process / "fd").iterdir()}
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()[1:]]
    return [row[1].partition(":")[0] for row in rows if row[3] == LISTENING and row[9] in inodes]


@pytest.mark.ray
def test_under_ray_serve_bundles_swap_without_a_dropped_request(short_dir: Path) -> None:
    body = {"windows": [window_json.to_json(window())]}
    for on_ray in served_bundles(short_dir, "ray"):
        seen = set()
        with requests.Session() as session:
            for index in range(60):
                if index in (20, 40):
                    change = {"path": "second"} if index == 20 else {"rollback": True}
                    assert on_ray.post("/v1/bundles", change, on_ray.token).status_code == 200
                answer = session.post(on_ray.url + "/v1/weights", json=body, timeout=20)
                assert answer.status_code == 200
                seen.add(answer.json()["bundle"])
        assert len(seen) == 2
        assert "event: " not in on_ray.get("/v1/live").text
        listening = haproxy_listeners()
        assert listening
        assert set(listening) == {LOOPBACK}
