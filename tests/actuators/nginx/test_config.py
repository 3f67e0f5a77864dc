"""What an NGINX can do decides who counts and how controls are applied; rendering is pure text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import Weights
from actuators.contract.topology import social_network
from actuators.contract.window import DEFAULT_BOUNDS_MS
from actuators.errors import ActuationError, ConfigError, MissingToolError
from actuators.nginx.config import NginxOptions, NginxSite, in_memory, render_main, render_upstreams, uses_vts
from actuators.nginx.detect import NginxBuild, detect
from tests.support.nginx_site import fake_nginx

LUA = (Path("/m/ndk_http_module.so"), Path("/m/ngx_http_lua_module.so"))
STOCK = NginxBuild(Path("/usr/sbin/nginx"), "1.22.1", lua=LUA, vts=None)
WITH_VTS = NginxBuild(Path("/usr/sbin/nginx"), "1.22.1", lua=None, vts=Path("/m/vts.so"))
BOTH = NginxBuild(Path("/usr/sbin/nginx"), "1.22.1", lua=LUA, vts=Path())
BARE = NginxBuild(Path("/usr/sbin/nginx"), "1.22.1", lua=None, vts=None)
TOPOLOGY = social_network(("127.0.0.1:1", "[::1]:2", "unix:/run/a.sock"))
SITE = NginxSite(Path("/p"), "127.0.0.1", 80, 81)


def test_modules_are_found_where_nginx_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actuators.nginx.detect.MODULE_DIRS", ())
    modules = ("ndk_http_module.so", "ngx_http_lua_module.so", "ngx_http_vhost_traffic_status_module.so")
    build = detect(fake_nginx(tmp_path, f"--modules-path={tmp_path}/modules", *modules))
    assert build.version == "1.29.1"
    assert build.lua == (tmp_path / "modules" / modules[0], tmp_path / "modules" / modules[1])
    assert build.vts == tmp_path / "modules" / modules[2]


def test_compiled_in_modules_need_no_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actuators.nginx.detect.MODULE_DIRS", ())
    build = detect(fake_nginx(tmp_path, "--add-module=/src/lua-nginx-module --add-module=/src/nginx-module-vts"))
    assert (build.lua, build.vts) == ((), Path())
    assert "load_module" not in main(build, NginxOptions(method="least_conn"), memory=True)


def test_a_program_that_is_no_nginx_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "nginx"
    binary.write_text("#!/bin/sh\nexit 3\n")
    binary.chmod(0o755)
    with pytest.raises(MissingToolError, match="does not run"):
        detect(str(binary))
    with pytest.raises(MissingToolError, match="apt-get install"):
        detect(str(tmp_path / "none"))


def test_who_counts_follows_from_modules_and_options() -> None:
    assert not uses_vts(NginxOptions(), STOCK)
    assert uses_vts(NginxOptions(), WITH_VTS)
    assert not uses_vts(NginxOptions(), BOTH)
    assert uses_vts(NginxOptions(actuation="reload"), BOTH)
    assert not uses_vts(NginxOptions(actuation="reload", statistics="lua"), BOTH)
    with pytest.raises(ConfigError, match="no vts module"):
        uses_vts(NginxOptions(statistics="vts"), STOCK)
    with pytest.raises(ConfigError, match="not those in memory"):
        uses_vts(NginxOptions(statistics="vts"), BOTH)
    with pytest.raises(MissingToolError, match="no Lua module"):
        uses_vts(NginxOptions(), BARE)


def test_how_controls_are_applied_follows_from_method_and_modules() -> None:
    assert in_memory("expected_delay", NginxOptions(), STOCK)
    assert in_memory("least_conn", NginxOptions(), STOCK)
    assert not in_memory("random_two", NginxOptions(), STOCK)
    assert not in_memory("least_conn", NginxOptions(), WITH_VTS)
    assert not in_memory("least_conn", NginxOptions(actuation="reload"), STOCK)
    for options, method, build in (
        (NginxOptions(), "expected_delay", WITH_VTS),
        (NginxOptions(actuation="reload"), "expected_delay", STOCK),
        (NginxOptions(actuation="memory"), "random_two", STOCK),
    ):
        with pytest.raises(ActuationError, match="not possible"):
            in_memory(method, options, build)
    with pytest.raises(MissingToolError):
        in_memory("least_conn", NginxOptions(actuation="memory"), WITH_VTS)


def main(build: NginxBuild, options: NginxOptions, *, memory: bool) -> str:
    return render_main(
        SITE, TOPOLOGY, options, build, upstreams=SITE.upstreams, token="t", memory=memory, method=options.method
    )


def test_with_the_real_module_there_is_no_lua() -> None:
    text = main(WITH_VTS, NginxOptions(), memory=False)
    assert 'load_module "/m/vts.so";' in text
    assert "lua" not in text
    bounds = " ".join(f"{bound / 1000:g}" for bound in DEFAULT_BOUNDS_MS)
    assert f"vhost_traffic_status_histogram_buckets {bounds};" in text
    assert len(DEFAULT_BOUNDS_MS) <= 32
    assert "location /status/control { return 403; }" in text


def test_statistics_and_control_are_never_on_the_public_listener() -> None:
    for build, memory in ((STOCK, True), (STOCK, False), (WITH_VTS, False)):
        public, private = main(build, NginxOptions(), memory=memory).split("  server {\n")[1:]
        assert "listen 127.0.0.1:80 " in public
        assert "listen 127.0.0.1:81;" in private
        assert "location /status" in private or "location = /status" in private
        for word in ("/status", "/control", "serve()"):
            assert word not in public


def test_upstreams_say_method_weights_and_down() -> None:
    down = np.zeros((3, 3), bool)
    down[0, 2] = True
    weights = Weights(TOPOLOGY, np.tile([5, 3, 2], (3, 1)), down)
    text = render_upstreams(weights, "least_conn", NginxOptions(max_fails=2, fail_timeout_s=7), memory=False)
    first = text.split("}\n")[0]
    assert first.startswith("upstream compose_backend {\n  zone compose_backend")
    assert "  least_conn;\n" in first
    assert "  server 127.0.0.1:1 weight=5 max_fails=2 fail_timeout=7s;\n" in first
    assert "  server unix:/run/a.sock weight=2 max_fails=2 fail_timeout=7s down;\n" in first
    memory = render_upstreams(weights, "expected_delay", NginxOptions(), memory=True)
    assert memory.index('BALANCER.pick("compose_backend")') < memory.index("keepalive")
    assert "zone" not in memory
