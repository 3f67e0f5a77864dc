"""`deepsched holding learn` on a real NGINX: samples, models that count, and what is held by them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from actuators.contract.control import ServiceTimes
from actuators.contract.request_cost import RequestCost, SeenRequest
from actuators.errors import ActuationError
from actuators.http_client import http_session
from actuators.nginx.config import NginxOptions
from actuators.nginx.control_endpoint import MemoryControl
from rayjobs.cli.config import load_options
from rayjobs.cli.main import main
from rayjobs.holding.learn import MOST_SAMPLES, SILENT_S, VERB, LearnOptions, collect, cost_rows
from tests.support.http_server import Received
from tests.support.nginx_site import HOME, USER, Site, answer, running_site
from tests.support.option_reads import OptionReads
from tests.support.paths import ROOT
from tests.support.small_host import BLOCKED
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.nginx

SHORT_S, LONG_S = 0.001, 0.008
DEADLINES = "{compose_backend: 300, home_read_backend: 60, user_read_backend: 50}"


def by_span(request: Received) -> bytes:
    """Takes as long as the posts of the request are many."""
    fields = urllib.parse.parse_qs(urllib.parse.urlsplit(request.line.split()[1]).query)
    time.sleep(LONG_S if int(fields["stop"][0]) - int(fields["start"][0]) > 10 else SHORT_S)
    return answer(200)


@pytest.fixture
def site(short_dir: Path) -> Iterator[Site]:
    options = NginxOptions(method="expected_delay", actuation="memory", late_binding=True)
    with running_site(short_dir, options) as site:
        site.nginx.apply(ServiceTimes(site.topology, np.full((3, 3), 0.01), np.ones(3)))
        for index in range(3):
            site.script[index] = by_span
        yield site


@pytest.fixture
def reach(site: Site, tmp_path: Path) -> list[str]:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(site.nginx.token)
    return ["--control-url", site.nginx.control_url, "--token-file", str(token)]


def send(site: Site, until: Callable[[], bool]) -> None:
    """One request after the other, so that each finds an idle worker."""
    generator, number = np.random.default_rng(1), 0
    with http_session(PATIENCE_S) as session:
        while not until():
            start, span = int(generator.integers(100)), int(generator.choice([2, 60]))
            path = HOME if number % 10 else USER
            url = f"http://{site.nginx.address}{path}?secret=sesame&start={start}&stop={start + span}&id=5x"
            assert session.get(url).status_code == 200
            number += 1


@pytest.mark.slow
def test_what_requests_cost_is_learned_and_held_by(
    site: Site, reach: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cost.json"
    given = [*reach, "--seconds", "20", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "rayjobs.holding", "learn", *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        send(site, lambda: process.poll() is not None)
        shown, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 0, shown + err
    assert "home_read_backend: R² " in shown
    assert "compose_backend: no cost model: only 0 requests found an idle worker" in shown
    costs = RequestCost.load(out)
    short, long = (costs.of("home_read_backend", SeenRequest(HOME, {"start": 9, "stop": 9 + n})) for n in (2.0, 60.0))
    assert long > 2 * short
    topology = site.topology
    endpoint = MemoryControl(site.nginx.control_url, site.nginx.token, topology)
    kept = endpoint.samples()
    assert not endpoint.samples_kept(), "they end with the command"
    method, path, length = kept[-1].split()[4:7]
    assert (method, length) == ("GET", "0")
    assert path in {known.replace("wrk2", "wrk*") for known in (HOME, USER)}, "numbers are replaced"
    assert all("sesame" not in line and "id=" not in line for line in kept)
    with http_session(PATIENCE_S) as session:
        assert session.get(f"{site.nginx.control_url}?samples").status_code == 403
    assert main(["holding", "set", *reach, "--deadlines-ms", DEADLINES, "--cost-file", str(out), "--hold"]) == 0
    assert "costs of requests learned (R²" in capsys.readouterr().err
    _, control = endpoint.get()
    endpoint.close()
    assert isinstance(control, ServiceTimes)
    assert control.holding is not None
    assert control.holding.costs.in_force() == costs.in_force()
    assert site.get(f"{HOME}?start=0&stop=2")[0] == 200


def test_too_little_traffic_is_said_and_every_option_is_read(site: Site, reach: list[str], tmp_path: Path) -> None:
    flags = {"control_url": reach[1], "token_file": reach[3], "seconds": 1.0, "out": tmp_path / "cost.json"}
    with OptionReads(load_options(VERB.options, flags=flags)) as reads:
        assert VERB.run(reads.options) == 1
    assert reads.unread() == []
    assert json.loads((tmp_path / "cost.json").read_text())["groups"] == {}


@pytest.mark.parametrize(
    ("out", "prelude", "said"),
    [
        ("cost.json", BLOCKED, ("scikit-learn is not installed", "deep-scheduling[train]")),
        ("file/cost.json", "import sys", ("cannot write in this folder", "--out")),
    ],
)
def test_what_would_cost_the_samples_is_one_line_before_collecting(
    out: str, prelude: str, said: tuple[str, str], reach: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    words = ["holding", "learn", *reach, "--seconds", "86400", "--out", str(tmp_path / out)]
    program = f"{prelude}\nfrom rayjobs.cli.main import main\nsys.exit(main({words!r}))"
    # A run that collects first does not end in time.
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert all(part in line for part in said), line


def test_a_wrong_option_is_one_line(site: Site, reach: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for words, named in (
        (["holding", "learn", "--control-url", reach[1], "--seconds", "1"], "token"),
        (["holding", "learn", *reach, "--bundle", "nowhere"], "nowhere"),
        (["holding", "set", *reach, "--deadlines-ms", DEADLINES, "--cost-file", "nowhere.json"], "nowhere.json"),
    ):
        assert main(words) == 2, words
        err = capsys.readouterr().err
        assert named in err
        assert err.count("\n") == 1


def test_a_sample_is_a_row() -> None:
    (row,) = cost_rows(["home_read_backend 12 0.004 GET /a/* 17 start=3 stop=5.5"])["home_read_backend"]
    assert row.total == pytest.approx(3.0)
    assert row.seen == SeenRequest("/a/*", {"start": 3.0, "stop": 5.5}, 17, "GET")


class StandIn:
    """Samples of an NGINX that answers each read with the next of these lists, or fails; a read per second."""

    def __init__(self, answers: Iterator[list[str] | ActuationError], *, can_end: bool = True) -> None:
        self._answers, self._can_end = answers, can_end
        self.now_s, self.rates = 0.0, list[float | None]()

    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    def clock(self) -> float:
        return self.now_s

    def samples(self) -> list[str]:
        answer = next(self._answers)
        if isinstance(answer, ActuationError):
            raise answer
        return answer

    def samples_kept(self) -> bool:
        return True

    def sample(self, rate_rps: float | None) -> None:
        self.rates.append(rate_rps)
        if rate_rps is None and not self._can_end:
            raise ActuationError("no answer", where="http://nginx/control")

    def collected(self, seconds: float) -> list[str]:
        return collect(self, LearnOptions(control_url="http://nginx/control", seconds=seconds), self.clock, self.wait)


def lines(numbers: range, word: str = "sample") -> list[str]:
    return [f"{number} {word} {number}" for number in numbers] or [""]


def test_what_was_collected_survives_failures_and_a_restart(capsys: pytest.CaptureFixture[str]) -> None:
    lost = ActuationError("no answer", where="http://nginx/control")
    answers = iter([lines(range(1, 4)), lines(range(1, 6)), lost, lost, [""], lines(range(1, 4), "later")])
    site = StandIn(answers)
    # The numbers of before, 1 to 3, are no samples of this time; after the restart the same numbers are.
    assert site.collected(5.0) == ["sample 4", "sample 5", "later 1", "later 2", "later 3"]
    assert site.rates == [100.0, None]
    told = capsys.readouterr().err
    assert told.count("no answer (http://nginx/control); goes on") == 1


def test_after_long_silence_it_learns_from_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    def answers() -> Iterator[list[str] | ActuationError]:
        yield [""]
        yield lines(range(1, 3))
        while True:
            yield ActuationError("no answer", where="http://nginx/control")

    site = StandIn(answers(), can_end=False)
    assert site.collected(3600.0) == ["sample 1", "sample 2"]
    assert site.now_s == pytest.approx(1 + SILENT_S)
    told = capsys.readouterr().err
    assert "ends with 2 samples" in told
    assert "NGINX may go on keeping samples: no answer" in told


def test_nothing_collected_is_an_error() -> None:
    def answers() -> Iterator[list[str] | ActuationError]:
        yield [""]
        while True:
            yield ActuationError("no answer", where="http://nginx/control")

    with pytest.raises(ActuationError, match="no answer"):
        StandIn(answers()).collected(3600.0)


def test_the_newest_samples_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    half = MOST_SAMPLES // 2
    site = StandIn(iter([[""], *(lines(range(n * half + 1, (n + 1) * half + 1)) for n in range(4))]))
    found = site.collected(4.0)
    assert (found[0], found[-1], len(found)) == (f"sample {2 * half + 1}", f"sample {4 * half}", MOST_SAMPLES)
    assert capsys.readouterr().err.count("only the newest 200000 samples are kept") == 1
