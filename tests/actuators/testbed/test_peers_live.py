"""Balancers that users would otherwise have, judged before live servers; a client and an NGINX that are too busy."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actuators.contract.topology import social_network
from actuators.contract.window import LoadWindow
from actuators.errors import ActuationError
from actuators.http_client import http_session
from actuators.load.engine import LoadEngine, LoadOptions
from actuators.testbed.live import LiveTestbed
from actuators.testbed.peers import ENVOY, PEERS, NoStatistics, Peer, why_missing
from envs.heuristics.controllers import FixedController
from envs.scenarios.lookup import scenario
from tests.support.http_server import CLOSE, OK, ScriptedServer
from tests.support.live_parts import CALM, LiveParts, running_parts
from tuning.judging.blocks import Journal
from tuning.judging.judge import Judge, JudgeProgress
from tuning.judging.plan import JudgeOptions

pytestmark = pytest.mark.nginx

DEADLINES_S = np.array([0.1, 0.05, 0.05])
OPTIONS = JudgeOptions(rounds=1, warm_up_s=0, measure_s=1.0, interval_s=1.0, repeats=0)
"""One window a block: a shorter one is spoiled when other work stops this process for its length."""
LIGHT = scenario("S1", work_scale=8.0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveParts]:
    with running_parts(tmp_path_factory.mktemp("peers")) as parts:
        yield parts


@pytest.fixture(scope="module")
def testbed(parts: LiveParts) -> LiveTestbed:
    return parts.testbed()


class SwitchedLoad:
    """A load part that passes everything on to the engine which is switched in."""

    def __init__(self, engine: LoadEngine) -> None:
        self.engine = engine

    def start(self, *args: Any, **kwargs: Any) -> None:
        self.engine.start(*args, **kwargs)

    def window(self) -> LoadWindow:
        return self.engine.window()

    def stop(self) -> None:
        self.engine.stop()

    def finish(self, timeout_s: float | None = None) -> Any:
        return self.engine.finish(timeout_s)


@pytest.mark.parametrize("name", [*PEERS, "nginx:mine.conf"])
def test_a_peer_is_judged_on_the_same_arrivals_and_its_requests_are_called_uncounted(
    name: str, testbed: LiveTestbed, tmp_path: Path
) -> None:
    if name == "nginx:mine.conf":
        (tmp_path / "mine.conf").write_text(
            "daemon off; pid {prefix}/nginx.pid; events {}\n"
            "http { access_log off; client_body_temp_path {prefix}/body; proxy_temp_path {prefix}/proxy;\n"
            "fastcgi_temp_path {prefix}/f; uwsgi_temp_path {prefix}/u; scgi_temp_path {prefix}/s;\n"
            "upstream mine { ip_hash; {servers} }\nserver { listen {listen}; location / { proxy_pass http://mine; } } }"
        )
        name = f"nginx:{tmp_path / 'mine.conf'}"
    if why_missing(name):
        pytest.skip(why_missing(name))
    with Peer(name, testbed.topology, tmp_path) as peer:
        behind = testbed.behind(peer.address, peer, NoStatistics(testbed.topology))
        policies = [FixedController("least_conn", "least_conn"), FixedController("peer", "least_conn")]
        evaluation = Judge(testbed, policies, LIGHT, DEADLINES_S, OPTIONS, peers={"peer": behind}).run()
    assert [block.flags for block in evaluation.blocks] == [(), ()]
    content = evaluation.to_json()["policies"]
    assert content["peer"]["requests"] == content["least_conn"]["requests"] > 50
    accounting = content["peer"]["accounting"]
    assert accounting["answered"] == accounting["uncounted"] == accounting["sent"]
    assert accounting["difference"] == accounting["unexplained"] == 0
    assert accounting["errors"] == {}
    assert content["peer"]["jain_utilisation"] is None
    assert content["peer"]["proxy_cpu_us"] > 0
    assert content["least_conn"]["proxy_cpu_us"] > 0


def test_the_workers_of_a_users_nginx_can_buffer_in_its_own_folder(tmp_path: Path) -> None:
    """Its master is root here and its workers are not; the run's folder is private."""
    (tmp_path / "mine.conf").write_text(
        "daemon off; pid {prefix}/nginx.pid; events {}\n"
        "http { access_log off; client_body_temp_path {prefix}/body; proxy_temp_path {prefix}/proxy;\n"
        "fastcgi_temp_path {prefix}/f; uwsgi_temp_path {prefix}/u; scgi_temp_path {prefix}/s;\n"
        "upstream mine { {servers} }\nserver { listen {listen}; location / { proxy_pass http://mine; } } }"
    )
    body = b"y" * 500_000  # 16 kB are buffered in memory
    with ScriptedServer(lambda request: OK if request.body == body else CLOSE) as server, http_session(10.0) as session:
        topology = social_network((server.address,))
        run = tmp_path / "run"
        with Peer(f"nginx:{tmp_path / 'mine.conf'}", topology, run) as peer:
            answer = session.post(f"http://{peer.address}/", data=body)
            prefix = _prefix_of(run)
            assert (answer.status_code, answer.text) == (200, "ok")
            assert stat.S_IMODE(prefix.stat().st_mode) == 0o711
            (folder,) = run.iterdir()
            assert {stat.S_IMODE(path.stat().st_mode) for path in (run, folder)} == {0o700}
            assert "denied" not in (folder / "error.log").read_text()
        assert not prefix.exists()


def _prefix_of(run: Path) -> Path:
    """The folder that the configuration of the only peer names."""
    (config,) = run.glob("*/peer.conf")
    return Path(config.read_text().split()[3]).parent


def test_a_busy_worker_spoils_the_block(testbed: LiveTestbed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actuators.testbed.live.BUSY", 0.0)
    policies = [FixedController("least_conn", "least_conn")]
    evaluation = Judge(testbed, policies, LIGHT, DEADLINES_S, OPTIONS).run()
    assert [block.usable for block in evaluation.blocks] == [False]
    assert any(flag.startswith("saturated_nginx") for flag in evaluation.blocks[0].flags)


def test_a_saturated_client_spoils_its_blocks_and_resuming_runs_only_those_again(
    parts: LiveParts, tmp_path: Path
) -> None:
    policies = [FixedController("least_conn", "least_conn"), FixedController("round_robin", "round_robin")]
    options = OPTIONS.model_copy(update={"rounds": 2})
    journal = Journal(tmp_path / "blocks.jsonl")

    def judge(load: LoadEngine, later: LoadEngine) -> Judge:
        """From the third block on the load comes from `later`."""
        switched = SwitchedLoad(load)
        judged = parts.testbed(switched, close=lambda: None)

        def change(now: JudgeProgress) -> None:
            switched.engine = later if now.index >= 2 else load

        return Judge(
            judged, policies, LIGHT, DEADLINES_S, options, progress=change, finished=journal.read(), keep=journal.append
        )

    choked = LoadOptions(max_connections=1, timeout_s=0.5)  # no connection is left for most requests
    with LoadEngine(CALM, tmp_path / "calm") as load, LoadEngine(choked, tmp_path / "choked") as later:
        spoiled = judge(load, later).run()
        kept = journal.path.read_text()
        evaluation = judge(load, load).run()
    assert [block.usable for block in spoiled.blocks] == [True, True, False, False]
    assert all(block.flags[0].startswith("saturated_client") for block in spoiled.blocks[2:])
    assert spoiled.to_json()["policies"]["least_conn"]["discarded_blocks"] == 1
    assert journal.path.read_text().startswith(kept)
    assert [block.usable for block in evaluation.blocks] == [True, True, False, False, True, True]
    assert evaluation.to_json()["policies"]["round_robin"]["paired_rounds"] == 2


def test_envoy_stands_before_the_same_servers(testbed: LiveTestbed, tmp_path: Path) -> None:
    if why_missing(ENVOY):
        pytest.skip(why_missing(ENVOY))
    with Peer(ENVOY, testbed.topology, tmp_path) as peer:
        behind = testbed.behind(peer.address, peer, NoStatistics(testbed.topology))
        behind.reset(LIGHT, seed=1)
        client = behind.advance(2.0).client
        behind.drain()
        assert max(peer.cpu_s().values()) > 0
    assert client is not None
    assert client.latency_counts.sum() > 0
    assert client.errors["status_4xx"].sum() == 0


@pytest.mark.parametrize("name", list(PEERS))
def test_a_peer_takes_weights_and_reads_its_configuration_again_under_load(
    name: str, testbed: LiveTestbed, tmp_path: Path
) -> None:
    if why_missing(name):
        pytest.skip(why_missing(name))
    with Peer(name, testbed.topology, tmp_path) as peer:
        behind = testbed.behind(peer.address, peer, NoStatistics(testbed.topology))
        behind.reset(LIGHT, seed=1)
        behind.advance(0.3)
        for weights in ([10, 1, 1], [1, 1, 1]):
            if not peer.without_weights:
                peer.set_weights(weights)
        if not peer.without_reload:
            peer.reload()
        client = behind.advance(0.6).client
        drained = behind.drain().client
    assert client is not None
    assert drained is not None
    assert client.latency_counts.sum() > 0
    if not name.startswith("caddy"):  # which lost some when it was told just after its start
        assert sum(int(counts.sum()) for part in (client, drained) for counts in part.errors.values()) == 0


def test_why_a_peer_takes_no_weights_or_no_reload_is_told(testbed: LiveTestbed, tmp_path: Path) -> None:
    (tmp_path / "mine.conf").write_text(
        "daemon off; pid {prefix}/nginx.pid; events {}\nhttp { access_log off; client_body_temp_path {prefix}/body;\n"
        "proxy_temp_path {prefix}/p; fastcgi_temp_path {prefix}/f; uwsgi_temp_path {prefix}/u;\n"
        "scgi_temp_path {prefix}/s; upstream mine { {servers} }\n"
        "server { listen {listen}; location / { proxy_pass http://mine; } } }"
    )
    with Peer(f"nginx:{tmp_path / 'mine.conf'}", testbed.topology, tmp_path) as peer:
        assert not peer.without_reload
        with pytest.raises(ActuationError, match="no place for weights of ours"):
            peer.set_weights([1, 1, 1])
