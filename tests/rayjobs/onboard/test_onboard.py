"""`deepsched onboard` on recorded systems of other people: what it says, what it leaves, how it goes on."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from actuators.contract.control import BalancingMethod, Weights
from actuators.contract.script import RateStep, Script, ServerProfile, Stream
from actuators.contract.topology import Topology
from rayjobs.cli.config import load_options
from rayjobs.cli.main import main
from rayjobs.onboard.__main__ import VERB
from rayjobs.onboard.options import OnboardOptions
from rayjobs.steer.handover import Handover
from tests.support.option_reads import OptionReads
from tests.support.own_systems import SYSTEMS
from tests.support.played_status import played
from tests.support.recordings import record
from tests.support.waiting import PATIENCE_S
from tuning.policy.bundle import load_bundle

pytestmark = pytest.mark.thorough

QUICK = (
    "train_steps=0", "interval_s=0.02", "watch_s=2.5", "calibrate.workers=2", "calibrate.bootstraps=2",
    "calibrate.replicas=1", "calibrate.rounds=3", "calibrate.most_windows=80", "promise.measure_s=60",
    "promise.pairs=10", "promise.warm_up_s=10",
)  # fmt: skip
SECONDS = 150


@dataclass(frozen=True)
class Speeds:
    """A steady load on servers of these speeds, repeated over the servers."""

    speeds: tuple[float, ...]
    load: float = 0.25
    name: str = "speeds"

    def script(self, topology: Topology, seed: int) -> Script:
        groups, servers = topology.shape
        of_servers = [self.speeds[s % len(self.speeds)] for s in range(servers)]
        mean_s = tuple(0.008 + 0.004 * g for g in range(groups))
        rate_rps = self.load * 2 * sum(of_servers) / sum(mean_s)
        wave = (1.0, 0.9, 1.1, 0.95)
        steps = tuple(RateStep(10.0 * i, rate_rps * wave[i % 4]) for i in range(SECONDS // 10))
        return Script(
            self.name, seed, SECONDS + 1.0, tuple(Stream(kind, steps) for kind in topology.request_types),
            tuple(ServerProfile((speed,) * groups, workers=2) for speed in of_servers), mean_s,
        )  # fmt: skip


def recorded(path: Path, name: str, speeds: tuple[float, ...], method: BalancingMethod) -> Path:
    record(
        path, Speeds(speeds), 5, lambda window: Weights.equal(window.topology), SECONDS, method, topology=SYSTEMS[name]
    )
    return path


def words(url: str, folder: Path, method: str, *more: str) -> list[str]:
    settings = [word for text in (*QUICK, *more) for word in ("--set", text)]
    return ["onboard", "--status-url", url, "--folder", str(folder), "--method", method, *settings]


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of two servers of which one is three times as fast, under equal weights."""
    return recorded(tmp_path_factory.mktemp("unequal") / "file.jsonl", "1x2", (2.0, 0.7), "round_robin")


@dataclass(frozen=True)
class Done:
    """A finished onboarding: its statistics, which are served on, its folder, and what it printed."""

    url: str
    folder: Path
    out: str

    def copied(self, folder: Path, *, without: tuple[str, ...] = ()) -> Path:
        """A copy in another folder; these steps are still to be made."""
        shutil.copytree(self.folder, folder)
        for step in without:
            (folder / "onboard" / f"{step}.json").unlink()
        return folder


@pytest.fixture(scope="module")
def done(unequal: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    folder, out = tmp_path_factory.mktemp("done") / "onboard", io.StringIO()
    with played(unequal) as url:
        with contextlib.redirect_stdout(out):
            assert main(words(url, folder, "round_robin")) == 0
        yield Done(url, folder, out.getvalue())


def test_a_gain_is_promised_and_the_folder_is_ready_to_steer(done: Done) -> None:
    url, folder, out = done.url, done.folder, done.out
    assert out.startswith("On your traffic of today: mean ")
    assert "At 1.5 × your traffic: mean" in out
    assert "At 1.5 × your traffic, when clients give up after 5 × the deadline" in out
    assert "At today's traffic it would refuse" in out
    assert "app: good enough to judge weights" in out
    # Nothing was given by which weights could be changed.
    assert "Weights need --nginx-conf FILE" in out
    page = (folder / "onboarding.html").read_text()
    assert "What it cannot know" in page
    assert "When too much comes" in page
    assert "http" not in page.replace(url.split("/status")[0], "").replace("http-equiv", "")
    judged = json.loads((folder / "onboard" / "judge.json").read_text())["result"]
    weights = {row["server"]: row["value"] for row in judged["changes"]}
    assert weights["10.0.0.1:80"] > 1.5 * weights["10.0.0.2:80"]
    assert judged["promise"]["loads"][0]["all"][0]["ratio"]["high"] < 0.97
    protection = judged["protection"]
    assert protection["growth"] == 1.5
    assert 0 <= protection["refused_today"]["value"] < 0.01
    assert protection["gain"]["value"] == pytest.approx(
        protection["admitted"]["value"] - protection["without"]["value"]
    )
    bundle = load_bundle(folder / "bundle")
    assert [group.name for group in bundle.problem.topology.groups] == ["app"]
    handed = Handover.read(folder)
    assert handed is not None
    assert (handed.bundle, handed.groups, handed.status_url) == (folder / "bundle", ("app",), url)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "onboarding.json").stat().st_mode) == 0o600


@pytest.mark.slow
def test_equal_servers_under_least_conn_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recorded(tmp_path / "file.jsonl", "1x2", (1.0,), "least_conn")
    with played(path) as url:
        assert main(words(url, tmp_path / "onboard", "least_conn")) == 0
    out = capsys.readouterr().out
    assert out.startswith("Stay with what you have")
    assert "no gain of at least 3%" in out
    assert "app: good enough" in out


@pytest.mark.slow
def test_servers_that_the_simulator_does_not_match_get_no_promise(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An accuracy that no simulator reaches stands in for servers of another kind."""
    folder = done.copied(tmp_path / "onboard", without=("fit", "train", "judge"))
    monkeypatch.setattr("envs.calibration.result.MEAN_BAR", 0.0)
    monkeypatch.setattr("envs.calibration.verdict.MEAN_BAR", 0.0)
    assert main(words(done.url, folder, "round_robin")) == 0
    out = capsys.readouterr().out
    assert out.startswith("Stay with what you have: nothing can be promised")
    assert "→" not in out
    page = (folder / "onboarding.html").read_text()
    assert "simulated, not promised" in page
    assert "not a prediction for these servers" in page


@pytest.mark.slow
def test_response_times_that_are_known_badly_make_the_interval_wider(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A demand that no recording meets stands in for a short watch: the gain is large enough all the same."""
    folder = done.copied(tmp_path / "onboard", without=("fit", "train", "judge"))
    monkeypatch.setattr("envs.calibration.verdict.WIDEST", 1e-6)
    assert main(words(done.url, folder, "round_robin")) == 0
    out = capsys.readouterr().out
    assert "app: too little traffic to tell" in out
    assert out.startswith("On your traffic of today: mean ")
    wider, before = (
        json.loads((each / "onboard" / "judge.json").read_text())["result"]["promise"]["loads"][0]["all"][0]["ratio"]
        for each in (folder, done.folder)
    )
    assert wider["high"] / wider["low"] > before["high"] / before["low"]
    monkeypatch.setattr("rayjobs.onboard.judge.MOST_IMPRECISE", 1e-6)
    (folder / "onboard" / "judge.json").unlink()
    assert main(words(done.url, folder, "round_robin")) == 0
    assert capsys.readouterr().out.startswith("Nothing can be promised yet: watch longer")


def unread(url: str, folder: Path, length: tuple[str, ...], steps: int) -> list[str]:
    quick = [text for text in QUICK if not text.startswith(("watch_s", "train_steps"))]
    flags = {"status_url": url, "folder": folder, "method": "round_robin", "train_steps": steps}
    with OptionReads(load_options(OnboardOptions, assignments=[*quick, *length], flags=flags)) as reads:
        assert VERB.run(reads.options) == 0
    return reads.unread()


def test_every_option_in_force_is_read(unequal: Path, tmp_path: Path) -> None:
    with played(unequal) as url:
        rule = ("watch.least_s=1", "watch.most_s=60", "watch.half_width=0.9")
        assert unread(url, tmp_path / "onboard", rule, 0) == []


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray")
def test_training_under_ray_leaves_a_residual_and_its_proof(unequal: Path, tmp_path: Path) -> None:
    folder = tmp_path / "onboard"
    with played(unequal) as url:
        assert unread(url, folder, ("watch_s=2.5",), 600) == []
    proof = json.loads((folder / "onboard" / "train.json").read_text())["result"]["proof"]
    assert proof["overall"]["episodes"] >= 1
    assert load_bundle(folder / "bundle").provenance["proof"] == proof


@pytest.mark.drill
@pytest.mark.slow
def test_a_killed_onboarding_goes_on(unequal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed in the watch and before the last step, then ended: the same result as without, and one recording."""
    folder = tmp_path / "onboard"
    with played(unequal) as url:
        for step in ("watch", "judge"):
            kill_at(step, words(url, folder, "round_robin"))
            assert not (folder / "onboarding.html").exists()
        size = (folder / "onboard" / "snapshots.jsonl").stat().st_size
        assert main(words(url, folder, "round_robin")) == 0
    found = capsys.readouterr()
    assert "kept from before: preflight, watch, fit, train" in found.err
    assert found.out.startswith("On your traffic of today")
    assert (folder / "onboard" / "snapshots.jsonl").stat().st_size == size


def test_other_options_begin_again_where_they_matter(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = done.copied(tmp_path / "onboard")
    assert main(words(done.url, folder, "round_robin", "promise.growth=2")) == 0
    found = capsys.readouterr()
    assert "begins again at 'judge'" in found.err
    assert "kept from before: preflight, watch, fit, train" in found.err
    assert "At 2 × your traffic" in found.out
    assert main(words(done.url, folder, "round_robin", "groups=app")) == 2
    assert "this onboarding is of another system: groups was not given, now app" in capsys.readouterr().err


def test_a_check_that_is_needed_ends_it_with_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("http://127.0.0.1:9/status", tmp_path / "onboard", "round_robin")) == 1
    found = capsys.readouterr()
    assert "statistics: no answer" in found.err
    assert "is NGINX running?" in found.err
    assert "Traceback" not in found.err
    assert not list((tmp_path / "onboard").glob("**/*.json"))


def command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "rayjobs.onboard", *arguments[1:]]


def kill_at(step: str, arguments: list[str]) -> None:
    """Runs the command and kills it as soon as it says that the step has started."""
    process = subprocess.Popen(command(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if f"] {step}: started" in line:
                break
        else:
            raise AssertionError(f"it ended before '{step}'")
    finally:
        process.kill()
        process.wait(PATIENCE_S)
