"""Bench `admission`: when a limit counts as one that holds, and the price of admission in a real NGINX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actuators.contract.topology import social_network
from actuators.nginx.config import NginxOptions
from actuators.statistics.reader import StatusReader
from actuators.testbed.options import LiveOptions
from actuators.testbed.parts import start_local_testbed
from rayjobs.bench.admission import envoy, flash, live
from rayjobs.bench.admission.cpu import wide
from rayjobs.bench.admission.reaction import SurgeSamples, reaction_s
from rayjobs.bench.parts.bars import BenchContext
from rayjobs.bench.parts.site import constant_servers, cost_per_request, front

SAMPLE_S, WINDOW_S, LATE_SHARE = 0.1, 0.5, 0.14
CALM, LATE, PROBING = 0.0, 0.5, 0.2


def surge(*parts: tuple[float, float, bool]) -> SurgeSamples:
    """One group with 10 answers per sample; a part is how long it lasts, its late share, and whether it refuses."""
    shares = np.concatenate([np.full(round(seconds / SAMPLE_S), share) for seconds, share, _ in parts])
    refused = np.concatenate([np.full(round(seconds / SAMPLE_S), int(refuses)) for seconds, _, refuses in parts])
    finished = np.full((len(shares), 1), 10)
    return SurgeSamples(SAMPLE_S, finished, np.rint(10 * shares).astype(int)[:, None], refused, np.ones(1))


def reaction(*parts: tuple[float, float, bool]) -> float:
    return reaction_s(surge(*parts), WINDOW_S, LATE_SHARE)


def test_the_time_counts_from_the_beginning_of_the_first_late_window_to_the_limit_that_holds() -> None:
    # Two late samples make a window of five late, one does not.
    assert reaction((2.0, CALM, False), (1.5, LATE, True), (10.0, CALM, True)) == pytest.approx(0.3 + 1.4)


def test_without_a_late_window_there_is_nothing_to_react_to() -> None:
    assert reaction((10.0, 0.1, True)) == 0


def test_a_limit_that_refuses_nothing_does_not_hold() -> None:
    assert reaction((1.0, LATE, False), (2.0, CALM, False), (5.0, CALM, True)) == pytest.approx(2.6)


def test_a_limit_that_is_given_up_again_did_not_hold() -> None:
    lost = reaction((1.0, LATE, True), (2.0, CALM, True), (4.0, LATE, True), (6.0, CALM, True))
    assert lost == pytest.approx(6.9)


def test_single_late_windows_are_allowed_while_the_share_stays_below() -> None:
    probing = ((1.0, CALM, True), (0.5, PROBING, True)) * 10
    assert reaction((1.0, LATE, True), *probing) == pytest.approx(0.9)


def test_when_no_limit_holds_it_is_the_time_to_the_end_of_the_surge() -> None:
    assert reaction((1.0, CALM, False), (9.0, LATE, True)) == pytest.approx(9.3)


def test_groups_weigh_as_in_the_rule() -> None:
    seen = surge((5.0, CALM, True))
    calm_and_late = SurgeSamples(
        SAMPLE_S, np.repeat(seen.finished, 2, axis=1), np.hstack([seen.late, seen.finished]), seen.refused,
        np.array([9.0, 1.0]),
    )  # fmt: skip
    assert calm_and_late.late_shares(0) == pytest.approx(0.1)


@pytest.mark.nginx
def test_cpu_is_measured_of_an_nginx_that_counts_every_request_and_refuses_none(short_dir: Path) -> None:
    with (
        constant_servers(short_dir / "constant") as topology,
        front(topology, NginxOptions(admission=True), short_dir / "front") as nginx,
        StatusReader(nginx.status_url) as reader,
    ):
        nginx.admit(wide(topology))
        cost = cost_per_request(nginx, 200.0, short_dir, seed=1, duration_s=0.5)
        assert cost.cpu_us > 0
        assert 0 < cost.median_ms < 100
        balancer = reader.snapshot().balancer
        assert balancer is not None
        assert balancer.admission is not None
        counted = [(entry.offered == entry.finished > 0, entry.refused) for entry in balancer.admission.groups]
        assert counted == [(True, 0)] * 3


@pytest.mark.slow
@pytest.mark.nginx
def test_a_block_without_a_rule_counts_what_clients_saw(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "BLOCK_S", 2.0)
    for name in ("BEFORE_S", "SURGE_S", "AFTER_S"):
        monkeypatch.setattr(live, name, (0.5, 1.5))
    options = LiveOptions(nginx=NginxOptions(admission=True))
    with start_local_testbed(social_network(("a:1", "b:1", "c:1")), options, short_dir, 1) as testbed:
        found = live.play(testbed, "none", 1)
    assert (found.refused, found.reaction_s, found.left_in_flight) == (0, 0, 0)
    # A part of a second has some answers to requests of the part before it.
    assert 0 <= found.surge <= 1.1


@pytest.mark.slow
@pytest.mark.nginx
def test_an_important_type_keeps_its_goodput_in_a_flash_of_another(short_dir: Path) -> None:
    (bar,) = flash.measure(BenchContext(3, True, short_dir, print))
    assert bar.bar == "compose important (5), 6 × home_read: goodput with over without"
    assert -50 < bar.value < 50
    assert bar.limit == -4


def test_without_envoy_one_line_tells_how_to_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("rayjobs.bench.admission.envoy.why_missing", lambda name: f"'{name}' is not installed")
    assert envoy.measure(BenchContext(1, False, tmp_path, said.append)) == []
    assert said == ["left out beside admission: envoy_concurrency: 'envoy_concurrency' is not installed"]
