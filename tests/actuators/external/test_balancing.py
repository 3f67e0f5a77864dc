"""How a configuration balances its upstreams: the method, and the workers that share no state."""

from __future__ import annotations

from pathlib import Path

import pytest

from actuators.errors import ConfigError
from actuators.external.balancing import Balancing, configured_balancing


def conf(folder: Path, upstreams: str) -> Path:
    path = folder / "nginx.conf"
    path.write_text(f"worker_processes 4;\nevents {{}}\nhttp {{ {upstreams} }}\n")
    return path


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ("", Balancing("round_robin", 4)),
        ("zone app 64k;", Balancing("round_robin", 1)),
        ("least_conn; zone app 64k;", Balancing("least_conn", 1)),
        ("random two;", Balancing("random_two", 4)),
    ],
)
def test_the_method_and_the_workers_of_an_upstream(settings: str, found: Balancing, tmp_path: Path) -> None:
    assert configured_balancing(conf(tmp_path, f"upstream app {{ {settings} server 127.0.0.1:9; }}"), ["app"]) == found


def test_what_cannot_be_simulated_is_said(tmp_path: Path) -> None:
    servers = "server 127.0.0.1:9;"
    with pytest.raises(ConfigError, match=r"it balances by ip_hash .*upstream app"):
        configured_balancing(conf(tmp_path, f"upstream app {{ ip_hash; {servers} }}"), ["app"])
    with pytest.raises(ConfigError, match="it balances by Lua"):
        configured_balancing(conf(tmp_path, f"upstream app {{ {servers} balancer_by_lua_file /b.lua; }}"), ["app"])
    two = conf(tmp_path, f"upstream app {{ least_conn; {servers} }} upstream api {{ {servers} }}")
    with pytest.raises(ConfigError, match="different methods: app: least_conn, api: round_robin"):
        configured_balancing(two, ["app", "api"])
    with pytest.raises(ConfigError, match="no upstream 'other'"):
        configured_balancing(two, ["other"])
