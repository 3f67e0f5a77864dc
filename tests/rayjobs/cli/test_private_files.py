"""What a command makes is private to its user, whatever the umask; files for other programs are not."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayjobs.cli.main import main
from tests.support.http_server import ScriptedServer
from tests.support.nginx_site import answer
from tests.support.steering_cases import trained_bundle
from tests.support.vts_documents import document


@pytest.fixture(params=[0, 0o022], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path, *, without: str = "") -> dict[str, int]:
    """Path below the folder → mode, of everything in it."""
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode)
        for path in folder.rglob("*")
        if not without or without not in path.parts
    }


def open_to_others(found: dict[str, int]) -> dict[str, str]:
    assert found
    return {name: oct(mode) for name, mode in found.items() if mode & 0o077}


@pytest.mark.nginx
@pytest.mark.parametrize("umask", [0], ids=oct, indirect=True)
def test_a_controller_with_its_nginx_and_servers(short_dir: Path, umask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(short_dir)
    trained_bundle().save(short_dir / "bundle")
    words = ["--bundle", "bundle", "--folder", "made/run", "--duration-s", "2", "--interval-s", "0.5"]
    assert main(["steer", "run", *words]) == 0
    assert main(["steer", "revert", "--folder", "made/run"]) == 1  # its NGINX has ended with it
    found = modes(short_dir, without="bundle")
    parts = {"audit.jsonl", "status.json", "orders.json", "original.json", "access.json", "lock", "nginx.conf"}
    logs = {"error.log", "server-0.log", "server-0.json", "social_network.sqlite"}
    assert parts | logs <= {Path(name).name for name in found}
    assert open_to_others(found) == {}
    assert os.umask(umask) == umask, "the command leaves the umask as it was"


def test_statistics_and_pages(tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ScriptedServer(lambda _: answer(200, json.dumps(document("after_load")))) as server:
        url = f"http://{server.address}/status"
        assert main(["collect", "x.json", "--status-url", url, "--duration-s=0.05", "--interval-s=0.02"]) == 0
    assert main(["scenarios", "show", "S7", "--json-out", "s7.json", "--page", "s7.html"]) == 0
    found = modes(tmp_path)
    assert {"x.json", "s7.json", "s7.html"} <= set(found)
    assert open_to_others(found) == {}


@pytest.mark.usefixtures("umask")
def test_what_other_programs_read_can_be_written_by_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["dashboards", "--out", "boards"]) == 0
    words = ["--bundle", "bundle", "--nginx-conf", "/etc/nginx/nginx.conf", "--status-url", "http://127.0.0.1:1/"]
    assert main(["steer", "units", "units", *words]) == 0
    files = {name: mode for name, mode in modes(tmp_path).items() if (tmp_path / name).is_file()}
    assert set(files.values()) == {0o644}, "whoever writes a unit commands its user"
    assert {"boards/alerts.yml", "units/deepsched-steer.service"} <= set(files)
