"""An embedded testbed under load with a controller in front, for the tests of steering; counts failed requests."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actuators.contract.script import RateStep, Script, ServerProfile, Stream
from actuators.contract.topology import Topology
from actuators.files import write_private
from actuators.nginx.config import NginxOptions
from actuators.nginx.instance import Nginx
from actuators.processes.process import ManagedProcess
from actuators.testbed.options import LiveOptions
from rayjobs.holding.site import SiteHolding
from rayjobs.steer.controller import Match, SiteController, Step, starting_steering
from rayjobs.steer.folder import SteerFolder
from rayjobs.steer.site import Site, embedded_site
from tuning.policy.adviser import Adviser, Advises
from tuning.policy.bundle import Bundle, load_bundle
from tuning.steering import audit
from tuning.steering.decide import Steering
from tuning.steering.limits import differ
from tuning.steering.options import SteeringOptions

INTERVAL_S = 0.4
KNOWN = {"novel_above": 1e9}
"""Guards of a test that is not about novelty: the bundle was fitted to simulated traffic, this is live."""


def options(mode: str = "active", **guards: Any) -> SteeringOptions:
    quick = {
        "reference_windows": 4,
        "min_between_changes_s": 0.1,
        "min_between_reloads_s": 0.0,
        "largest_step": 3.0,
        **KNOWN,
        **guards,
    }
    return SteeringOptions.model_validate({"mode": mode, "guards": quick})


class Drill:
    """A controller in this process, stepping a running site.

    Args:
        asked: makes what the controller asks for advice from the adviser of the bundle's copy.
        holding: makes what holds requests for each controller; None for nothing.

    Attributes:
        said: alarms of the controllers, in order.
        log: the record of the latest controller.
    """

    def __init__(
        self,
        site: Site,
        bundle: Bundle,
        folder: Path,
        settings: SteeringOptions,
        asked: Callable[[Adviser], Advises] = lambda own: own,
        holding: Callable[[], SiteHolding] | None = None,
    ) -> None:
        self.site, self.folder, self._holding = site, SteerFolder(folder), holding
        self.folder.make()
        bundle.save(folder / "bundle")
        self.adviser = Adviser(load_bundle(folder / "bundle", site.topology))
        self.deadlines_s = self.adviser.bundle.problem.deadlines_s
        self.asked = asked(self.adviser)
        self.settings = settings
        self.said: list[str] = []
        self.lines: list[dict[str, Any]] = []
        self.controller = self.start()

    def start(self) -> SiteController:
        """A controller, as after a restart: only the folder and NGINX remember."""
        now_s = time.monotonic()
        steering = starting_steering(
            self.site,
            self.folder,
            lambda first: Steering(self.deadlines_s, first, self.settings, now_s, splits=self.site.splits),
        )
        header = audit.header(steering, self.deadlines_s, now_s, {})
        self.log = audit.AuditLog(self.folder.audit, header)
        self.site.collector.begin()
        match = Match(self.site, steering, self.asked, self.adviser.frames, self.log.write, self._load)
        holding = self._holding() if self._holding is not None else None
        self.controller = SiteController(match, self.folder, holding=holding, log=self.said.append)
        return self.controller

    def _load(self, path: str, match: Match) -> Match:
        new = Adviser(load_bundle(Path(path), self.site.topology))
        return replace(match, adviser=new, frames=new.frames)

    def step(self) -> Step:
        time.sleep(INTERVAL_S)
        step = self.controller.step()
        self.lines.append(step.line)
        # Whatever happened, NGINX itself shows legal weights, the ones that we believe in.
        assert not differ(self.site.control(), self.controller.steering.in_force)
        return step

    def until(self, met: Callable[[Step], bool], most: int) -> int:
        """Steps until `met`; how many it took."""
        for count in range(1, most + 1):
            if met(self.step()):
                return count
        raise AssertionError([(line["source"], line["reason"], line["art"]) for line in self.lines[-most:]])

    def failed_requests(self) -> int:
        """Requests that got no answer or an error since the last call."""
        return failed_requests(self.site)


def failed_requests(site: Site) -> int:
    """Requests that got no answer or an error since the last call; there were some requests at all."""
    return sum(failures(site).values())


def failures(site: Site) -> dict[str, int]:
    """The same by kind; empty when none failed."""
    assert site.load is not None
    windows = site.load.poll()
    assert sum(int(window.answered.sum()) for window in windows) > 20
    found: Counter[str] = Counter()
    for window in windows:
        found.update({kind: int(counts.sum()) for kind, counts in window.errors.items()})
    return {kind: count for kind, count in found.items() if count}


@dataclass(frozen=True)
class Uneven:
    """A light load on three servers, of which one is slow; the sum of what they can do is far above it."""

    name: str = "uneven"
    duration_s: float = 600.0
    rate_rps: float = 60.0
    """Of each request type."""

    def script(self, topology: Topology, seed: int) -> Script:
        streams = tuple(Stream(t, (RateStep(0.0, self.rate_rps),)) for t in topology.request_types)
        profiles = tuple(ServerProfile((speed,) * topology.shape[0], workers=2) for speed in (1.0, 0.8, 0.4))
        return Script(self.name, seed, self.duration_s, streams, profiles, (0.008, 0.006, 0.006))


@contextlib.contextmanager
def running_site(folder: Path, live: LiveOptions | None = None, scenario: Uneven = Uneven()) -> Iterator[Site]:
    # Weights have their full effect on round robin; least_conn would soften a bad policy's harm.
    settings = live or LiveOptions(nginx=NginxOptions(method="round_robin"))
    with embedded_site(settings, scenario, folder / "testbed", 1, scenario.duration_s) as site:
        yield site


def decisions(folder: Path) -> list[dict[str, Any]]:
    """The lines of the decisions in a controller's audit log; none before it has begun."""
    log = SteerFolder(folder).audit
    return [line for line in audit.read_lines(log) if line["kind"] == "decision"] if log.exists() else []


def controller_process(folder: Path, site: Site, *more: str) -> ManagedProcess:
    """`deepsched steer run` as a process, through the control endpoint of the site's NGINX."""
    return steer_process(
        folder, site, "run", "--interval-s", str(INTERVAL_S), "--mode", "active", "--set", "guards.novel_above=1e9",
        "--set", "guards.reference_windows=3", "--set", "guards.min_between_changes_s=0.1",
        "--set", "guards.min_between_reloads_s=0", *more,
    )  # fmt: skip


def steer_process(folder: Path, site: Site, subcommand: str, *more: str) -> ManagedProcess:
    """A subcommand of `deepsched steer` that reaches the site's NGINX through its control endpoint."""
    nginx = site.actuator
    assert isinstance(nginx, Nginx)
    write_private(folder / "token", nginx.token)
    command = [
        sys.executable, "-m", "rayjobs.steer", subcommand, "--bundle", str(folder / "bundle"),
        "--control-url", nginx.control_url, "--token-file", str(folder / "token"),
        "--status-url", nginx.status_url, "--folder", str(folder), *more,
    ]  # fmt: skip
    return ManagedProcess(command, name="steer", log_path=folder / "steer.log")
