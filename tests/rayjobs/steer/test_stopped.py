"""Processes that stand still (SIGSTOP) in front of live traffic: orders are obeyed, and all goes on with SIGCONT."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actuators.contract.control import Weights
from actuators.nginx.instance import Nginx
from actuators.processes.system import children
from actuators.testbed.options import LiveOptions
from rayjobs.cli.main import main
from rayjobs.steer.site import Site
from tests.support.served import serve_process
from tests.support.steer_site import INTERVAL_S, controller_process, decisions, running_site, steer_process
from tests.support.steering_cases import trained_bundle
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.nginx, pytest.mark.slow]


@pytest.fixture(scope="module")
def running() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="ds-") as folder, running_site(Path(folder)) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Site:
    running.apply(Weights.equal(running.topology))
    wait_until(lambda: bool(running.load and running.load.poll()), "no load")
    return running


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def order(folder: Path, *words: str) -> int:
    return main(["steer", *words, "--folder", str(folder)])


def waiting_for(folder: Path, source: str, known: int = 0) -> None:
    """A decision of that source after so many of any."""
    wait_until(
        lambda: any(line["source"] == source for line in decisions(folder)[known:]),
        lambda: str([(line["source"], line["reason"]) for line in decisions(folder)[-8:]]),
    )


def test_an_nginx_that_stands_still(site: Site, short_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither statistics nor control endpoint answer: the controller holds, obeys, and goes on afterwards."""
    trained_bundle().save(short_dir / "bundle")
    nginx = site.actuator
    assert isinstance(nginx, Nginx)
    with controller_process(short_dir, site) as controller:
        waiting_for(short_dir, "policy")
        with stopped(*children(nginx.master_pid)):
            waiting_for(short_dir, "hold", len(decisions(short_dir)))
            assert order(short_dir, "pause") == 0
            assert "in force now: paused" in capsys.readouterr().err
            assert order(short_dir, "resume") == 0
            # Nobody can put the first weights in force now, and who ordered it is told so.
            assert order(short_dir, "revert") == 1
            assert "not obeyed within" in capsys.readouterr().err
        wait_until(lambda: site.control() == Weights.equal(site.topology), "the revert was lost")
        wait_until(lambda: decisions(short_dir)[-1]["reason"].startswith("reverted"), "not told")
        assert order(short_dir, "resume") == 0
        waiting_for(short_dir, "policy", len(decisions(short_dir)))
        assert order(short_dir, "revert") == 0
        assert site.control() == Weights.equal(site.topology)
        assert controller.poll() is None


def test_a_serve_that_stands_still(site: Site, short_dir: Path) -> None:
    """The local bundle advises meanwhile, and orders are obeyed as ever."""
    trained_bundle().save(short_dir / "bundle")

    def by(*names: str) -> bool:
        return bool(decisions(short_dir)) and decisions(short_dir)[-1]["by"].startswith(names)

    with serve_process(short_dir / "bundle", short_dir) as (serve, url):
        steer = steer_process(
            short_dir, site, "run", "--interval-s", "1", "--mode", "active", "--serve-url", url,
            "--set", "guards.novel_above=1e9", "--set", "guards.reference_windows=3",
        )  # fmt: skip
        with steer as controller:
            wait_until(lambda: by("serve"), lambda: controller.log_tail(20))
            with stopped(serve.pid):
                wait_until(lambda: by("local bundle"), lambda: controller.log_tail(20))
                assert order(short_dir, "pause") == 0
                assert order(short_dir, "resume") == 0
                assert order(short_dir, "revert") == 0
                assert site.control() == Weights.equal(site.topology)
                assert by("local bundle")
            wait_until(lambda: by("serve"), lambda: controller.log_tail(20))


def test_a_controller_that_stands_still(site: Site, short_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The watchdog restores the first weights; the controller finds them when it goes on, and steers again."""
    trained_bundle().save(short_dir / "bundle")
    after_s = str(5 * INTERVAL_S)
    with controller_process(short_dir, site) as controller, contextlib.ExitStack() as stack:
        wait_until(lambda: site.control() != Weights.equal(site.topology), lambda: controller.log_tail(20))
        watchdog = stack.enter_context(steer_process(short_dir, site, "watchdog", "--watchdog-after-s", after_s))
        with stopped(controller.pid):
            wait_until(lambda: site.control() == Weights.equal(site.topology), lambda: watchdog.log_tail(20))
            assert order(short_dir, "revert", "--wait-s", "1") == 1
            assert "not obeyed within 1 s" in capsys.readouterr().err
            assert order(short_dir, "resume", "--wait-s", "1") == 1
        known = len(decisions(short_dir))
        waiting_for(short_dir, "policy", known)
        wait_until(lambda: site.control() != Weights.equal(site.topology), lambda: controller.log_tail(20))
        assert order(short_dir, "revert") == 0
        assert site.control() == Weights.equal(site.topology)


def test_one_of_two_workers_of_nginx_stands_still(short_dir: Path) -> None:
    """What the other one answers is enough: statistics and control are shared."""
    trained_bundle().save(short_dir / "bundle")
    live = LiveOptions.model_validate({"nginx": {"method": "round_robin", "worker_processes": 2}})
    with running_site(short_dir / "site", live) as site, contextlib.ExitStack() as stack:
        nginx = site.actuator
        assert isinstance(nginx, Nginx)
        controller = stack.enter_context(controller_process(short_dir, site))
        waiting_for(short_dir, "policy")
        with stopped(children(nginx.master_pid)[0]):
            known = len(decisions(short_dir))
            wait_until(lambda: len(decisions(short_dir)) >= known + 6, lambda: controller.log_tail(20))
            assert order(short_dir, "pause") == 0
            assert order(short_dir, "resume") == 0
        waiting_for(short_dir, "policy", len(decisions(short_dir)))
        assert order(short_dir, "revert") == 0
