"""The rule of admission survives a restart of NGINX without any process of ours; no file keeps it from starting."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from actuators.processes.system import children
from actuators.statistics.reader import StatusReader
from actuators.statistics.vts import AdmissionStatus
from tests.support.http_server import HANG, Received, ScriptedServer
from tests.support.nginx_site import answer
from tests.support.stock_nginx import StockSite
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.nginx

GROUPS = ("compose_backend", "home_read_backend", "user_read_backend")
TIGHT = ("--calibration", "tests/data/runs/calibration.json", "--percent", "100", "--rule", "fixed", "--set",
         "numbers.multiple=0.001", "--set", "numbers.most_refused=1")  # fmt: skip
"""One request at a time."""
NOBODY = 65534


@dataclass
class Place:
    """A stock NGINX with the snippet, before one server."""

    site: StockSite
    port: int
    script: dict[int, Callable[[Received], bytes]]
    server: ScriptedServer
    rule: bytes = b""

    @property
    def kept(self) -> Path:
        return self.site.folder / "deepsched.conf.admission"

    def admission(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        reach = ["--control-url", f"http://127.0.0.1:{self.port}/control"]
        reach += ["--token-file", f"{self.site.folder}/deepsched.conf.token"]
        command = [sys.executable, "-m", "rayjobs.admission", verb, *reach, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    def keep(self) -> None:
        """The tight rule is kept as `admission set --keep` does; NGINX has ended, and its log is empty."""
        if not self.rule:
            with self.site.start():
                assert self.admission("set", *TIGHT, "--keep", str(self.kept)).returncode == 0
            assert self.kept.stat().st_mode & 0o777 == 0o600
            self.rule = self.kept.read_bytes()
        self.forget()
        self.kept.touch(0o600)
        self.kept.write_bytes(self.rule)

    def forget(self) -> None:
        """Nothing is kept, and NGINX's log is empty."""
        if self.kept.is_dir():
            self.kept.rmdir()
        self.kept.unlink(missing_ok=True)
        (self.site.folder / "error.log").write_text("")

    def status(self) -> AdmissionStatus:
        with StatusReader(f"http://127.0.0.1:{self.port}/status") as reader:
            balancer = reader.snapshot().balancer
        assert balancer is not None
        assert balancer.admission is not None
        return balancer.admission

    def errors(self) -> list[str]:
        """What the error log says; a starting NGINX says it on stderr as well, which is sent to the same file."""
        lines = (self.site.folder / "error.log").read_text().splitlines()
        return [line for line in lines if not line.startswith("nginx: ")]

    def pending(self) -> http.client.HTTPConnection:
        """A request that the server has and does not answer."""
        before, self.script[0] = len(self.server.requests), lambda _: HANG
        connection = http.client.HTTPConnection(f"127.0.0.1:{self.site.port}", timeout=PATIENCE_S)
        connection.request("GET", "/x")
        wait_until(lambda: len(self.server.requests) > before)
        return connection


@pytest.fixture(scope="module")
def made() -> Iterator[Place]:
    script: dict[int, Callable[[Received], bytes]] = {}

    def respond(request: Received) -> bytes:
        return script[0](request)

    with tempfile.TemporaryDirectory(prefix="ds-") as name, ScriptedServer(respond) as server:
        site = StockSite(Path(name), [server.address])
        site.write(" ".join(f"upstream {group} {{ server {server.address}; }}" for group in GROUPS))
        main = site.folder / "nginx.conf"
        main.write_text(main.read_text().replace("http://app", "http://home_read_backend"))
        yield Place(site, site.include_snippet("--set", "memory.admission=true"), script, server)


@pytest.fixture
def place(made: Place) -> Place:
    """The one of all tests here, as if no rule had been there before."""
    made.script[0] = lambda _: answer(200, "0")
    made.forget()
    return made


def is_refusing(place: Place) -> bool:
    """Whether a second request beside one that hangs is refused."""
    wait_until(lambda: place.status().groups[1].limit is not None)
    connection = place.pending()
    place.script[0] = lambda _: answer(200, "0")
    answers = place.site.who(1)
    connection.close()
    return "503" in next(iter(answers))


def test_a_restarted_nginx_refuses_by_the_kept_rule(place: Place) -> None:
    place.keep()
    with place.site.start():
        assert place.status().rule == "fixed"
        assert is_refusing(place)
    assert place.errors() == []


def test_a_rule_that_is_kept_no_more_ends_with_nginx(place: Place) -> None:
    place.keep()
    with place.site.start() as nginx:
        result = place.admission("off")
        assert f"--keep {place.kept}" in result.stderr
        old = children(nginx.pid)
        nginx.send_signal(signal.SIGHUP)
        wait_until(lambda: bool(set(children(nginx.pid)) - set(old)))
        assert place.status().rule == "none", "a reload is no restart"
    with place.site.start():
        assert place.status().rule == "fixed", "what is in the file"
        assert place.admission("off", "--keep", str(place.kept)).returncode == 0
        assert not place.kept.exists()
    with place.site.start():
        assert place.status().rule == "none"
    assert place.errors() == []


def torn(path: Path) -> None:
    text = path.read_text()
    path.write_text("".join(text.splitlines(True)[:-2]))


def of_other_groups(path: Path) -> None:
    path.write_text(path.read_text().replace("\ngroup ", "\ngroup other_"))


def writable(path: Path) -> None:
    path.chmod(0o666)


def replaced_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


def huge(path: Path) -> None:
    path.write_text("rule fixed\n" * 200_000)


def empty(path: Path) -> None:
    path.write_text("")


BAD = (
    (torn, "it is torn"), (empty, "it is torn"), (of_other_groups, "refused: no group"),
    (writable, "others may write it"), (replaced_by_a_pipe, "not a regular file"),
    (replaced_by_a_folder, "not a regular file"), (huge, "too large"),
)  # fmt: skip


@pytest.mark.parametrize(("spoil", "said"), BAD, ids=[spoil.__name__ for spoil, _ in BAD])
def test_a_bad_file_is_no_rule_and_one_line(place: Place, spoil: Callable[[Path], None], said: str) -> None:
    place.keep()
    spoil(place.kept)
    check_ignored(place, said)


def test_a_rule_still_protects_when_one_of_its_groups_has_gone(place: Place) -> None:
    place.keep()
    text = place.kept.read_text()
    place.kept.write_text(text.replace("\ngroup user_read_backend", "\ngroup gone_backend"))
    with place.site.start():
        assert is_refusing(place)
    assert len(place.errors()) == 1, place.errors()
    assert "without these groups, which are not balanced here: gone_backend" in place.errors()[0]


def test_a_file_of_another_user_is_no_rule_and_one_line(place: Place, root_only: None) -> None:
    place.keep()
    os.chown(place.kept, NOBODY, NOBODY)
    check_ignored(place, f"it belongs to user {NOBODY}, neither root nor the owner of")


def check_ignored(place: Place, said: str) -> None:
    with place.site.start():
        assert place.status().rule == "none"
        assert place.site.who(1) == {"0": 1}
    assert len(place.errors()) == 1, place.errors()
    line = place.errors()[0]
    assert "no rule of admission is in force" in line
    assert str(place.kept) in line
    assert said in line


def test_a_file_that_nginx_does_not_read_is_refused(place: Place, tmp_path: Path) -> None:
    with place.site.start():
        result = place.admission("set", *TIGHT, "--keep", str(tmp_path / "rule.txt"))
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
        assert f"give {place.kept}" in result.stderr
        lost = place.admission("set", *TIGHT, "--keep", str(tmp_path / "nowhere" / place.kept.name))
        assert (lost.returncode, lost.stderr.count("\n")) == (2, 1), lost.stderr
        assert place.status().rule == "none", "neither in force nor kept"
    assert not list(tmp_path.iterdir())
