"""A controller with advice made by hand, in front of a real NGINX and scripted servers; traffic is sent in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actuators.contract.control import Control, Weights
from actuators.contract.window import Window
from actuators.http_client import http_session
from envs.observation.features import LatencyMemory
from rayjobs.steer import site as steered
from rayjobs.steer.controller import Match, SiteController, Step, starting_steering
from rayjobs.steer.folder import SteerFolder
from tests.support.http_server import ScriptedServer
from tests.support.nginx_site import HOME, Site
from tests.support.steering_cases import DEADLINES_S
from tuning.policy.adviser import Advice, State
from tuning.steering import audit
from tuning.steering.decide import Steering
from tuning.steering.options import SteeringOptions


class Fixed:
    """Advises the same control after every window."""

    frames = 1

    def __init__(self, policy: Control) -> None:
        self.policy = policy

    def advise(self, windows: list[Window], memory: LatencyMemory | None = None) -> Advice:
        shape = windows[-1].topology.shape
        state = State(np.zeros(shape[1], np.int64), np.ones((shape[1], 1)), np.full(shape[1], 0.3))
        equal = Weights.equal(windows[-1].topology)
        return Advice(self.policy, equal, state, memory or LatencyMemory.empty(shape))


def fixed_options(mode: str, **guards: object) -> SteeringOptions:
    quick = {
        "reference_windows": 1,
        "min_between_changes_s": 0.0,
        "min_between_reloads_s": 0.0,
        "largest_step": 100.0,
        "art_margin": 1e9,
        "overload_ratio": 1e9,
        **guards,
    }
    return SteeringOptions.model_validate({"mode": mode, "guards": quick})


def scripted(site: Site, policy: Control, folder: Path, options: SteeringOptions) -> Scripted:
    """In front of an NGINX of ours."""
    own = steered.Site(site.topology, site.collector, site.nginx, site.nginx.address)
    return Scripted(own, site.servers, policy, folder, options)


class Scripted:
    """One step after each batch of requests."""

    def __init__(
        self,
        site: steered.Site,
        servers: Sequence[ScriptedServer],
        policy: Control,
        folder: Path,
        options: SteeringOptions,
    ) -> None:
        self.site, self.servers, self.said = site, servers, list[str]()
        self.folder = SteerFolder(folder)
        self.folder.make()
        now_s = time.monotonic()
        steering = starting_steering(
            self.site, self.folder, lambda first: Steering(DEADLINES_S, first, options, now_s, splits=self.site.splits)
        )
        log = audit.AuditLog(self.folder.audit, audit.header(steering, DEADLINES_S, now_s, {}))
        self.site.collector.begin()
        match = Match(self.site, steering, Fixed(policy), 1, log.write)
        self.controller = SiteController(match, self.folder, log=self.said.append)

    def step(self, requests: int = 20, pause_s: float = 0.0) -> Step:
        self.shares(requests, pause_s)
        return self.controller.step()

    def until(self, met: Callable[[Step], bool], most: int = 20) -> Step:
        for _ in range(most):
            if met(step := self.step()):
                return step
        raise AssertionError(self.folder.status())

    def shares(self, requests: int, pause_s: float = 0.0) -> NDArray[np.float64]:
        """Of the servers among so many requests, as they counted them; every one is answered well."""
        before = np.array([len(server.requests) for server in self.servers])
        with http_session(10.0) as session:
            for _ in range(requests):
                answer = session.get(f"http://{self.site.address}{HOME}")
                assert answer.status_code == 200, (answer.status_code, answer.text)
                time.sleep(pause_s)
        after = np.array([len(server.requests) for server in self.servers])
        return (after - before) / requests
