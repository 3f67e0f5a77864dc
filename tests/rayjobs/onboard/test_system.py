"""How a system balances today is read from its configuration, and what the simulator makes of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actuators.errors import ConfigError
from rayjobs.onboard.options import OnboardOptions
from rayjobs.onboard.system import Way, way_of
from rayjobs.onboard.twin import simulation_of
from tests.support.http_server import ScriptedServer

URL = "http://127.0.0.1:1/status/format/json"


@pytest.mark.parametrize(
    ("workers", "zone", "alone"), [("1", "", 1), ("6", "", 6), ("6", "zone web 64k;", 1), ("auto", "", os.cpu_count())]
)
def test_workers_without_a_zone_balance_alone(tmp_path: Path, workers: str, zone: str, alone: int) -> None:
    config = tmp_path / "nginx.conf"
    upstream = f"upstream web {{ least_conn; {zone} server 127.0.0.1:2; }}"
    config.write_text(f"worker_processes {workers};\nevents {{}}\nhttp {{ {upstream} }}\n")
    way = way_of(OnboardOptions(status_url=URL, nginx_conf=config, load_balancers=3), ["web"])
    assert (way.method, way.machines, way.workers) == ("least_conn", 3, alone)


def test_steered_in_memory_the_workers_of_a_machine_share_and_by_reload_they_forget() -> None:
    in_memory = simulation_of(6, Way("round_robin", True, True, "test", machines=2))
    assert (in_memory.workers_sharing_memory, in_memory.actuation) == (3, "memory")
    by_reload = simulation_of(6, Way("least_conn", False, True, "test", machines=2, workers=3))
    assert (by_reload.workers_sharing_memory, by_reload.actuation) == (1, "reload")
    assert by_reload.actuation_delay_s == pytest.approx(0.11)


def controlled(method: str) -> ScriptedServer:
    """An endpoint of an NGINX that balances in memory."""
    text = f"method {method}\nweight app 10.0.0.1:80 1\n".encode()
    return ScriptedServer(lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))


def test_a_method_that_nginx_does_not_tell_has_a_remedy() -> None:
    with controlled("configured") as server:
        options = OnboardOptions(status_url=URL, control_url=f"http://{server.address}/control")
        with pytest.raises(ConfigError, match=r"does not tell how .*reload NGINX.*memory\.method=least_conn"):
            way_of(options, ["app"])


def test_the_source_of_a_method_shows_no_password() -> None:
    with controlled("round_robin") as server:
        options = OnboardOptions(status_url=URL, control_url=f"http://me:secret@{server.address}/control")
        way = way_of(options, ["app"])
    assert (way.method, way.in_memory, way.source) == ("round_robin", True, f"http://{server.address}/control")
