"""The suite before real proxies: what passes, what fails, and that a proxy without servers behind it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from actuators.errors import ActuationError
from actuators.testbed.peers import Peer
from rayjobs.cli.main import main
from rayjobs.contract import suite
from rayjobs.contract.checks import CHECKS
from rayjobs.contract.stand import Stand, lost

pytestmark = pytest.mark.nginx


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with Stand(("127.0.0.1:0",) * 4, tmp_path_factory.mktemp("stand"), workers=4, seed=1) as stand:
        yield stand


def test_changes_under_load_lose_nothing_and_cut_nothing_off(stand: Stand, tmp_path: Path) -> None:
    with (
        Peer("shared_least_conn", stand.topology, tmp_path) as peer,
        stand.load(peer.address, 200.0, 20.0, "constant") as load,
    ):
        load.wait_until(0.3)
        with load.long_requests() as whole:
            before = stand.counts()
            peer.set_weights([100, 1, 1, 1])
            peer.reload()
        (counts,) = load.by_second(load.now_s, load.now_s + 1)
        summary = load.finish()
    assert before.min() > 0
    assert whole == [True] * 4
    assert lost(summary) == ""
    assert counts[0] == counts.max() > 1.5 * counts[1:].max()
    assert summary.sent.sum() == stand.counts().sum()


class Stubborn:
    """A proxy whose weights can be set, but not every time."""

    def __init__(self, peer: Peer) -> None:
        self.address, self.without_weights, self.given = peer.address, "", [[1]]

    def set_weights(self, weights: list[int]) -> None:
        self.given.append(weights)
        if len(self.given) == 3:
            raise ActuationError("the command ended with 1")


def test_a_proxy_has_equal_weights_after_a_change_has_failed(stand: Stand, tmp_path: Path) -> None:
    with Peer("shared_least_conn", stand.topology, tmp_path) as peer:
        proxy = Stubborn(peer)
        with pytest.raises(ActuationError, match="ended with 1"):
            suite.Suite(stand, 200.0, lambda _: None)._weights(proxy)  # type: ignore[arg-type]  # noqa: SLF001 - the other checks take a minute
    assert proxy.given[1:] == [[1, 10, 1, 1], [1] * 4, [1] * 4]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["expected_delay", "shared_least_conn"])
def test_the_whole_suite_judges_a_proxy(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["contract", "--proxies", name, "--out", str(tmp_path)])
    (folder,) = tmp_path.glob("contract-1-*")
    ((judged,), page) = json.loads((folder / "contract.json").read_text()), (folder / "contract.html").read_text()
    states = {verdict["key"]: verdict["state"] for verdict in judged["verdicts"]}
    assert list(states) == [check.key for check in CHECKS]
    assert (status == 0) == ("fail" not in states.values())
    if name == "expected_delay":
        assert set(states.values()) == {"pass"}, judged
    else:
        assert states["fair"] == states["weights"] == states["reload"] == "pass", judged
        assert (states["failing"], states["slow"]) == ("pass", "fail"), judged
    assert name in page


@pytest.mark.slow
def test_a_users_proxy_is_judged_by_its_address(tmp_path: Path) -> None:
    ports = [f"127.0.0.1:{port}" for port in range(9101, 9105)]
    with Stand(("127.0.0.1:0",) * 4, tmp_path / "other", workers=4, seed=1) as other:
        topology = other.topology.with_servers(tuple(ports))
    with Peer("shared_least_conn", topology, tmp_path / "peer") as peer:
        status = main([
            "contract", "--proxy", f"http://{peer.address}", "--servers", ",".join(ports), "--rate-rps", "400",
            "--out", str(tmp_path),
        ])  # fmt: skip
    (folder,) = tmp_path.glob("contract-1-*")
    (judged,) = json.loads((folder / "contract.json").read_text())
    states = {verdict["key"]: verdict["state"] for verdict in judged["verdicts"]}
    assert (states["weights"], states["reload"], states["fair"], status) == ("n/a", "n/a", "pass", 1)
