"""`deepsched steer` in front of a stock NGINX of somebody's, which includes nothing of ours but the snippet."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.topology import social_network
from actuators.http_client import http_session
from actuators.processes.process import ManagedProcess
from actuators.processes.system import free_port
from rayjobs.cli.main import main
from tests.support.http_server import ScriptedServer
from tests.support.steering_cases import trained_bundle
from tests.support.stock_nginx import MAIN, deepsched
from tests.support.waiting import wait_until
from tuning.steering.audit import read_lines

pytestmark = pytest.mark.nginx

GROUPS = social_network().groups


class Client:
    """Sends requests to all groups until it is ended; counts what came back."""

    def __init__(self, port: int) -> None:
        self.port, self.answers, self._over = port, Counter[int](), threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(group.name,)) for group in GROUPS]

    def _send(self, group: str) -> None:
        while not self._over.is_set():
            with http_session(20.0) as session:
                self.answers[session.get(f"http://127.0.0.1:{self.port}/{group}/").status_code] += 1

    def __enter__(self) -> Client:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)


@contextmanager
def stock_nginx(folder: Path) -> Iterator[tuple[int, int]]:
    """A hand-written configuration with the snippet included: ports of its traffic and of the snippet's server."""
    port, own = free_port("127.0.0.1"), free_port("127.0.0.1")
    config, snippet = folder / "nginx.conf", folder / "deepsched.conf"
    with ExitStack() as stack:
        servers = [stack.enter_context(ScriptedServer()).address for _ in range(3)]
        members = " ".join(f"server {address};" for address in servers)
        upstreams = " ".join(f"upstream {group.name} {{ {members} }}" for group in GROUPS)
        places = " ".join(f"location /{group.name}/ {{ proxy_pass http://{group.name}; }}" for group in GROUPS)
        text = MAIN.replace("location / {{ proxy_pass http://app; }}", "{places}")
        config.write_text(text.format(folder=folder, upstreams=upstreams, port=port, places=places))
        arguments = ["--out", str(snippet), "--port", str(own), "--set", f"reload.config={config}"]
        made = deepsched("snippet", *arguments, "--set", "memory.method=round_robin")
        assert made.returncode == 0, made.stderr
        config.write_text(text.format(folder=folder, upstreams=f"include {snippet};", port=port, places=places))
        command = ["/usr/sbin/nginx", "-e", str(folder / "error.log"), "-c", str(config)]
        process = stack.enter_context(ManagedProcess(command, name="nginx", log_path=folder / "error.log"))
        process.wait_ready((folder / "nginx.pid").exists)
        yield port, own


def test_it_is_steered_in_memory_and_put_back(short_dir: Path) -> None:
    trained_bundle().save(short_dir / "bundle")
    folder = short_dir / "steer"
    with stock_nginx(short_dir) as (port, own), Client(port) as client:
        command = [
            sys.executable, "-m", "rayjobs.steer", "run", "--bundle", str(short_dir / "bundle"),
            "--folder", str(folder), "--control-url", f"http://127.0.0.1:{own}/control",
            "--token-file", f"{short_dir}/deepsched.conf.token", "--interval-s", "0.5",
            "--mode", "active", "--set", "guards.novel_above=1e9", "--set", "guards.reference_windows=2",
            "--set", "guards.min_requests=1", "--set", "guards.art_margin=1e9",
        ]  # fmt: skip
        with ManagedProcess(command, name="steer", log_path=short_dir / "steer.log"):
            wait_until(lambda: _uneven(folder), "the controller did not act")
            assert main(["steer", "revert", "--folder", str(folder)]) == 0
            wait_until(lambda: bool(_lines(folder)) and not _uneven(folder), "not reverted")
        asked = ["--control-url", f"http://127.0.0.1:{own}/control"]
        told = deepsched("get", *asked, "--token-file", f"{short_dir}/deepsched.conf.token")
        assert {line.rpartition("=")[2] for line in told.stdout.splitlines()} == {"1"}
        assert len(told.stdout.splitlines()) == 9
    assert set(client.answers) == {200}
    assert client.answers[200] > 100


def _lines(folder: Path) -> list[dict[str, object]]:
    path = folder / "audit.jsonl"
    return [line for line in read_lines(path) if line["kind"] == "decision"] if path.exists() else []


def _uneven(folder: Path) -> bool:
    """Whether the last recorded weights in force favour a server."""
    lines = _lines(folder)
    return bool(lines) and bool(np.ptp(np.array(lines[-1]["in_force"]), axis=1).any())
