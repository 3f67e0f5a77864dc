"""`deepsched weights` against a real NGINX: by reload, and in memory through the snippet."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import ServiceTimes, Weights
from actuators.external.actuator import ActuatorOptions, MemoryActuator, open_actuator
from actuators.http_client import http_session
from actuators.nginx.control_endpoint import MemoryControl
from actuators.nginx.reload import accepts
from actuators.processes.system import children, free_port
from actuators.statistics.reader import StatusReader
from tests.support.http_server import ScriptedServer
from tests.support.nginx_site import answer
from tests.support.stock_nginx import StockSite, deepsched
from tests.support.waiting import wait_until

pytestmark = pytest.mark.nginx


@pytest.fixture
def site(short_dir: Path) -> Iterator[StockSite]:
    servers = [ScriptedServer(lambda _, i=i: answer(200, str(i))) for i in range(3)]
    for server in servers:
        server.__enter__()
    yield StockSite(short_dir, [server.address for server in servers])
    for server in servers:
        server.__exit__(None, None, None)


def test_get_set_and_explore_by_reload(site: StockSite) -> None:
    config = f"reload.config={site.folder}/nginx.conf"
    with site.start():
        result = deepsched("get", "--set", config)
        assert result.stdout.splitlines() == [f"app/{server}=1" for server in site.servers]
        result = deepsched("set", f"{site.servers[0]}=5", f"app/{site.servers[1]}=3", "--set", config)
        assert result.returncode == 0, result.stderr
        assert "in force after" in result.stderr
        assert site.who(9) == {"0": 5, "1": 3, "2": 1}
        before = deepsched("get", "--set", config).stdout
        quick = ["--interval-s", "0.01", "--values", "1,2", "--set", "reload.min_reload_interval_s=0"]
        result = deepsched("explore", *quick, "--set", config)
        assert result.returncode == 0, result.stderr
        assert "7 for app" in result.stderr
        assert result.stderr.count("in force after") == 7
        assert deepsched("get", "--set", config).stdout == before
        result = deepsched("set", "10.0.0.1:1=5", "--set", config)
        assert result.returncode == 2
        assert "unknown server" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_one_odd_group_disturbs_no_other(site: StockSite) -> None:
    first, second, third = site.servers
    site.write(
        f"upstream app {{ server {first}; server {second} down; server {third} weight=2; }}\n"
        f"upstream twice {{ server {first}; server {first}; }}\nupstream 'two words' {{ server {second}; }}\n"
        f"upstream gone {{ server {first} down; }}"
    )
    config = f"reload.config={site.folder}/nginx.conf"
    with site.start():
        result = deepsched("get", "--set", config)
        assert result.stdout.splitlines() == [
            f"app/{first}=1", f"app/{second}=down", f"app/{third}=2", f"two words/{second}=1",
        ]  # fmt: skip
        assert f"left out: {first} is listed twice in twice" in result.stderr
        assert "left out: every server of gone is down" in result.stderr
        assert "left out" not in deepsched("get", "--groups", "app", "--set", config).stderr
        result = deepsched("set", f"twice/{first}=3", "--set", config)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert "listed twice in twice" in result.stderr
        assert "--groups" in result.stderr
        result = deepsched("get", "--groups", "app,gone", "--set", config)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert "remove `down` from one of its servers" in result.stderr
        before = (site.folder / "nginx.conf").read_text()
        result = deepsched("set", f"{third}=4", "--groups", "two words", "--set", config)
        assert result.returncode == 2
        assert f"unknown server '{third}'" in result.stderr
        result = deepsched("set", f"{third}=5", "--groups", "app", "--set", config)
        assert result.returncode == 0, result.stderr
        assert (site.folder / "nginx.conf").read_text() == before.replace(f"{third} weight=2", f"{third} weight=5")
        assert site.who(12) == {"0": 2, "2": 10}
        quick = ["--interval-s", "0.01", "--values", "1,2", "--set", "reload.min_reload_interval_s=0"]
        result = deepsched("explore", *quick, "--groups", "two words,app", "--set", config)
        assert "the first weights are restored" in result.stderr
        assert (site.folder / "nginx.conf").read_text() == before.replace(f"{third} weight=2", f"{third} weight=5")
        result = deepsched("get", "--set", config, "--set", "reload.groups=app")
        assert "'reload.groups' is now 'groups'" in result.stderr


def test_the_snippet_brings_balancing_in_memory_to_a_foreign_nginx(site: StockSite) -> None:
    port, snippet = free_port("127.0.0.1"), site.folder / "deepsched.conf"
    config = f"reload.config={site.folder}/nginx.conf"
    arguments = ["--out", str(snippet), "--port", str(port), "--set", config, "--set", "memory.method=round_robin"]
    result = deepsched("snippet", *arguments)
    assert result.returncode == 0, result.stderr
    assert [path.stat().st_mode & 0o777 for path in (snippet, Path(f"{snippet}.token"))] == [0o600, 0o600]
    assert f"http://127.0.0.1:{port}/status, the control is on http://127.0.0.1:{port}/control" in result.stderr
    token = Path(f"{snippet}.token")
    token.chmod(0o640)
    before = token.read_text()
    assert deepsched("snippet", *arguments).returncode == 0
    assert token.read_text() == before, "an NGINX with the snippet from before obeys this token"
    assert token.stat().st_mode & 0o777 == 0o640, "the right of a controller's user to read it"
    site.write(f"include {snippet};")
    again = deepsched("snippet", *arguments)
    assert (again.returncode, "is included already" in again.stderr) == (2, True)
    by_file = deepsched("set", f"{site.servers[0]}=4", "--set", config)
    assert (by_file.returncode, "Lua balances app" in by_file.stderr) == (2, True)
    memory = ["--control-url", f"http://127.0.0.1:{port}/control"]
    with site.start():
        assert site.who(9) == {"0": 3, "1": 3, "2": 3}
        result = deepsched("set", f"app/{site.servers[0]}=4", *memory)
        assert result.returncode == 2
        assert "token" in result.stderr
        memory += ["--token-file", f"{snippet}.token"]
        result = deepsched("set", f"app/{site.servers[0]}=4", f"{site.servers[2]}=down", *memory)
        assert result.returncode == 0, result.stderr
        assert site.who(10) == {"0": 8, "1": 2}
        result = deepsched("get", *memory)
        assert result.stdout.splitlines() == [
            f"app/{site.servers[0]}=4", f"app/{site.servers[1]}=1", f"app/{site.servers[2]}=down",
        ]  # fmt: skip
        result = deepsched("explore", "--interval-s", "0.01", "--values", "1,2", *memory)
        assert result.stderr.count("/down in force after") == 7
        with StatusReader(f"http://127.0.0.1:{port}/status") as reader:
            snapshot = reader.snapshot()
        assert [snapshot.groups["app"][server].request_counter for server in site.servers] == [11, 5, 3]
        assert snapshot.client_requests["*"] == 19
        nginx = open_actuator(ActuatorOptions(control_url=memory[1], token_file=Path(memory[3])))
        assert isinstance(nginx, MemoryActuator)
        times = ServiceTimes(nginx.topology, np.array([[0.1, 0.2, 0.3]]), np.full(3, 2.0))
        nginx.split(50, "expected_delay", times, "round_robin", Weights(nginx.topology, np.array([[5, 3, 2]])))
        result = deepsched("set", f"{site.servers[0]}=4", *memory)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert "a controller's canary is in force" in result.stderr
        result = deepsched("set", f"app/{site.servers[1]}=down", *memory)
        assert result.returncode == 0, result.stderr
        assert deepsched("get", *memory).stdout.splitlines() == [
            "canary: 50 % of the requests by expected_delay",
            f"app/{site.servers[0]}=tau 100.000 ms, 2 workers",
            f"app/{site.servers[1]}=down",
            f"app/{site.servers[2]}=tau 300.000 ms, 2 workers",
            "the other requests by round_robin",
            f"app/{site.servers[0]}=5", f"app/{site.servers[1]}=down", f"app/{site.servers[2]}=2",
        ]  # fmt: skip
        assert "1" not in site.who(20)
        result = deepsched("set", f"{site.servers[0]}=down", f"{site.servers[2]}=down", *memory)
        assert result.returncode == 2
        assert "every server is down" in result.stderr


def test_a_reload_names_the_one_method_that_is_configured(site: StockSite) -> None:
    port, snippet = free_port("127.0.0.1"), site.folder / "deepsched.conf"
    arguments = ["--out", str(snippet), "--port", str(port), "--set", f"reload.config={site.folder}/nginx.conf"]
    assert deepsched("snippet", *arguments).returncode == 0
    site.write(f"include {snippet};")
    url, token = f"http://127.0.0.1:{port}/control", Path(f"{snippet}.token").read_text().strip()
    with site.start() as process, http_session(10.0) as session:
        method, _, rest = MemoryControl.read(url).partition("\n")
        text = f"method configured\n{rest}"
        answer = session.post(url, data=text, headers={"X-Deepsched-Token": token})
        assert (answer.status_code, answer.text) == (200, text)
        workers = children(process.pid)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: not any(map(accepts, workers)))
        assert MemoryControl.read(url) == f"{method}\n{rest}"
        assert method == "method round_robin"


def test_the_first_control_comes_back_in_memory_on_the_servers_that_still_exist(site: StockSite) -> None:
    port, snippet = free_port("127.0.0.1"), site.folder / "deepsched.conf"
    arguments = ["--out", str(snippet), "--port", str(port), "--set", f"reload.config={site.folder}/nginx.conf"]
    assert deepsched("snippet", *arguments, "--set", "memory.method=round_robin").returncode == 0
    site.write(f"include {snippet};")
    url = f"http://127.0.0.1:{port}/control"
    with site.start() as process:
        nginx = open_actuator(ActuatorOptions(control_url=url, token_file=Path(f"{snippet}.token")))
        assert isinstance(nginx, MemoryActuator)
        first = Weights(nginx.topology, np.array([[5, 3, 2]]), np.array([[False, True, False]]))
        snippet.write_text(snippet.read_text().replace(f"server {site.servers[0]} ", "server 127.0.0.1:9 "))
        workers = children(process.pid)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: not any(map(accepts, workers)))
        restored = nginx.restore(first)
        assert restored.restored == (f"app/{site.servers[1]}", f"app/{site.servers[2]}")
        assert restored.missing == (f"app/{site.servers[0]}",)
        assert restored.added == ("app/127.0.0.1:9",)
        now = MemoryControl.read(url)
        assert f"weight app {site.servers[2]} 2\n" in now
        assert f"down app {site.servers[1]}\n" in now
        assert not nginx.restore(first).changed
        times = ServiceTimes(nginx.topology, np.array([[0.1, 0.2, 0.3]]), np.full(3, 2.0))
        assert nginx.restore(times).changed
        assert "method expected_delay" in MemoryControl.read(url)
        assert nginx.restore(first, "round_robin").changed
        assert "method round_robin" in MemoryControl.read(url)
