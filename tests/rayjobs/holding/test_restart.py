"""Late binding that was set by hand survives a restart of NGINX when it was kept; no file keeps NGINX from starting."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from actuators.statistics.reader import StatusReader
from actuators.statistics.vts import HoldStatus
from envs.calibration.result import Calibration
from tests.support.http_server import ScriptedServer
from tests.support.nginx_site import answer
from tests.support.paths import DATA
from tests.support.stock_nginx import StockSite
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.nginx

GROUPS = ("compose_backend", "home_read_backend", "user_read_backend")


@dataclass
class Place:
    """A stock NGINX with the snippet, before one server, and a calibration of it."""

    site: StockSite
    port: int
    calibration: Path

    @property
    def kept(self) -> Path:
        return self.site.folder / "deepsched.conf.holding"

    def holding(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        reach = ["--control-url", f"http://127.0.0.1:{self.port}/control"]
        reach += ["--token-file", f"{self.site.folder}/deepsched.conf.token"] if verb != "show" else []
        command = [sys.executable, "-m", "rayjobs.holding", verb, *reach, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    def keep(self) -> None:
        """Holds, and keeps that; NGINX has ended afterwards."""
        with self.site.start():
            given = ["--calibration", str(self.calibration), "--workers", "2", "--hold", "--keep", str(self.kept)]
            result = self.holding("set", *given)
            assert result.returncode == 0, result.stderr
            assert f"a restarted NGINX begins so, by {self.kept}" in result.stderr
        (self.site.folder / "error.log").write_text("")

    def status(self) -> tuple[str, HoldStatus]:
        """The method in force, and late binding."""
        with StatusReader(f"http://127.0.0.1:{self.port}/status") as reader:
            balancer = reader.snapshot().balancer
        assert balancer is not None
        assert balancer.holding is not None
        return balancer.method, balancer.holding

    def errors(self) -> list[str]:
        lines = (self.site.folder / "error.log").read_text().splitlines()
        return [line for line in lines if not line.startswith("nginx: ")]


@pytest.fixture
def place(short_dir: Path) -> Iterator[Place]:
    with ScriptedServer(lambda _: answer(200, "0")) as server:
        site = StockSite(short_dir, [server.address])
        site.write(" ".join(f"upstream {name} {{ server {server.address}; }}" for name in GROUPS))
        main = short_dir / "nginx.conf"
        main.write_text(main.read_text().replace("http://app", "http://home_read_backend"))
        known = Calibration.load(DATA / "runs" / "calibration.json")
        table = tuple((row[0],) for row in known.parameters.service_ms)
        one = known.parameters.model_copy(update={"service_ms": table})
        path = short_dir / "calibration.json"
        known.model_copy(
            update={"servers": (server.address,), "members": (), "weights": (), "down": (), "parameters": one,
                    "ensemble": (one,)}
        ).save(path)  # fmt: skip
        yield Place(site, site.include_snippet("--set", "memory.late_binding=true"), path)


def test_a_restarted_nginx_holds_as_was_kept_until_it_is_kept_no_more(place: Place) -> None:
    place.keep()
    assert place.kept.stat().st_mode & 0o777 == 0o600
    with place.site.start():
        method, holding = place.status()
        assert (method, holding.state, holding.kept) == ("late_binding", "holding", str(place.kept))
        assert place.site.who(1) == {"0": 1}
        shown = place.holding("show").stdout
        assert f"slots: {place.site.servers[0]} 4" in shown, "two for each of two workers"
        result = place.holding("off", "--method", "least_conn")
        assert f"--keep {place.kept}" in result.stderr
        assert place.status()[0] == "least_conn"
    with place.site.start():
        assert place.status()[0] == "late_binding", "what is in the file"
        assert place.holding("off", "--keep", str(place.kept)).returncode == 0
        assert not place.kept.exists()
    with place.site.start():
        assert place.status()[1].state == "off"
    assert place.errors() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[: len(text) // 2], "it is torn"),
        (lambda text: text.replace("tau user_read_backend", "tau user_write_backend"), "refused: tau user_write"),
        (lambda text: text.replace("method late_binding", "method expected_delay"), "refused"),
    ],
    ids=["torn", "of other groups", "of another method"],
)
def test_a_bad_file_holds_nothing_and_is_one_line(place: Place, change: object, said: str) -> None:
    place.keep()
    place.kept.write_text(change(place.kept.read_text()))  # type: ignore[operator]
    with place.site.start():
        assert place.status()[1].state == "off"
        assert place.site.who(1) == {"0": 1}
    assert len(place.errors()) == 1, place.errors()
    assert "nothing is held" in place.errors()[0]
    assert said in place.errors()[0]


def test_a_file_that_nginx_does_not_read_is_refused(place: Place, tmp_path: Path) -> None:
    given = ["--calibration", str(place.calibration), "--workers", "2", "--hold"]
    with place.site.start():
        result = place.holding("set", *given, "--keep", str(tmp_path / "some.txt"))
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
        assert f"give {place.kept}" in result.stderr
        assert place.status()[1].state == "off", "neither in force nor kept"
        counting = place.holding("set", *given[:-1], "--keep", str(place.kept))
        assert counting.returncode == 2
        assert "keep" in counting.stderr
    assert not list(tmp_path.iterdir())
