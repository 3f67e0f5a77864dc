"""The served policy under Ray Serve with HAProxy: bundles swap, and nothing listens beyond loopback."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import psutil
import pytest
import requests

from actuators.errors import CapacityError, ProcessError
from rayjobs.serve.haproxy_sockets import on_sockets, with_deadline
from tests.support.orphans import SESSION, processes_with
from tests.support.served import served_bundles
from tests.support.waiting import PATIENCE_S
from tests.support.windows import window
from tuning.steering import window_json


def test_haproxys_listeners_move_to_private_sockets() -> None:
    text = "frontend prometheus\n    bind :1\nlisten stats\n  bind *:2 process 1\nfrontend h\n    bind 127.0.0.1:8000\n"
    moved = text.replace("bind :1", "bind unix@/f/1 mode 600").replace("bind *:2 process 1", "bind unix@/f/2 mode 600")
    assert on_sockets(text, Path("/f")) == moved


def test_headers_have_a_deadline_at_haproxy() -> None:
    text = "global\n    maxconn 9\ndefaults\n    mode http\nfrontend defaults\n"
    assert with_deadline(text) == text.replace("s\n    mode", "s\n    timeout http-request 5s\n    mode")


def haproxy_listeners() -> list[str]:
    """IP addresses that the HAProxies of this session listen on; one that ends meanwhile has none."""
    found: list[str] = []
    for pid in processes_with(SESSION):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.name() == "haproxy":
                sockets = process.net_connections("tcp")
                found += [one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN]
    return found


@pytest.mark.ray
def test_under_ray_serve_bundles_swap_without_a_dropped_request(short_dir: Path) -> None:
    body = {"windows": [window_json.to_json(window())]}
    for on_ray in served_bundles(short_dir, "ray"):
        seen, address = set(), ("127.0.0.1", int(on_ray.url.rpartition(":")[2]))
        with requests.Session() as session, socket.create_connection(address, timeout=PATIENCE_S) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            for index in range(60):
                if index in (20, 40):
                    change = {"path": "second"} if index == 20 else {"rollback": True}
                    assert on_ray.post("/v1/bundles", change, on_ray.token).status_code == 200
                answer = session.post(on_ray.url + "/v1/weights", json=body, timeout=PATIENCE_S)
                assert answer.status_code == 200
                seen.add(answer.json()["bundle"])
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")
        assert len(seen) == 2
        assert "event: " not in on_ray.get("/v1/live").text
        listening = haproxy_listeners()
        assert listening
        assert set(listening) == {"127.0.0.1"}


def test_replicas_for_which_a_private_ray_has_no_cpus_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("rayjobs.runs.local_ray.ray_session", lambda address: contextlib.nullcontext())
    monkeypatch.setattr("rayjobs.serve.__main__.haproxy_environment", lambda folder: {})
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(CapacityError, match=r"8 replicas need 4 CPUs, there are 2 \(--replicas\)"):
        next(served_bundles(tmp_path, "ray", replicas=8))


def test_a_replica_that_does_not_start_is_one_line_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from rayjobs.serve.ray_app import NAME, deploy

    def run(*arguments: object, **more: object) -> NoReturn:
        raise RuntimeError(f"Deploying application {NAME} failed: Failed to update the deployments ['Policy'].")

    monkeypatch.setattr("ray.serve.run", run)
    message = "The deployment failed to start 3 times in a row. Error:\nTraceback\n  more\nBundleError: no bundle\n"
    application = SimpleNamespace(deployments={"Policy": SimpleNamespace(message=message)})
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications={NAME: application}))
    with pytest.raises(ProcessError, match=r"could not be served \(serve\).* \[BundleError: no bundle\]$"):
        deploy(None)
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications={}))
    with pytest.raises(ProcessError, match=r"\[Deploying application .*\]$"):
        deploy(None)
