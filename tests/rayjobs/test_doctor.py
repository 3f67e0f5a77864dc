"""The doctor: every lack is found, carries its remedy, and decides the exit code."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from actuators.errors import MissingToolError
from rayjobs import doctor
from rayjobs import doctor as checks
from rayjobs.cli.config import load_options
from rayjobs.doctor import DoctorOptions, Finding, diagnose, require


def program(folder: Path, name: str, text: str) -> Path:
    """A shell script as a stand-in for a program."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def fake_nginx(folder: Path, *, version: str = "1.26.2", arguments: str = "", check: str = "exit 0") -> str:
    about = f"nginx version: nginx/{version}\\nconfigure arguments: --modules-path={folder} {arguments}\\n"
    return str(program(folder, "nginx", f'case "$1" in -V) printf "{about}" >&2;; -t) {check};; esac'))


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


@pytest.mark.nginx
def test_this_machine_can_run_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(DoctorOptions()) == 0
    text = capsys.readouterr().out
    assert "The demo can run" in text
    for part in ("Python", "Ray", "C compiler", "NGINX", "statistics", "ports", "memory", "disk"):
        assert part in text


def test_every_restriction_and_lack_has_a_remedy() -> None:
    assert all(finding.remedy for finding in diagnose("no-such-nginx") if finding.level != "ok")


def test_without_nginx_it_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(DoctorOptions(nginx="no-such-nginx")) == 2
    text = capsys.readouterr().out
    assert "The demo cannot run yet: NGINX." in text
    assert "apt-get install -y nginx libnginx-mod-http-lua" in text


def test_the_demo_gets_everything_that_is_missing_as_one_error() -> None:
    findings = [
        Finding("NGINX", "missing", "no NGINX ('nginx')", "run: x"),
        Finding("cores", "poor", "1", "expect noise"),
        Finding("C compiler", "missing", "no C compiler", "run: y"),
    ]
    with pytest.raises(MissingToolError) as caught:
        require(findings)
    assert str(caught.value) == "NGINX: no NGINX ('nginx'); C compiler: no C compiler; run: x; run: y"
    require([findings[1]])


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    finding = checks.compiler()
    assert (finding.level, finding.remedy) == ("missing", "run: apt-get install gcc libc6-dev")


def test_a_compiler_without_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, "cc", 'echo "sys/epoll.h: No such file" >&2; exit 1')
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    finding = checks.compiler()
    assert finding.level == "missing"
    assert "sys/epoll.h: No such file" in finding.found


def test_an_engine_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    finding = checks.engine_cache()
    assert finding.level == "missing"
    assert "XDG_CACHE_HOME" in finding.remedy


def test_an_old_nginx(tmp_path: Path) -> None:
    (finding,) = checks.nginx(fake_nginx(tmp_path, version="1.14.0"))
    assert finding.level == "missing"
    assert "1.14.0" in finding.found


def test_an_nginx_without_statistics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("actuators.nginx.detect.MODULE_DIRS", ())
    found = by_name(checks.nginx(fake_nginx(tmp_path)))
    assert found["NGINX"].level == "ok"
    assert found["statistics"].level == "missing"
    assert found["weights in memory"].level == "poor"


@pytest.mark.nginx
def test_vts_without_lua_is_enough_with_reloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("actuators.nginx.detect.MODULE_DIRS", ())
    found = by_name(checks.nginx(fake_nginx(tmp_path, arguments="--add-module=/src/nginx-module-vts")))
    assert found["statistics"] == Finding("statistics", "ok", "nginx-module-vts")
    assert "change by reload" in found["weights in memory"].found


@pytest.mark.nginx
def test_a_module_of_another_nginx_version_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("actuators.nginx.detect.MODULE_DIRS", ())
    (tmp_path / "ngx_http_vhost_traffic_status_module.so").write_text("")
    refusal = 'echo "nginx: [emerg] module is not binary compatible" >&2; exit 1'
    found = by_name(checks.nginx(fake_nginx(tmp_path, check=refusal)))
    assert found["statistics"].level == "missing"
    assert "not binary compatible" in found["statistics"].found


@pytest.mark.nginx
def test_a_broken_vts_module_leaves_lua_in_charge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real NGINX is asked, and refuses a module that is none."""
    (tmp_path / "ngx_http_vhost_traffic_status_module.so").write_text("not a library")
    monkeypatch.setattr("actuators.nginx.detect.MODULE_DIRS", (str(tmp_path), "/usr/lib/nginx/modules"))
    found = by_name(checks.nginx())
    assert found["statistics"].found.startswith("by Lua, in vts' format (nginx-module-vts: dlopen()")
    assert found["statistics"].level == "ok"


def test_a_container_limit_counts_more_than_the_machine(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {64 * 2**20} kB\nMemAvailable: {32 * 2**20} kB\n")
    assert checks.memory(tmp_path).level == "ok"
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{4 * 2**30}\n")
    (group / "memory.current").write_text(f"{3 * 2**30}\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 0\n")
    assert checks.memory(tmp_path).level == "missing"
    (group / "memory.stat").write_text(f"inactive_file {2 * 2**30}\n")
    assert checks.memory(tmp_path) == Finding(
        "memory", "poor", "3.0 GB free", "4 GB are recommended; close other programs or use a larger machine"
    )
    (group / "memory.max").write_text("max\n")
    assert checks.memory(tmp_path).level == "ok"


def test_little_shared_memory_is_a_restriction_only(tmp_path: Path) -> None:
    assert checks.shared_memory(tmp_path).level == "poor"


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100 * 2**20}))
    assert checks.disk().level == "missing"


def test_one_core_is_called_noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert checks.cores().level == "poor"


def test_packages_are_compared_with_their_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "pinned_versions", lambda extra="": {"numpy": "0.1"})
    assert checks.packages().level == "poor"
    monkeypatch.setattr(checks, "pinned_versions", lambda extra="": {"no-such-package": "1"})
    assert checks.packages() == Finding("packages", "missing", "no-such-package is not installed", "run: make setup")
    monkeypatch.setattr(checks, "pinned_versions", lambda extra="": {"torch": "2.13.0"})
    assert checks.packages().level == "ok", "+cpu is the same version"


def test_ray_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert checks.ray().level == "missing"


def test_the_status_url_is_that_beside_the_control_endpoint_unless_one_is_given() -> None:
    control = {"control_url": "http://127.0.0.1:8090/control"}
    assert load_options(DoctorOptions, flags=control).status_url == "http://127.0.0.1:8090/status"
    own = "http://127.0.0.1:8081/status/format/json"
    assert load_options(DoctorOptions, flags=control | {"status_url": own}).status_url == own
    assert load_options(DoctorOptions, flags={}).status_url == ""
