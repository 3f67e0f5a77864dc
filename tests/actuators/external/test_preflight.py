"""Preflight: what stands in the way of watching and steering an NGINX is found by reading, and has a remedy."""

from __future__ import annotations

import copy
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actuators.external.checks import Check
from actuators.external.preflight import PreflightOptions, preflight
from actuators.files import write_private
from tests.support.http_server import Received, ScriptedServer
from tests.support.metrics import as_text
from tests.support.nginx_site import fake_nginx
from tests.support.stock_nginx import StockSite
from tests.support.vts_documents import document

GROUPS = ("compose_backend", "home_read_backend", "user_read_backend")
CONF = "http {{ {} }}"


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


class Status:
    """Serves a vts document, and what the control interface of a version answers to the question about `expire`."""

    def __init__(
        self, change: Callable[[dict[str, Any]], None] = lambda _: None, *, knows_expire: bool | None = None
    ) -> None:
        self.document, self.knows_expire = copy.deepcopy(document("after_load")), knows_expire
        change(self.document)

    def __call__(self, request: Received) -> bytes:
        if "/control?cmd=status&" in request.line:
            if self.knows_expire is None:
                return b"HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n"
            return ok(b'{"processingReturn":false}' if self.knows_expire else b'{"serverZones":{}}')
        return ok(json.dumps(self.document).encode())


def checks(answer: Callable[[Received], bytes], path: str = "/status/format/json", **options: Any) -> dict[str, Check]:
    with ScriptedServer(answer) as server:
        return checked(f"http://me:secret@{server.address}{path}", **options)


def checked(status_url: str, **options: Any) -> dict[str, Check]:
    found = preflight(PreflightOptions(status_url=status_url, **options))
    assert all(check.remedy or check.level == "ok" for check in found), found
    assert "secret" not in str(found)
    return {check.name: check for check in found}


def levels(found: dict[str, Check]) -> dict[str, str]:
    return {name: check.level for name, check in found.items()}


def test_an_nginx_that_shows_everything() -> None:
    found = checks(Status(knows_expire=False), load_balancers=1)
    assert levels(found) == {
        "statistics": "ok", "upstreams": "ok", "histogram": "ok", "zone": "ok", "failed attempts": "warn",
        "load balancers": "ok", "weights": "warn",
    }  # fmt: skip
    assert "v0.2.7" in found["statistics"].what


def test_an_nginx_that_does_not_answer() -> None:
    found = checks(lambda _: b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")
    assert levels(found) == {"statistics": "fail", "weights": "warn"}
    assert "HTTP status 404" in found["statistics"].what


@pytest.mark.parametrize(
    ("version", "knows_expire", "words"),
    [
        ("v0.2.2", None, "are not counted"),
        ("v0.2.7", False, "are not counted"),
        ("v0.2.7", True, "are counted for"),
        ("v0.2.7", None, "may or may not"),
        ("v0.3.0", None, "are counted for"),
        ("deepsched", None, "are counted, unless"),
        ("fork", None, "may or may not"),
    ],
)
def test_what_counts_failed_attempts(version: str, knows_expire: bool | None, words: str) -> None:
    def is_version(doc: dict[str, Any]) -> None:
        doc["moduleVersion"] = version

    assert words in checks(Status(is_version, knows_expire=knows_expire))["failed attempts"].what


def test_an_entry_for_requests_without_a_server_shows_that_attempts_are_counted() -> None:
    body = json.dumps(document("all_refused")).encode()
    assert checks(lambda _: ok(body))["failed attempts"].level == "ok"


def test_metrics_are_enough_to_watch() -> None:
    body = as_text(document("after_load")).encode()
    found = checks(lambda _: ok(body), "/status/format/prometheus")
    assert found["source"].level == "warn"
    assert "fail" not in levels(found).values()


def test_groups_silent_unknown_or_missing() -> None:
    def silent(doc: dict[str, Any]) -> None:
        for entry in doc["upstreamZones"]["compose_backend"]:
            entry["requestCounter"] = 0

    assert "compose_backend" in checks(Status(silent))["traffic"].what
    assert "traffic" not in checks(Status(silent), groups=("user_read_backend",))
    unknown = checks(Status(), groups=("user_read",))["upstreams"]
    assert (unknown.level, unknown.remedy) == ("fail", "did you mean 'user_read_backend'?")

    def only_addresses(doc: dict[str, Any]) -> None:
        doc["upstreamZones"] = {"::nogroups": doc["upstreamZones"]["compose_backend"]}

    assert checks(Status(only_addresses))["upstreams"].level == "fail"


def test_an_nginx_without_an_upstream_block() -> None:
    """Its vts leaves the key out."""
    found = checks(Status(lambda doc: doc.pop("upstreamZones")))
    assert found["statistics"].level == "ok"
    assert (found["upstreams"].level, found["upstreams"].what) == ("fail", "the statistics show no upstream block")


def test_a_full_zone_and_an_empty_histogram() -> None:
    def change(doc: dict[str, Any]) -> None:
        doc["sharedZones"]["freeSize"] = 0
        for entries in doc["upstreamZones"].values():
            for entry in entries:
                entry["responseBuckets"] = {"msecs": [], "counters": []}
        doc["upstreamZones"]["compose_backend"][0]["requestCounter"] = 0

    found = checks(Status(change))
    assert (found["zone"].level, found["histogram"].level) == ("fail", "warn")
    assert "cmd=delete&group=upstream@group" in found["histogram"].remedy
    assert "vhost_traffic_status_histogram_buckets" in found["histogram"].remedy


def test_several_machines_behind_one_url() -> None:
    first, second = Status(), Status(lambda doc: doc.update(hostName="other"))
    turns: Iterator[Callable[[Received], bytes]] = iter([first, second, first, first])
    found = checks(lambda request: next(turns)(request))  # noqa: PLW0108 - a turn for each request
    assert found["one machine"].level == "fail"
    assert "other" in found["one machine"].what
    assert checks(Status())["load balancers"].level == "warn"
    assert "3 machines" in checks(Status(), load_balancers=3)["load balancers"].what


def configured(folder: Path, upstreams: str, **options: Any) -> dict[str, Check]:
    (folder / "nginx.conf").write_text(CONF.format(upstreams))
    (folder / "bin").mkdir(exist_ok=True)
    binary = next(iter((folder / "bin").glob("nginx")), None) or fake_nginx(folder / "bin", "")
    return checks(Status(), nginx_conf=folder / "nginx.conf", nginx=str(binary), **options)


def upstream(name: str, method: str = "", servers: tuple[str, ...] = ("18101", "18102", "18103")) -> str:
    lines = " ".join(f"server 127.0.0.1:{port};" if port.isdecimal() else f"server {port};" for port in servers)
    return f"upstream {name} {{ {method} {lines} }}"


@pytest.mark.parametrize("method", ["ip_hash;", "hash $request_uri consistent;", "sticky cookie s;"])
def test_methods_that_weights_cannot_steer(tmp_path: Path, method: str) -> None:
    others = upstream(GROUPS[1]) + upstream(GROUPS[2], "least_conn;")
    mixed = configured(tmp_path, upstream(GROUPS[0], method) + others)["methods"]
    assert mixed.level == "warn"
    assert mixed.remedy == f"leave them out: --groups {GROUPS[1]},{GROUPS[2]}"
    named = configured(tmp_path, upstream(GROUPS[0], method) + others, groups=(GROUPS[0], GROUPS[1]))["methods"]
    assert named.level == "fail"
    assert configured(tmp_path, upstream(GROUPS[0], method))["methods"].level == "fail"


def test_other_methods(tmp_path: Path) -> None:
    assert configured(tmp_path, upstream(GROUPS[0]))["methods"].what == "round robin: weights decide"
    random = configured(tmp_path, upstream(GROUPS[0], "random two least_conn;"))["methods"]
    assert (random.level, GROUPS[0] in random.what) == ("warn", True)


@pytest.mark.parametrize(
    ("workers", "zone", "level"),
    [("", "", "ok"), ("worker_processes 4;", "zone x 64k;", "ok"), ("worker_processes 4;", "", "warn")],
)
def test_workers_that_balance_alone_are_said(tmp_path: Path, workers: str, zone: str, level: str) -> None:
    found = configured(tmp_path, upstream(GROUPS[0], zone))["workers"]
    assert found.level == "ok", "one worker is NGINX's default"
    (tmp_path / "nginx.conf").write_text(workers + CONF.format(upstream(GROUPS[0], zone)))
    binary = str(tmp_path / "bin" / "nginx")
    found = checks(Status(), nginx_conf=tmp_path / "nginx.conf", nginx=binary)["workers"]
    assert found.level == level
    assert (GROUPS[0] in found.what) == (level == "warn")


def test_names_of_configuration_and_statistics(tmp_path: Path) -> None:
    assert configured(tmp_path, upstream(GROUPS[0]))["names"].level == "ok"
    other = configured(tmp_path, upstream("elsewhere"))["names"]
    assert (other.level, "elsewhere" in other.what) == ("fail", True)
    missing = configured(tmp_path, upstream(GROUPS[0], servers=("18101", "18999")))["names"]
    assert (missing.level, "127.0.0.1:18999" in missing.what) == ("fail", True)


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    found = configured(tmp_path, "upstream x {")
    assert found["configuration"].level == "fail"
    assert checks(Status(), nginx_conf=tmp_path / "none.conf")["configuration"].level == "fail"


def test_upstreams_that_lua_balances_do_not_obey_their_files(tmp_path: Path) -> None:
    found = configured(tmp_path, upstream(GROUPS[0], "balancer_by_lua_block { return }") + upstream(GROUPS[1]))
    assert (found["configuration"].level, f"Lua balances {GROUPS[0]}" in str(found)) == ("warn", True)
    alone = configured(tmp_path, upstream(GROUPS[0], "balancer_by_lua_file /b.lua;"))["configuration"]
    assert alone.level == "fail"
    assert "--control-url" in alone.remedy


@pytest.mark.parametrize("left", ["lock", "original"])
def test_what_a_run_of_another_user_has_left_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """Root's are readable by root only: the service's user could change and revert nothing."""
    path = tmp_path / f".nginx.conf.deepsched-{left}"
    path.touch()
    monkeypatch.setattr(os, "access", lambda asked, mode: Path(asked) != path)
    found = configured(tmp_path, upstream(GROUPS[0]))["files"]
    assert (found.level, str(path) in found.what, str(path) in found.remedy) == ("fail", True, True)


def test_files_that_this_user_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "nginx.conf")
    found = configured(tmp_path, upstream(GROUPS[0]))["files"]
    assert (found.level, str(tmp_path) in found.what) == ("fail", True)


def test_a_main_file_in_a_folder_that_this_user_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change makes a lock and a copy beside it, although only an included file changes."""
    included = tmp_path / "conf.d" / "app.conf"
    included.parent.mkdir()
    included.write_text(upstream(GROUPS[0]))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    found = configured(tmp_path, f"include {included};")["files"]
    assert found.level == "fail"
    assert found.what.endswith(f"cannot be written: {tmp_path}")


def test_files_of_another_user_are_told_even_where_they_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As through a group or an ACL: their owner could not be kept."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setattr(os, "access", lambda *_: True)
    found = configured(tmp_path, upstream(GROUPS[0]))["files"]
    assert (found.level, found.remedy.partition(";")[0]) == ("fail", "run as root or as their owner")
    assert "belong to another user" in found.what


@pytest.mark.parametrize(
    ("script", "level", "words"),
    [
        ("exit 0", "ok", "accepts"),
        ("echo 'nginx: [emerg] open() \"/etc/x\" failed' >&2; exit 1", "fail", "open\\(\\) ./etc/x. failed"),
        ("printf 'a name in Latin-1: \\366' >&2; exit 1", "fail", "Latin-1: \ufffd$"),
    ],
)
def test_the_test_of_the_configuration_is_run(tmp_path: Path, script: str, level: str, words: str) -> None:
    command = tmp_path / "test-nginx"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    found = configured(tmp_path, upstream(GROUPS[0]), reload={"test_command": (str(command), "-c")})["nginx -t"]
    assert found.level == level
    assert re.search(words, found.what)
    gone = configured(tmp_path, upstream(GROUPS[0]), reload={"test_command": (str(tmp_path / "no"),)})["nginx -t"]
    assert (gone.level, gone.remedy) == ("fail", "set reload.test_command")


def test_logs_that_the_test_of_the_configuration_makes_can_be_read(tmp_path: Path) -> None:
    """The files of this project are private; those of NGINX are its own."""
    command = tmp_path / "test-nginx"
    command.write_text(f"#!/bin/sh\ntouch {tmp_path}/log\n")
    command.chmod(0o755)
    before = os.umask(0o077)
    try:
        configured(tmp_path, upstream(GROUPS[0]), reload={"test_command": (str(command), "-c")})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o644


def test_sudo_is_asked_whether_it_allows_the_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sudo = tmp_path / "sudo"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for status, level in ((0, "ok"), (1, "fail")):
        sudo.write_text(f'#!/bin/sh\nprintf "%s" "$*" > {tmp_path}/asked\nexit {status}\n')
        sudo.chmod(0o755)
        command = ("sudo", "-n", "/opt/own/reload", "nginx")
        found = configured(tmp_path, upstream(GROUPS[0]), reload={"reload_command": command})["reload"]
        assert found.level == level
        assert (tmp_path / "asked").read_text() == "-n -l /opt/own/reload nginx"
    assert "NOPASSWD: /opt/own/reload nginx" in found.remedy
    gone = configured(tmp_path, upstream(GROUPS[0]), reload={"reload_command": ("no-such-program",)})["reload"]
    assert gone.level == "fail"
    assert configured(tmp_path, upstream(GROUPS[0]), reload={"pid_file": tmp_path / "none"})["reload"].level == "fail"


@pytest.mark.nginx
def test_a_real_nginx_that_runs_with_a_prefix(short_dir: Path) -> None:
    """Its test needs the same -p; without, relative paths mean other files."""
    site = StockSite(short_dir, [f"127.0.0.1:{port}" for port in (18101, 18102, 18103)])
    (short_dir / "nginx.conf").write_text(
        (short_dir / "nginx.conf").read_text().replace("upstream app", f"upstream {GROUPS[0]}").replace(
            "http://app", f"http://{GROUPS[0]}"
        )
    )  # fmt: skip
    with site.start():
        found = checks(Status(), nginx_conf=short_dir / "nginx.conf", reload={"pid_file": short_dir / "nginx.pid"})
    assert levels(found) | {"files": "ok", "nginx -t": "ok", "reload": "ok", "weights in memory": "ok"} == levels(found)


def test_the_control_endpoint_and_its_token(tmp_path: Path) -> None:
    write_private(tmp_path / "token", "a-token-of-this-length\n")
    write_private(tmp_path / "empty", "")
    (tmp_path / "open").touch(0o644)
    (tmp_path / "open").write_text("a-token-of-this-length\n")

    def answer(request: Received) -> bytes:
        text = b"method round_robin\nweight compose_backend 127.0.0.1:18101 1\n"
        return ok(text) if "/control " in request.line else Status()(request)

    with ScriptedServer(answer) as server:
        base = f"http://{server.address}"
        for token, level in (("token", "ok"), ("empty", "fail"), ("open", "fail"), ("none", "fail")):
            found = checked(f"{base}/status", control_url=f"{base}/control", token_file=tmp_path / token)
            assert (found["control"].level, found["token"].level) == ("ok", level)
        assert checked(f"{base}/status", control_url=f"{base}/control")["token"].level == "warn"
        assert checked(f"{base}/status", control_url=f"{base}/elsewhere")["control"].level == "fail"
